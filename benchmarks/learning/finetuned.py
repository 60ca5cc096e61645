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
from cubeclf_core.console import say
from cubeclf_core.engine import make_fabric
from cubeclf_core.heads import CELL_CLASS
from cubeclf_core.networks import Backbone
from cubeclf_core.trained import fresh_classifier
from finetune.config import FinetuneConfig
from finetune.examples import in_parts
from finetune.labels import Labelled, join
from finetune.trials import Trials


@dataclass(frozen=True)
class Finetuned:
    """A backbone that goes on learning with its head.

    Attributes
    ----------
    blocks
        Whose labels they are.
    backbones
        Make a fresh copy of the backbone that has seen a key of `SEEN`.
    epochs
        Of training, ten steps at least each.
    seed
        Of the training.
    pretrained
        Whether early layers have learned something already, and are trained more slowly.
    batch_size
        Cuboids a step.
    """

    blocks: Blocks
    backbones: Mapping[str, Callable[[], Backbone]]
    epochs: int
    seed: int
    pretrained: bool = True
    batch_size: int = 32

    def __call__(self, task: Task) -> npt.NDArray[np.float64]:
        """Train on what the task gives to learn from, and score what it tests."""
        data = join([self._labelled(name, index) for name, index in task.learn.items()])
        nowhere = Path("unused")  # labels are in memory
        config = FinetuneConfig(
            backbone="unused" if self.pretrained else "scratch:unused",
            out=nowhere,
            brains=(nowhere,),
            freeze=False,
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=self.seed,
        )
        trials = Trials(
            config=config,
            base=fresh_classifier(self.backbones[task.seen]()),
            data=data,
            splits=(),
            fabric=make_fabric("32-true"),
            log=lambda told: None,
            trim=lambda step: None,
            tell=say,
            checkpoint=None,
        )
        classifier = trials.run(resume=False).classifier
        tested = self._labelled(task.block, task.test).cuboids
        logits = in_parts(classifier, lambda i: tested[i], torch.arange(len(tested)))
        return np.asarray(logits.double().softmax(1)[:, CELL_CLASS].numpy(), np.float64)

    def _labelled(self, name: str, index: npt.NDArray[np.int64]) -> Labelled:
        block = self.blocks[name]
        cuboids = block.cuboids[torch.from_numpy(index)]
        return Labelled.unplaced(cuboids, block.labels[index], name)
