"""By how much the reference is better than each other contender, with intervals.

Blocks of space are drawn with replacement within each tested group, the same for both contenders,
and the difference is averaged over seeds. So an interval says how far a difference would move with
other tissue of the same brain; a few brains and seeds are no population, and there are no p-values.
"""

from __future__ import annotations

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
        Where.
    contender
        The other.
    measure
        One of `MEASURES`.
    difference
        Mean over the seeds that both have; a rule that learns nothing counts for each.
    low, high
        Ends of the 95 % interval; NaN where there are too few blocks for one.
    seeds
        How many.
    """

    protocol: str
    budget: int
    group: str
    contender: str
    measure: str
    difference: float
    low: float
    high: float
    seeds: int


def effects(cells: Iterable[Cell], stock: Stock, plan: Plan) -> list[Effect]:
    """Compare the reference with all others, label for label: of seeds, those that both have."""
    reference = plan.reference
    unseeded = {c.name for c in plan.contenders if c.rule in UNSEEDED}
    tests: dict[tuple[str, int, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        tests[cell[0].protocol, cell[0].budget, cell[0].group].append(cell)
    found = []
    with progress("resampling", len(tests), unit="tests") as advance:
        for own in tests.values():
            if any(row.contender == reference for row, _, _ in own):
                found += _of_test(own, stock, reference, unseeded)
            advance()
    return found


def _of_test(cells: list[Cell], stock: Stock, reference: str, unseeded: set[str]) -> list[Effect]:
    """All differences in one test, whose candidates are the same for all."""
    first, task, _ = cells[0]
    positions = stock.labels.positions_um[task.test]
    blocks = spatial_blocks(positions, [stock.labels.volumes[i] for i in task.test])
    weights = np.concatenate(list(resampled_weights(blocks, _RESAMPLES, seed=0)))
    is_cell, everything = stock.labels.labels[task.test], np.arange(len(task.test))
    enough = blocks.count(everything) >= TOO_FEW_BLOCKS
    once: dict[str, dict[int, Metrics]] = defaultdict(dict)
    again: dict[str, dict[int, Metrics]] = defaultdict(dict)
    for row, _, scores in cells:
        once[row.contender][row.seed] = measure_score(is_cell, scores, everything, None)
        again[row.contender][row.seed] = measure_score(is_cell, scores, everything, weights)
    found = []
    for name in once:
        pairs = _pairs(
            list(once[reference]), list(once[name]), reference in unseeded, name in unseeded
        )
        if name == reference or not pairs:
            continue
        for measure in MEASURES:
            plain, resampled = (
                np.mean([of[reference][a][measure] - of[name][b][measure] for a, b in pairs], 0)
                for of in (once, again)
            )
            ends = interval(resampled) if enough else None
            low, high = ends or (float("nan"), float("nan"))
            found.append(
                Effect(
                    first.protocol,
                    first.budget,
                    first.group,
                    name,
                    measure,
                    float(plain[0]),
                    low,
                    high,
                    len(pairs),
                )
            )
    return found


def _pairs(
    ours: list[int], theirs: list[int], unseeded: bool, other_unseeded: bool
) -> list[tuple[int, int]]:
    """Seeds that are compared: the same, whose labels are the same; with a rule, each with it."""
    if other_unseeded:
        return [(seed, theirs[0]) for seed in ours]
    if unseeded:
        return [(ours[0], seed) for seed in theirs]
    return [(seed, seed) for seed in ours if seed in theirs]
