"""The two honest questions: labels of one's own brain, and labels of other brains only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.learning.blocks import SEEN, Block
from benchmarks.output import Figures
from cubeclf_core.errors import InputError
from cubeclf_core.metrics import classification_metrics

Index = npt.NDArray[np.int64]

LEARN_BELOW_Y, TEST_ABOVE_Y = 90, 125  # voxels of a block; a cuboid is 31 of them wide
MEASURES = {"auc": "auc", "ap_less_prevalence": "average_precision_less_prevalence"}


@dataclass(frozen=True)
class Task:
    """Labels to learn from, and others to be tested on.

    Attributes
    ----------
    protocol
        "own" or "transfer".
    block
        The one that is tested.
    draw
        Which draw of the labels.
    learn
        Blocks to learn from, and which of their candidates.
    test
        Shape (n,), which candidates of `block`.
    """

    protocol: str
    block: str
    draw: int
    learn: Mapping[str, Index]
    test: Index

    @property
    def seen(self) -> str:
        """Which backbone serves, a key of `SEEN`: has it seen the tested block, or has it not."""
        wanted = self.protocol == "own"
        return next(key for key, blocks in SEEN.items() if (self.block in blocks) == wanted)


Scorer = Callable[[Task], npt.NDArray[np.float64]]
"""From a task to scores of what it tests, higher for more likely cells."""


def make_tasks(blocks: Mapping[str, Block], *, labels: int, draws: int) -> list[Task]:
    """Lay out both protocols.

    Parameters
    ----------
    blocks
        At least two, by name.
    labels
        To learn from, of those in one half of a block.
    draws
        How often these are drawn anew; all contenders get the same.

    Raises
    ------
    InputError
        If a block has too few labels of either class in the right places.
    """
    tasks = []
    for name, block in blocks.items():
        y = block.positions[:, 1]
        near, far = (np.flatnonzero(half) for half in (y < LEARN_BELOW_Y, y > TEST_ABOVE_Y))
        for draw in range(draws):
            random = np.random.default_rng((draw, int(name)))
            learn = np.sort(random.permutation(near)[:labels])
            tasks.append(Task("own", name, draw, {name: learn}, far))
        everything = np.arange(len(block.labels))
        others = {other: np.arange(len(b.labels)) for other, b in blocks.items() if other != name}
        tasks.append(Task("transfer", name, 0, others, everything))
    for task in tasks:
        _check(task, blocks)
    return tasks


def labels_to_learn(task: Task, blocks: Mapping[str, Block]) -> Index:
    """Labels of what a task learns from, block after block; shape (n,)."""
    return np.concatenate([blocks[name].labels[index] for name, index in task.learn.items()])


def brains_to_learn(task: Task) -> Index:
    """Number of the block of each label that a task learns from, block after block; shape (n,)."""
    sizes = [len(index) for index in task.learn.values()]
    return np.repeat(np.arange(len(sizes)), sizes)


def _check(task: Task, blocks: Mapping[str, Block]) -> None:
    parts = {
        "learn from": labels_to_learn(task, blocks),
        "test on": blocks[task.block].labels[task.test],
    }
    for what, labels in parts.items():
        if not 0 < labels.sum() < len(labels):
            raise InputError(
                f"block {task.block}: the {len(labels)} labels to {what} ({task.protocol}) are of "
                "one class; expected cells and others"
            )


@dataclass(frozen=True)
class Result:
    """How well one contender did in one task.

    Attributes
    ----------
    row
        The protocol and the way to learn: "own", "own_knn", "own_finetuned", "transfer" …
    name
        Of the contender.
    seed
        Of its weights.
    block, draw
        Of the task.
    values
        A value for each of `MEASURES`.
    """

    row: str
    name: str
    seed: int
    block: str
    draw: int
    values: Mapping[str, float]


def try_out(
    name: str,
    scorer: Scorer,
    tasks: Iterable[Task],
    blocks: Mapping[str, Block],
    *,
    seed: int = 0,
    way: str = "",
) -> list[Result]:
    """Let a contender do tasks; `way` is how it learns, where there are several."""
    results = []
    for task in tasks:
        labels = blocks[task.block].labels[task.test]
        found = classification_metrics(labels, scorer(task))
        values = {key: found[metric] for key, metric in MEASURES.items()}
        row = task.protocol + way
        results.append(Result(row, name, seed, task.block, task.draw, values))
    return results


def summarise(results: Sequence[Result]) -> Figures:
    """Average over draws, then blocks, then seeds; also give the worst and the best seed.

    Returns
    -------
    dict
        ``ROW.NAME.MEASURE``, with ``.min`` and ``.max`` over seeds, and ``ROW.NAME.BLOCK.MEASURE``.
    """
    figures: Figures = {}
    for measure in MEASURES:
        draws: dict[tuple[str, str, int, str], list[float]] = defaultdict(list)
        for r in results:
            draws[r.row, r.name, r.seed, r.block].append(r.values[measure])
        seeds: dict[tuple[str, str, int], list[float]] = defaultdict(list)
        blocks: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        for (row, name, seed, block), values in draws.items():
            seeds[row, name, seed].append(float(np.mean(values)))
            blocks[row, name, block].append(float(np.mean(values)))
        whole: dict[tuple[str, str], list[float]] = defaultdict(list)
        for (row, name, _), values in seeds.items():
            whole[row, name].append(float(np.mean(values)))
        for (row, name), values in whole.items():
            key = f"{row}.{name}.{measure}"
            figures |= {key: float(np.mean(values))}
            figures |= {f"{key}.min": min(values), f"{key}.max": max(values)}
        for (row, name, block), values in blocks.items():
            figures[f"{row}.{name}.{block}.{measure}"] = float(np.mean(values))
    return figures
