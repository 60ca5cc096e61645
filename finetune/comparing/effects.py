"""By how much the reference is better than each other contender, with intervals.

Blocks of space are drawn with replacement within each tested group, the same for both contenders,
and the difference is averaged over seeds. So an interval says how far a difference would move with
other tissue of the same brain; a few brains and seeds are no population, and there are no p-values.

Both have the same labels, but for contenders that a plan holds the reference `against`: such as a
large network that was trained on all labels, against which the reference has fewer. What is tested
is the same for all budgets.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cubeclf_core.bootstrap import interval, resampled_weights, spatial_blocks
from cubeclf_core.console import progress
from finetune.comparing.plan import UNSEEDED, Plan
from finetune.comparing.results import Row
from finetune.comparing.stock import Stock
from finetune.comparing.tasks import Task
from finetune.measures import TOO_FEW_BLOCKS, Metrics, measure_score

MEASURES = ("auc", "average_precision_less_prevalence")
_RESAMPLES = 300

Cell = tuple[Row, Task, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Effect:
    """A difference, the reference less another contender.

    Attributes
    ----------
    protocol, budget, group
        Where; the budget is that of the reference.
    contender, contender_budget
        The other, and its own: another one if the plan holds the reference against that.
    measure
        One of `MEASURES`.
    difference
        Mean over the seeds that both have; a rule that learns nothing counts for each, and where
        budgets differ each seed for each.
    low, high
        Ends of the 95 % interval; NaN where there are too few blocks for one.
    seeds
        How many; where each counts for each, of whom has fewer, but for such a rule.
    """

    protocol: str
    budget: int
    group: str
    contender: str
    contender_budget: int
    measure: str
    difference: float
    low: float
    high: float
    seeds: int


def effects(cells: Iterable[Cell], stock: Stock, plan: Plan) -> list[Effect]:
    """Compare the reference with all others: of seeds, those that both have."""
    unseeded = {c.name for c in plan.contenders if c.rule in UNSEEDED}
    tests: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        tests[cell[0].protocol, cell[0].group].append(cell)
    found = []
    with progress("resampling", len(tests), unit="tests") as advance:
        for own in tests.values():
            if any(row.contender == plan.reference for row, _, _ in own):
                found += _of_test(own, stock, plan, unseeded)
            advance()
    order = {row: number for number, row in enumerate(plan.rows)}
    return sorted(found, key=lambda effect: order[effect.protocol, effect.budget])


def _of_test(cells: list[Cell], stock: Stock, plan: Plan, unseeded: set[str]) -> list[Effect]:
    """All differences in one test, whose candidates are the same for all budgets."""
    reference = plan.reference
    first, task, _ = cells[0]
    positions = stock.labels.positions_um[task.test]
    blocks = spatial_blocks(positions, [stock.labels.volumes[i] for i in task.test])
    weights = np.concatenate(list(resampled_weights(blocks, _RESAMPLES, seed=0)))
    is_cell, everything = stock.labels.labels[task.test], np.arange(len(task.test))
    enough = blocks.count(everything) >= TOO_FEW_BLOCKS
    # By contender and budget, then by seed.
    once: dict[tuple[str, int], dict[int, Metrics]] = defaultdict(dict)
    again: dict[tuple[str, int], dict[int, Metrics]] = defaultdict(dict)
    for row, _, scores in cells:
        point = row.contender, row.budget
        once[point][row.seed] = measure_score(is_cell, scores, everything, None)
        again[point][row.seed] = measure_score(is_cell, scores, everything, weights)
    budgets = [budget for name, budget in once if name == reference]
    found = []
    for budget, (name, other) in itertools.product(budgets, once):
        alike = other == budget
        held = plan.against.get(name) == other and reference not in unseeded
        if name == reference or not (alike or held):
            continue
        ours, theirs = (reference, budget), (name, other)
        seeds = list(once[ours]), list(once[theirs])
        rules = {reference, name} & unseeded
        pairs = _pairs(*seeds, either=not alike or bool(rules))
        if not pairs:
            continue
        for measure in MEASURES:
            plain, resampled = (
                np.mean([of[ours][a][measure] - of[theirs][b][measure] for a, b in pairs], 0)
                for of in (once, again)
            )
            ends = interval(resampled) if enough else None
            low, high = ends or (float("nan"), float("nan"))
            found.append(
                Effect(
                    first.protocol,
                    budget,
                    first.group,
                    name,
                    other,
                    measure,
                    float(plain[0]),
                    low,
                    high,
                    (max if rules else min)(len(set(side)) for side in zip(*pairs, strict=True)),
                )
            )
    return found


def _pairs(ours: list[int], theirs: list[int], *, either: bool) -> list[tuple[int, int]]:
    """Seeds that are compared: the same, whose labels are the same, or each with each."""
    if either:
        return list(itertools.product(ours, theirs))
    return [(seed, seed) for seed in ours if seed in theirs]
