"""By how much the reference is better than each other contender, with intervals.

Blocks of space are drawn with replacement within each tested group, the same for both contenders,
and the difference is averaged over seeds. So an interval says how far a difference would move with
other tissue of the same brain; a few brains and seeds are no population, and there are no p-values.

Both have the same labels. What has one budget alone, as a large network that was trained on all
labels, is also compared with what the reference makes of fewer, or of more: the same is tested.
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
from finetune.comparing.grid import Row
from finetune.comparing.plan import UNSEEDED, Plan
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
        The other, and its own: another one if it has that alone.
    measure
        One of `MEASURES`.
    difference
        Mean over the seeds that both have; a rule that learns nothing counts for each, and so does
        each seed for each where budgets differ.
    low, high
        Ends of the 95 % interval; NaN where there are too few blocks for one.
    seeds
        How many, of the reference if it is no such rule.
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
                found += _of_test(own, stock, plan.reference, unseeded)
            advance()
    order = {row: number for number, row in enumerate(plan.rows)}
    return sorted(found, key=lambda effect: order[effect.protocol, effect.budget])


def _of_test(cells: list[Cell], stock: Stock, reference: str, unseeded: set[str]) -> list[Effect]:
    """All differences in one test, whose candidates are the same for all budgets."""
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
    budgets = defaultdict(list)
    for name, budget in once:
        budgets[name].append(budget)
    found = []
    for budget, (name, other) in itertools.product(budgets[reference], once):
        alike = other == budget
        if name == reference or not (alike or budgets[name] == [other]):
            continue
        ours, theirs = (reference, budget), (name, other)
        seeds = list(once[ours]), list(once[theirs])
        pairs = _pairs(*seeds, either=not alike or bool({reference, name} & unseeded))
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
                    len({b if reference in unseeded else a for a, b in pairs}),
                )
            )
    return found


def _pairs(ours: list[int], theirs: list[int], *, either: bool) -> list[tuple[int, int]]:
    """Seeds that are compared: the same, whose labels are the same, or each with each."""
    if either:
        return list(itertools.product(ours, theirs))
    return [(seed, seed) for seed in ours if seed in theirs]
