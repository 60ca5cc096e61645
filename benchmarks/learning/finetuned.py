"""Whole networks trained on the labels of a task, as `cubeclf-finetune --no-freeze` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.learning.contenders import Blocks
from benchmarks.learning.protocols import Task
from cubeclf_core.classifier import Classifier
from cubeclf_core.vit import Vit3d
from finetune.config import FinetuneConfig
from finetune.labels import Labelled, join
from finetune.training import finetune_network, fit_head, predict


@dataclass(frozen=True)
class Finetuned:
    """A backbone that goes on learning with its head.

    Attributes
    ----------
    blocks
        Whose labels they are.
    backbones
        Make a fresh copy of the backbone that has seen a key of `SEEN`.
    steps
        Of training.
    seed
        Of the training.
    """

    blocks: Blocks
    backbones: Mapping[str, Callable[[], Vit3d]]
    steps: int
    seed: int

    def __call__(self, task: Task) -> npt.NDArray[np.float64]:
        """Train on what the task gives to learn from, and score what it tests."""
        data = join([self._labelled(name, index) for name, index in task.learn.items()])
        classifier = Classifier(self.backbones[task.seen]())
        nowhere = Path("unused")  # labels are in memory
        config = FinetuneConfig(
            backbone="unused", out=nowhere, brains=nowhere, steps=self.steps, seed=self.seed
        )
        fit_head(classifier, data, self.seed)
        for _ in finetune_network(classifier, data, config):
            pass
        return predict(classifier, self._labelled(task.block, task.test).cuboids)

    def _labelled(self, name: str, index: npt.NDArray[np.int64]) -> Labelled:
        block = self.blocks[name]
        cuboids = block.cuboids[torch.from_numpy(index)]
        return Labelled(cuboids, block.labels[index], [name] * len(index))
