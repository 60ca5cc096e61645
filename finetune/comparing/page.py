"""The page of a comparison: one HTML file that opens offline, with its tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from cubeclf_core.environment import environment
from finetune.comparing.effects import Effect
from finetune.comparing.pictures import (
    cost_against_quality,
    group_bars,
    group_curves,
    learning_curves,
)
from finetune.comparing.plan import AS_IT_IS, Plan, budget_name, other_name
from finetune.comparing.results import Cost, Row
from finetune.comparing.table import TITLES, over_seeds, tested
from finetune.report_html import bullets, details, figure, section, table
from finetune.report_pictures import Picture
from finetune.report_style import STYLE

_HOW = (
    "Every contender that learns gets the same labels, and all are tested on the same candidates. "
    "Own brain: labels of one part of a group, tested on another part of it, no voxel shared. "
    "Both: so many labels of one part of a group and all labels of other groups, tested as these. "
    "Transfer: labels of all other groups, tested on one.",
    "A mean is over groups and seeds; behind it are the lowest and the highest seed, each a mean "
    "over groups. AP is average precision, given less the share of cells, where guessing starts.",
    "Intervals of differences are of a bootstrap over blocks of space within each group: how far a "
    "difference would move with other tissue of the same brain. A few brains are no population: "
    "nothing is said of new animals. Labels are the same for both, unless the other's are named.",
)
_AS_IT_IS = (
    "A classifier that is taken as it is has learned from whatever it was trained on: if that was "
    "what is tested here, its score says little. `seen` in results.csv says so where it is known."
)
_BARS = (
    "Bars span the seeds, faint lines, of AUC, the groups; these and a dashed line may lie below "
    "what a panel shows. A hollow mark has fewer seeds than others."
)
_EACH = (
    "Bars span the seeds, a hollow mark has fewer than others; a dashed line may lie below what a "
    "panel shows. Each panel has a scale of its own."
)
_RATES = (
    "Where several learning rates were to be tried, one was chosen with the first seed, on labels "
    "held out among {}. Learning rates, below, and the table of all cells (results.csv) say what "
    "each contender got, and by what."
)


def draw(plan: Plan, rows: Sequence[Row], costs: Mapping[str, Cost]) -> dict[str, Picture]:
    """Draw what the page shows, by what the pictures' files are called."""
    drawn = {
        "learning_curves": ("Quality over labels", _BARS, learning_curves(plan, rows)),
        "group_curves": ("Group by group", _EACH, group_curves(plan, rows)),
        "groups": ("With the labels that most have", "Dots are seeds.", group_bars(plan, rows)),
    }
    if costs:
        drawn["cost"] = ("Quality against cost", "", cost_against_quality(plan, rows, costs))
    return {name: Picture("", *told) for name, told in drawn.items()}


def render(
    plan: Plan,
    rows: Sequence[Row],
    found: Sequence[Effect],
    pictures: Iterable[Picture],
    remarks: Sequence[str],
) -> str:
    """Make the page."""
    groups = sorted({row.group for row in rows})
    title = f"Comparison of {len(plan.contenders)} contenders on {', '.join(groups)}"
    labels = plan.rates_labels
    by = "those learned from" if labels is None else f"{budget_name(labels)}, for all budgets"
    chosen = [_RATES.format(by)] if any(c.chooses_rate for c in plan.contenders) else []
    ready = [_AS_IT_IS] if any(c.rule == AS_IT_IS for c in plan.contenders) else []
    body = [
        section("How to read this", [bullets([*_HOW, *chosen, *ready, *remarks])]),
        section("Results", [_means(plan, rows, m, t) for m, t in TITLES.items()]),
        section("What was tested", [table(*tested(plan, rows))]),
        section("Pictures", [figure(picture) for picture in pictures]),
        section(
            f"Differences: {plan.reference} less another",
            [_effects(found, m, t) for m, t in TITLES.items()],
        ),
        section("Learning rates", [_rates(plan, rows)]),
        section("What was asked", [details("plan", f"<pre>{escape(plan.text)}</pre>")]),
        section("Where it ran", [details("environment", _environment())]),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main><h1>{escape(title)}</h1>\n{''.join(body)}\n</main></body></html>\n"
    )


def _means(plan: Plan, rows: Sequence[Row], measure: str, title: str) -> str:
    values = over_seeds(rows, measure)
    lines = []
    for contender in plan.contenders:
        cells = [escape(contender.name)]
        for row in plan.rows:
            value = values.get((contender.name, *row))
            if value is None:
                cells.append("")
                continue
            spread = f"<small>{value.low:.3f} – {value.high:.3f}</small>"
            cells.append(f"{value.mean:.3f}" + (spread if value.high > value.low else ""))
        lines.append(cells)
    return table([title, *(f"{p}, {budget_name(n)} labels" for p, n in plan.rows)], lines)


def _effects(found: Sequence[Effect], measure: str, title: str) -> str:
    if not found:
        return ""
    lines = [
        [
            escape(other_name(effect.contender, effect.contender_budget, effect.budget)),
            f"{effect.protocol}, {budget_name(effect.budget)}",
            escape(effect.group),
            f"{effect.difference:+.3f}",
            "" if math.isnan(effect.low) else f"{effect.low:+.3f} to {effect.high:+.3f}",
            str(effect.seeds),
        ]
        for effect in found
        if effect.measure == measure
    ]
    head = ["than", "labels", "group", title, "95 % interval", "seeds"]
    return details(f"all differences in {title}", table(head, lines, text_columns=3))


def _rates(plan: Plan, rows: Sequence[Row]) -> str:
    trained = {c.name for c in plan.contenders if c.trains}
    # Of all seeds the same; the first of them may have diverged.
    first = {(row.contender, row.protocol, row.budget, row.group): row for row in reversed(rows)}
    lines = [
        [
            escape(row.contender),
            f"{row.protocol}, {budget_name(row.budget)}",
            escape(row.group),
            f"{row.rate:g} ×",
            escape(row.rate_by),
        ]
        for row in reversed(first.values())
        if row.contender in trained
    ]
    head = ["contender", "labels", "group", "rate", "by"]
    return details("what each contender got", table(head, lines, text_columns=5)) if lines else ""


def _environment() -> str:
    lines = [[escape(str(key)), escape(str(value))] for key, value in environment().items()]
    return table(["", ""], lines, text_columns=2)
