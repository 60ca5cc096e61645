"""Contenders that train no network: brightness, crowding, a forest, a classifier as it is."""

from __future__ import annotations

import functools
import time

import numpy as np
import numpy.typing as npt

from cubeclf_core.classifier import load_classifier
from cubeclf_core.heads import CELL_CLASS
from cubeclf_core.rules import contrast, density
from finetune.comparing.forest import forest_scores, radial_means
from finetune.comparing.plan import AS_IT_IS, Rule
from finetune.comparing.stock import Stock
from finetune.comparing.tasks import Answer, Task
from finetune.labels import Labelled


class Rules:
    """Scores by rules, with what they need of all labels computed once.

    Parameters
    ----------
    stock
        All labels.
    """

    def __init__(self, stock: Stock) -> None:
        self._stock = stock
        self._said: dict[tuple[str, str, str], Answer] = {}

    def answer(self, rule: Rule, task: Task, classifier: str = "") -> Answer:
        """Score what a task tests.

        Parameters
        ----------
        rule
            contrast: the best of four rules of brightness, chosen on what is tested: a high bar.
            density: how many candidates are around. forest: learns radial means. classifier: one
            that has been trained already says what it says.
        task
            Of the comparison.
        classifier
            Name or path, as `cubeclf-classify` takes it.
        """
        if rule == AS_IT_IS:
            asked = (classifier, task.protocol, task.group)  # what is tested is the same then
            if asked not in self._said:
                self._said[asked] = self._ask(classifier, task)
            return self._said[asked]
        before = 0.0
        if rule == "forest":  # features of all labels are computed once; those learned from count
            before = self._radial[1] * len(task.learn)
        start = time.monotonic()
        scores = self._score(rule, task)
        return Answer(scores, 0, before + time.monotonic() - start, 0.0)

    def _ask(self, classifier: str, task: Task) -> Answer:
        cuboids = self._stock.labels.subset(task.test).cuboids
        loaded = load_classifier(classifier, exact=True)
        start = time.monotonic()
        scores = loaded.predict(cuboids)[:, CELL_CLASS]
        return Answer(scores, 0, 0.0, time.monotonic() - start)

    def _score(self, rule: Rule, task: Task) -> npt.NDArray[np.float64]:
        labels = self._stock.labels
        if rule == "density":
            return self._crowding[task.test]
        if rule == "forest":
            radial, known = self._radial[0], labels.labels[task.learn]
            return forest_scores(radial[task.learn], known, radial[task.test], task.seed)
        tested = labels.subset(task.test)
        signal = tested.cuboids[:, 0].numpy()
        return contrast(signal, tested.labels, self._stock.voxel_size_um)[1]

    @functools.cached_property
    def _radial(self) -> tuple[npt.NDArray[np.float32], float]:
        """Radial means of all labels, and how many seconds those of one took."""
        start, cuboids = time.monotonic(), self._stock.labels.cuboids
        found = radial_means(cuboids, self._stock.voxel_size_um)
        seconds = (time.monotonic() - start) / len(cuboids)
        return np.asarray(found.numpy(), np.float32), seconds

    @functools.cached_property
    def _crowding(self) -> npt.NDArray[np.float64]:
        return crowding(self._stock.labels)


def crowding(labels: Labelled) -> npt.NDArray[np.float64]:
    """Count the other labels around each, in its own volume; 0 where its place is not known."""
    found = np.zeros(len(labels))
    placed = np.isfinite(labels.positions_um).all(axis=1)
    volumes = np.array(labels.volumes)
    for volume in sorted(set(labels.volumes)):
        index = np.flatnonzero(placed & (volumes == volume))
        if len(index):
            found[index] = density(labels.positions_um[index], (1.0, 1.0, 1.0))
    return found
