"""Pictures of a comparison: label-efficiency curves, groups, and quality against cost."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from cubeclf_core.drawing import plain_text
from finetune.comparing.plan import UNSEEDED, Plan, budget_name, common_row, row_name
from finetune.comparing.results import Cost, Row
from finetune.comparing.table import (
    TITLES,
    Point,
    Value,
    by_group,
    cost_rows,
    over_seeds,
    rows_at,
    whole,
)

_COLOURS = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b5a000", "0.45"),
    *("#332288", "#882255", "#7a4a1e", "0.05"),
)
_MARKS = "osD^vP*X"
_ACROSS = 4  # panels in a line, so that a page can show them
_HIGHEST = 1.005  # no measure is above 1; a little more shows a mark there
_PROTOCOLS = {
    "own": "labels of the own brain",
    "both": "all labels of other brains, and of the own brain",
    "transfer": "labels of other brains only",
}


def learning_curves(plan: Plan, rows: Sequence[Row]) -> Figure:
    """Plot quality over the number of labels: a mark is a mean over groups and seeds.

    It is hollow where it has fewer seeds than others, and a line joins those of as many. Bars span
    the seeds, each a mean over groups, faint lines the groups, each a mean over seeds, where the
    share of cells does not decide what a group can have; a rule that learns nothing is a dashed
    line. Groups and rules may lie below what is shown.
    """
    protocols = _protocols(plan)
    figure = Figure((6.0 * len(protocols) + 1.8, 8.4), layout="constrained")
    grid = figure.subplots(len(TITLES), len(protocols), squeeze=False, sharey="row", sharex="col")
    for line, (measure, title) in zip(grid, TITLES.items(), strict=True):
        values = over_seeds(rows, measure)
        spans = _over_groups(rows, measure) if measure == "auc" else None
        for axes, protocol in zip(line, protocols, strict=True):
            _curves(axes, plan, protocol, values, spans)
        line[0].set_ylabel(title)
        _scale(line[0], plan, values)
    for axes, protocol in zip(grid[0], protocols, strict=True):
        axes.set_title(_PROTOCOLS[protocol])
    for axes in grid[-1]:
        axes.set_xlabel("labels")
    _legend(figure, grid[0][0])
    return figure


def group_curves(plan: Plan, rows: Sequence[Row], measure: str = "auc") -> Figure:
    """Plot the same for each group by itself; bars span its seeds.

    Each has a scale of its own, of what learns: a rule may be far below.
    """
    protocols, groups = _protocols(plan), sorted({row.group for row in rows})
    across = min(len(groups), _ACROSS)
    lines = -(-len(groups) // across)  # of each protocol
    figure = Figure(
        (3.4 * across + 2.4, 3.6 * lines * len(protocols)),
        layout="constrained",
    )
    grid = figure.subplots(lines * len(protocols), across, squeeze=False)
    values = by_group(rows, measure)
    for number, protocol in enumerate(protocols):
        panels = grid[lines * number : lines * (number + 1)].flat
        for axes, group in itertools.zip_longest(panels, groups):
            if group is None:
                axes.remove()
                continue
            found = {key[:3]: value for key, value in values.items() if key[3] == group}
            _curves(axes, plan, protocol, found)
            axes.set(xlabel="labels", title=plain_text(group, 30))
            shown = {key: value for key, value in found.items() if key[1] == protocol}
            _scale(axes, plan, shown)
        grid[lines * number, 0].set_ylabel(f"{TITLES[measure]}\n{_PROTOCOLS[protocol]}")
    _legend(figure, grid[0][0])
    return figure


def _protocols(plan: Plan) -> list[str]:
    return list(dict.fromkeys(protocol for protocol, _ in plan.rows))


def _scale(axes: Axes, plan: Plan, values: Mapping[Point, Value]) -> None:
    """Begin a scale below what learns, where anything does, and end it at what can be reached."""
    learn = {contender.name for contender in plan.contenders if contender.rule not in UNSEEDED}
    lows = [value.low for (name, _, _), value in values.items() if name in learn]
    bottom, top = axes.get_ylim()
    axes.set_ylim(min(lows) - 0.02 if lows else bottom, min(top, _HIGHEST))


def _over_groups(rows: Sequence[Row], measure: str) -> dict[Point, tuple[float, float]]:
    """Give the lowest and the highest group of each point, each a mean over the same seeds."""
    found: dict[Point, list[float]] = defaultdict(list)
    for key, value in by_group(whole(rows, {r.group for r in rows}), measure).items():
        found[key[:3]].append(value.mean)
    return {point: (min(means), max(means)) for point, means in found.items()}


def _curves(
    axes: Axes,
    plan: Plan,
    protocol: str,
    values: Mapping[Point, Value],
    spans: Mapping[Point, tuple[float, float]] | None = None,
) -> None:
    """Draw each contender's values over the budgets of one protocol; `spans` faintly behind."""
    budgets = [n for p, n in plan.rows if p == protocol]
    most = max((value.seeds for value in values.values()), default=0)
    for number, contender in enumerate(plan.contenders):
        at = [i for i, n in enumerate(budgets) if (contender.name, protocol, n) in values]
        if not at:
            continue
        found = [values[contender.name, protocol, budgets[i]] for i in at]
        label = plain_text(contender.name, 40)
        if contender.rule in UNSEEDED:  # it learns nothing, so it is the same everywhere
            axes.axhline(found[0].mean, label=label, **_line(number))
            continue
        moved = np.array(at) + 0.03 * (number - len(plan.contenders) / 2)
        means, lows, highs, seeds = np.array(found).T
        spread = np.array([means - lows, highs - means])
        for n in sorted(set(seeds), reverse=True):  # a line joins what is of as many seeds
            of = seeds == n
            look = _look(number, hollow=bool(n < most))
            axes.errorbar(moved[of], means[of], spread[:, of], label=label, capsize=2, **look)
        if spans:
            behind = np.array([spans[contender.name, protocol, budgets[i]] for i in at])
            axes.vlines(moved, *behind.T, color=_look(number)["color"], lw=0.8, alpha=0.5, zorder=1)
    axes.set_xlim(-0.5, len(budgets) - 0.5)
    axes.set_xticks(range(len(budgets)), [budget_name(n) for n in budgets])
    _bare(axes)


