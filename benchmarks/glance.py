"""The c-Fos comparisons at a glance: who has what with how many labels, of all their tables."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.comparison import PLANS
from finetune.comparing.grid import Row
from finetune.comparing.pictures import group_curves
from finetune.comparing.plan import UNSEEDED, Plan, budget_name, read_plan
from finetune.comparing.table import TITLES, by_group, over_seeds

OF, BOTH = "cfos", ("cfos_own", "cfos_transfer")
ONE_DRAW = "†"

# By what it is called here: comparisons to look in, and its names there, the first with a figure.
CONTENDERS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "contrast, chosen on what is tested": ((OF,), ("contrast",)),
    "forest": ((OF,), ("forest",)),
    "ResNet-18 from nothing": (BOTH, ("ResNet-18", "ResNet-18, one seed")),
    "ResNet-50 from nothing": (BOTH, ("ResNet-50",)),
    "nano from nothing": (BOTH, ("ViT (nano) from scratch", "ViT (nano) from scratch, one seed")),
    "untrained, frozen": ((OF,), ("untrained, frozen",)),
    "zoo (nano), frozen": ((OF,), ("zoo (nano), frozen",)),
    "zoo (nano), fine-tuned": (
        BOTH,
        ("zoo (nano), fine-tuned", "zoo (nano), fine-tuned, one seed"),
    ),
    "pretrained on c-Fos, frozen": ((OF,), ("pretrained, frozen",)),
    "pretrained on c-Fos, fine-tuned": (
        (OF,),
        ("pretrained, fine-tuned", "pretrained, fine-tuned, one seed"),
    ),
}


def read_rows(file: Path) -> list[Row]:
    """Read the `results.csv` of a comparison."""
    kinds = {"int": int, "float": float, "str": str}
    cast = {field.name: kinds[str(field.type)] for field in dataclasses.fields(Row)}
    with file.open(encoding="utf-8", newline="") as opened:
        lines = csv.DictReader(opened)
        return [Row(**{key: cast[key](value) for key, value in line.items()}) for line in lines]


def gather(results: Path) -> list[Row]:
    """Take every contender's rows from where they are, under its name here."""
    known = {
        name: read_rows(file)
        for name in (OF, *BOTH)
        if (file := results / f"comparison_{name}" / "results.csv").exists()
    }
    found: list[Row] = []
    for name, (comparisons, aliases) in CONTENDERS.items():
        had: set[tuple[str, int]] = set()
        for comparison in comparisons:
            for alias in aliases:
                rows = [row for row in known.get(comparison, []) if row.contender == alias]
                new = [row for row in rows if (row.protocol, row.budget) not in had]
                had |= {(row.protocol, row.budget) for row in new}
                found += [dataclasses.replace(row, contender=name) for row in new]
    return found


def glance(results: Path) -> list[str]:
    """Write a table for each measure: the mean over blocks, and each block.

    Returns
    -------
    list of str
        Paragraphs; none if there is nothing yet.
    """
    rows = gather(results)
    if not rows:
        return []
    groups = sorted({row.group for row in rows})
    columns = _plan(rows).rows
    parts = [
        f"Three draws of labels, or one ({ONE_DRAW}); the mean of three blocks of c-Fos, and "
        f"{', '.join(groups)}; words are explained below."
    ]
    for measure, title in TITLES.items():
        means, each = over_seeds(rows, measure), by_group(rows, measure)
        lines = [[title, *(f"{protocol} {budget_name(n)}" for protocol, n in columns)]]
        lines.append(["---"] * len(lines[0]))
        for name in CONTENDERS:
            line = [name]
            for column in columns:
                if (mean := means.get((name, *column))) is None:
                    line.append("")
                    continue
                blocks = " ".join(_short(each[name, *column, group][0]) for group in groups)
                one = ONE_DRAW if _draws(rows, name, column) == 1 else ""
                line.append(f"**{_short(mean[0])}**{one} {blocks}")
            lines.append(line)
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return parts


def picture(results: Path) -> Figure:
    """Draw the same: each block by itself, AUC over labels."""
    rows = gather(results)
    return group_curves(_plan(rows), rows)


def _plan(rows: Sequence[Row]) -> Plan:
    """The plan that the rows would be of, with contenders as they are called here."""
    plan = read_plan(PLANS / f"{OF}.yaml")
    first = {contender.name: contender for contender in plan.contenders}
    shown = [name for name in CONTENDERS if any(row.contender == name for row in rows)]
    contenders = tuple(
        dataclasses.replace(first.get(CONTENDERS[name][1][0], first["forest"]), name=name)
        for name in shown
    )
    return dataclasses.replace(plan, contenders=contenders, reference=shown[0])


def _draws(rows: Sequence[Row], name: str, column: tuple[str, int]) -> int:
    """How many draws there are; what learns nothing needs no more than one."""
    if any(rule in name for rule in UNSEEDED):
        return 0
    wanted = (name, *column)
    return len({row.seed for row in rows if (row.contender, row.protocol, row.budget) == wanted})


def _short(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".")
