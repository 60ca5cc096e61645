"""The c-Fos comparisons at a glance: who has what with how many labels, of all three."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.comparison import PLANS
from finetune.comparing.pictures import group_curves
from finetune.comparing.plan import UNSEEDED, Contender, Plan, Rule, budget_name, read_plan
from finetune.comparing.results import Row
from finetune.comparing.table import TITLES, by_group, over_seeds, whole

ONE_DRAW = "†"
_CFOS, _OWN_AND_TRANSFER = ("cfos",), ("cfos_own", "cfos_transfer")

# By what it is called here: comparisons to look in, and its names there, the first with a figure.
CONTENDERS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "contrast": (_CFOS, ("contrast",)),
    "forest": (_CFOS, ("forest",)),
    "ResNet-18 from scratch": (_OWN_AND_TRANSFER, ("ResNet-18", "ResNet-18, one seed")),
    "ResNet-50 from scratch": (_OWN_AND_TRANSFER, ("ResNet-50",)),
    "ViT (nano) from scratch": (
        _OWN_AND_TRANSFER,
        ("ViT (nano) from scratch", "ViT (nano) from scratch, one seed"),
    ),
    "untrained, frozen": (_CFOS, ("untrained, frozen",)),
    "zoo (nano), frozen": (_CFOS, ("zoo (nano), frozen",)),
    "zoo (nano), fine-tuned": (
        _OWN_AND_TRANSFER,
        ("zoo (nano), fine-tuned", "zoo (nano), fine-tuned, one seed"),
    ),
    "pretrained, frozen": (_CFOS, ("pretrained, frozen",)),
    "pretrained, fine-tuned": (
        _CFOS,
        ("pretrained, fine-tuned", "pretrained, fine-tuned, one seed"),
    ),
}


def gather(results: Path) -> list[Row]:
    """Take every contender's rows from where they are, under its name here.

    Parameters
    ----------
    results
        Folder with `comparison_cfos`, `comparison_cfos_own` and `comparison_cfos_transfer`, each
        with a `results.csv`; what is missing is left out.

    Returns
    -------
    list of Row
        Of seeds that were tried on all groups, in the order of `CONTENDERS`.
    """
    known = {
        name: _read(file)
        for name in (*_CFOS, *_OWN_AND_TRANSFER)
        if (file := results / f"comparison_{name}" / "results.csv").exists()
    }
    groups = {row.group for rows in known.values() for row in rows}
    found: list[Row] = []
    for name, (comparisons, aliases) in CONTENDERS.items():
        had: set[tuple[str, int]] = set()
        for comparison in comparisons:
            for alias in aliases:
                rows = [row for row in known.get(comparison, []) if row.contender == alias]
                new = [row for row in whole(rows, groups) if (row.protocol, row.budget) not in had]
                had |= {(row.protocol, row.budget) for row in new}
                found += [dataclasses.replace(row, contender=name) for row in new]
    return found


def tables(rows: Sequence[Row]) -> list[str]:
    """Write a table for each measure: the mean over blocks, and each block.

    Parameters
    ----------
    rows
        Of `gather`, at least one.

    Returns
    -------
    list of str
        Paragraphs.
    """
    groups = sorted({row.group for row in rows})
    plan = _plan(rows)
    parts = [
        f"In bold the mean of blocks, then {', '.join(groups)}. Three seeds, of the pretraining on "
        f"c-Fos too, or one ({ONE_DRAW}); empty where it was not run. What is trained has a rate "
        "that was chosen by a hundred labels, but for ResNet-50, which has the usual one."
    ]
    for measure, title in TITLES.items():
        means, each = over_seeds(rows, measure), by_group(rows, measure)
        lines = [[title, *(f"{protocol} {budget_name(n)}" for protocol, n in plan.rows)]]
        lines.append(["---"] * len(lines[0]))
        for contender in plan.contenders:
            line = [contender.name]
            for column in plan.rows:
                cell = (contender.name, *column)
                if cell not in means:
                    line.append("")
                    continue
                one = means[cell].seeds == 1 and contender.rule not in UNSEEDED
                blocks = " ".join(_short(each[*cell, group].mean) for group in groups)
                line.append(f"**{_short(means[cell].mean)}**{ONE_DRAW if one else ''} {blocks}")
            lines.append(line)
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return parts


def picture(rows: Sequence[Row]) -> Figure:
    """Draw the same: AUC over labels, each block by itself; bars span the seeds, hollow is one.

    Parameters
    ----------
    rows
        Of `gather`, at least one.
    """
    return group_curves(_plan(rows), rows)


def _read(file: Path) -> list[Row]:
    """Read the `results.csv` of a comparison."""
    kinds = {"int": int, "float": float, "str": str}
    cast = {field.name: kinds[str(field.type)] for field in dataclasses.fields(Row)}
    with file.open(encoding="utf-8", newline="") as opened:
        lines = csv.DictReader(opened)
        return [Row(**{key: cast[key](value) for key, value in line.items()}) for line in lines]


def _plan(rows: Sequence[Row]) -> Plan:
    """The plan that the rows would be of, with contenders as they are called here."""
    plan = read_plan(PLANS / "cfos.yaml")
    there = dict.fromkeys(row.contender for row in rows)
    contenders = tuple(_contender(name) for name in there)
    return dataclasses.replace(plan, contenders=contenders, reference=contenders[0].name)


def _contender(name: str) -> Contender:
    """A contender by name; of the rest nothing is asked here, but whether a rule learns."""
    rule: Rule | None = "contrast" if name in UNSEEDED else None
    return Contender(name, rule, {}, {}, seeds=1, budgets={}, rates=(), channels=1)


def _short(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".")
