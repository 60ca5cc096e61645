"""The long table of all cells, and the short one that is made of it."""

from __future__ import annotations

import csv
import dataclasses
import io
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

from finetune.comparing.plan import Contender, Plan, budget_name, common_row, row_name
from finetune.comparing.results import Cost, Row

Point = tuple[str, str, int]
"""Contender, protocol and budget."""


class Value(NamedTuple):
    """Mean over groups and seeds, the lowest and highest seed, each such a mean, how many seeds."""

    mean: float
    low: float
    high: float
    seeds: int

    @classmethod
    def of(cls, seeds: Sequence[float]) -> Value:
        """Of what each seed came to."""
        return cls(statistics.mean(seeds), min(seeds), max(seeds), len(seeds))


TITLES = {"auc": "AUC", "average_precision_less_prevalence": "AP − share of cells"}


def to_csv(rows: Iterable[Any]) -> str:
    """Write dataclasses of one kind as CSV, numbers in full; empty if there are none."""
    given = [dataclasses.asdict(row) for row in rows]
    if not given:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(given[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(given)
    return text.getvalue()


def whole(rows: Sequence[Row], groups: Set[str]) -> list[Row]:
    """Leave out seeds that were not tried on all groups: no mean is of others than another."""
    tried: dict[tuple[Point, int], set[str]] = defaultdict(set)
    for row in rows:
        tried[_point(row), row.seed].add(row.group)
    return [row for row in rows if tried[_point(row), row.seed] == groups]


def over_seeds(rows: Sequence[Row], measure: str) -> dict[Point, Value]:
    """Average over groups within each seed that was tried on all of them, then over seeds."""
    found: dict[Point, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in whole(rows, {row.group for row in rows}):
        found[_point(row)][row.seed].append(getattr(row, measure))
    return {
        point: Value.of([statistics.mean(of_groups) for of_groups in seeds.values()])
        for point, seeds in found.items()
    }


def by_group(rows: Sequence[Row], measure: str) -> dict[tuple[str, str, int, str], Value]:
    """The same for each group alone: mean, lowest and highest seed."""
    found: dict[tuple[str, str, int, str], list[float]] = defaultdict(list)
    for row in rows:
        found[row.contender, row.protocol, row.budget, row.group].append(getattr(row, measure))
    return {key: Value.of(seeds) for key, seeds in found.items()}


def to_markdown(
    plan: Plan, rows: Sequence[Row], costs: Mapping[str, Cost], left_out: Sequence[str] = ()
) -> str:
    """Lay out what was tested, means over groups and seeds, each group, rates, and the cost.

    What is left out is told at the end.
    """
    parts = [_lay_out(*tested(plan, rows))]
    for measure, title in TITLES.items():
        values = over_seeds(rows, measure)
        head = [title, *(f"{p} {budget_name(n)}" for p, n in plan.rows), "seeds"]
        body = [
            [c.name, *(_cell(values.get((c.name, *row))) for row in plan.rows), _seeds(c, values)]
            for c in plan.contenders
        ]
        parts.append(_lay_out(head, body))
        groups = sorted({row.group for row in rows})
        each = by_group(rows, measure)
        head = [f"{title}: {', '.join(groups)}", *(f"{p} {budget_name(n)}" for p, n in plan.rows)]
        body = [
            [
                c.name,
                *(
                    " ".join(_short(each.get((c.name, *row, group))) for group in groups)
                    for row in plan.rows
                ),
            ]
            for c in plan.contenders
        ]
        parts.append(_lay_out(head, body))
    parts += _rates(plan, rows)
    parts.append(_costs(plan, rows, costs))
    parts += ["\n".join(f"- {told}" for told in left_out)] if left_out else []
    return "\n\n".join(parts) + "\n"


def _seeds(contender: Contender, values: Mapping[Point, Value]) -> str:
    """How many seeds the means of a contender are of; from the fewest to the most."""
    counts = [value.seeds for (name, _, _), value in values.items() if name == contender.name]
    return "–".join(str(n) for n in sorted({min(counts), max(counts)})) if counts else "0"


def _rates(plan: Plan, rows: Sequence[Row]) -> list[str]:
    """Lay out what learning rates there are, in each group; nothing if nothing is trained."""
    groups = sorted({row.group for row in rows})
    # That all seeds of a row have.
    rates = {(r.contender, r.protocol, r.budget, r.group): f"{r.rate:g}" for r in rows}
    head = [f"times the usual learning rate: {', '.join(groups)}"]
    head += [row_name(row) for row in plan.rows]
    body = []
    for contender in plan.contenders:
        if contender.trains:
            cells = [
                [rates.get((contender.name, *row, g), "–") for g in groups] for row in plan.rows
            ]
            body.append([contender.name, *(" ".join(cell) for cell in cells)])
    return [_lay_out(head, body)] if body else []


def _costs(plan: Plan, rows: Sequence[Row], costs: Mapping[str, Cost]) -> str:
    common, shown = common_row(plan), cost_rows(plan, rows)
    where = next((f" ({c.device}, threads: {c.threads})" for c in costs.values()), "")
    trained = f"s to train, {row_name(common)}"
    head = ["cost", "parameters", "GFLOP a cuboid", f"ms a cuboid{where}", trained, "GB"]
    body = []
    for contender in plan.contenders:
        row = shown.get(contender.name, common)
        own = rows_at(rows, contender.name, row)
        cost = costs.get(contender.name)
        of_network = ["", "", ""]
        if cost:
            of_network = [f"{cost.parameters:,}", f"{cost.gflop:.2f}", f"{cost.ms:.2f}"]
        took = ["", ""]
        if own:
            took = [
                f"{statistics.median(_seconds(found, cost) for found in own):.1f}",
                f"{max(found.memory_gb for found in own):.1f}",
            ]
            if row != common:
                took[0] += f" ({row_name(row)})"
            # Done elsewhere: its times are not to be compared with those of this device.
            if cost and {found.device for found in own} != {cost.kind}:
                took = [f"{value} ({', '.join({f.device for f in own})})" for value in took]
        body.append([contender.name, *of_network, *took])
    return _lay_out(head, body)


def tested(plan: Plan, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Give a head and lines: of each group, how many are tested, and the share of cells."""
    groups = sorted({row.group for row in rows})
    found = {(row.protocol, row.group): row for row in rows}
    body = []
    for protocol in dict.fromkeys(protocol for protocol, _ in plan.rows):
        of = [found.get((protocol, group)) for group in groups]
        cells = ["–" if row is None else f"{row.tested:,}, {row.prevalence:.1%}" for row in of]
        body.append([protocol, *cells])
    return ["tested candidates, share of cells", *groups], body


def rows_at(rows: Sequence[Row], contender: str, row: tuple[str, int]) -> list[Row]:
    """Those of one contender, protocol and budget."""
    return [found for found in rows if _point(found) == (contender, *row)]


def cost_rows(plan: Plan, rows: Sequence[Row]) -> dict[str, tuple[str, int]]:
    """Choose the row in which each contender's cost is shown.

    The one that all are compared in; or the last one that it has, of that protocol if it can be.
    """
    common, tried = common_row(plan), {(r.contender, (r.protocol, r.budget)) for r in rows}
    shown = {}
    for contender in plan.contenders:
        if mine := [row for row in plan.rows_of(contender) if (contender.name, row) in tried]:
            alike = [row for row in mine if row[0] == common[0]]
            shown[contender.name] = common if common in mine else (alike or mine)[-1]
    return shown


def _seconds(row: Row, cost: Cost | None) -> float:
    if cost is None or row.device != cost.kind:
        return row.train_seconds
    return cost.seconds_to_train(row.labels, row.train_seconds)


def _point(row: Row) -> Point:
    return row.contender, row.protocol, row.budget


def _cell(value: Value | None) -> str:
    if value is None:
        return ""
    mean = f"{value.mean:.3f}"
    return mean if value.low == value.high else f"{mean} ({value.low:.3f}–{value.high:.3f})"


def _short(value: Value | None) -> str:
    return "–" if value is None else f"{value.mean:.3f}".replace("0.", ".")


def _lay_out(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body)]
    return "\n".join(lines)