def group_bars(plan: Plan, rows: Sequence[Row], measure: str = "auc") -> Figure:
    """Plot each group by itself at the budget that most have: means, and each seed."""
    protocols, groups = _protocols(plan), sorted({row.group for row in rows})
    figure = Figure((10, 3.4 * len(protocols)), layout="constrained")
    values = by_group(rows, measure)
    lowest = min((value.low for value in values.values()), default=0.0)
    for axes, protocol in zip(
        figure.subplots(len(protocols), 1, squeeze=False)[:, 0], protocols, strict=True
    ):
        _, budget = common_row(plan, protocol)
        width = 0.8 / len(plan.contenders)
        for number, contender in enumerate(plan.contenders):
            x = np.arange(len(groups)) + (number + 0.5) * width - 0.4
            keys = [(contender.name, protocol, budget, group) for group in groups]
            means = [values[key][0] if key in values else np.nan for key in keys]
            colour = _COLOURS[number % len(_COLOURS)]
            axes.bar(x, means, 0.9 * width, color=colour, label=plain_text(contender.name, 40))
            seeds = [
                [
                    (x[i], getattr(row, measure))
                    for row in rows
                    if (row.contender, row.protocol, row.budget, row.group) == key
                ]
                for i, key in enumerate(keys)
            ]
            dots = np.array([dot for of_group in seeds for dot in of_group]).reshape(-1, 2)
            axes.plot(*dots.T, "k.", ms=3)
        axes.set_xticks(range(len(groups)), [plain_text(group, 30) for group in groups])
        axes.set(ylim=(max(0.0, lowest - 0.05), 1.0), ylabel=TITLES[measure])
        axes.set_title(f"{_PROTOCOLS[protocol]}, {budget_name(budget)} labels")
        _bare(axes)
    _legend(figure, figure.axes[0])
    return figure


def cost_against_quality(plan: Plan, rows: Sequence[Row], costs: Mapping[str, Cost]) -> Figure:
    """Plot quality over what networks cost, in the row that all are compared in; bars span seeds.

    What has no such row is shown in its own last one of that protocol, which its name says. What
    has no cost is a dashed line, which may lie below what is shown.
    """
    figure = Figure((14, 4), layout="constrained")
    panels = figure.subplots(1, 4, sharey=True)
    values, common, shown = over_seeds(rows, "auc"), common_row(plan), cost_rows(plan, rows)
    named, placed = "", dict[Point, Value]()
    most = max((value.seeds for value in values.values()), default=0)
    for number, contender in enumerate(plan.contenders):
        name = contender.name
        row, cost = shown.get(name, common), costs.get(name)
        value = values.get((name, *row))
        if value is None or row[0] != common[0]:
            continue
        if cost is None:
            for axes in panels:
                axes.axhline(value.mean, label=plain_text(name, 40), **_line(number))
            continue
        # Done elsewhere: its times are not to be compared with those of this device.
        seconds = [
            cost.seconds_to_train(r.labels, r.train_seconds) if r.device == cost.kind else np.nan
            for r in rows_at(rows, name, row)
        ]
        label = plain_text(name, 40)
        if row != common:
            label, named = f"{label} ({row_name(row)})", ", or as named"
        across = (cost.parameters / 1e6, cost.gflop, cost.ms, float(np.median(seconds)))
        placed[name, *row] = value
        spread = [[value.mean - value.low], [value.high - value.mean]]
        for axes, x in zip(panels, across, strict=True):
            look = _look(number, hollow=value.seeds < most)
            axes.errorbar(x, value.mean, spread, label=label, capsize=2, **look)
    device = next((f"{c.device}, threads: {c.threads}" for c in costs.values()), "")
    labels = ("10⁶ parameters", "GFLOP a cuboid", f"ms a cuboid ({device})", "s to train")
    for axes, label in zip(panels, labels, strict=True):
        axes.set(xlabel=label, xscale="log")
        low, high = axes.get_xlim()
        axes.set_xlim(low / 3, 3 * high)
        few = high < 300 * low  # decades, so that there is room for numbers between them
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if few else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        _bare(axes)
    _scale(panels[0], plan, placed)
    panels[0].set_ylabel(f"AUC, {common[0]}, {budget_name(common[1])} labels{named}")
    _legend(figure, panels[0])
    return figure


def _look(number: int, *, hollow: bool = False) -> dict[str, Any]:
    """Of a contender; where there are more than colours, the mark is another each time round."""
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "marker": _MARKS[(number + number // len(_COLOURS)) % len(_MARKS)],
        "fillstyle": "none" if hollow else "full",
        "ms": 5,
        "lw": 1.3,
    }


def _line(number: int) -> dict[str, Any]:
    """Of what is the same everywhere."""
    return {"color": _look(number)["color"], "ls": "--", "lw": 1.2}


def _legend(figure: Figure, axes: Axes) -> None:
    """Name what any panel shows, each once; `axes` first."""
    shown: dict[str, Any] = {}
    for panel in (axes, *figure.axes):
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, handle)
    figure.legend(
        shown.values(), shown.keys(), loc="outside right upper", frameon=False, fontsize=8
    )


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", lw=0.6)
    axes.set_axisbelow(True)
