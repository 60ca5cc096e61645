"""Networks that learn the labels of a task as `cubeclf-finetune` has them, frozen or trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.learning.contenders import Blocks
from benchmarks.learning.protocols import Task
from cubeclf_core.console import say
from cubeclf_core.engine import make_fabric
from cubeclf_core.heads import CELL_CLASS
from cubeclf_core.network_configs import one_vector
from cubeclf_core.networks import Backbone
from cubeclf_core.trained import fresh_classifier
from finetune.config import FinetuneConfig
from finetune.examples import Features, in_parts, keep_features
from finetune.labels import Labelled, join
from finetune.trials import Trials

Makers = Mapping[str, Callable[[], Backbone]]
"""Make a fresh copy of the backbone that has seen a key of `SEEN`."""
Known = Mapping[str, Features]
"""What a frozen backbone says of all candidates and of copies of them, by block."""


@dataclass(frozen=True)
class Finetuned:
    """A backbone with a linear head that is fitted, or trained with it, or one after the other.

    Attributes
    ----------
    blocks
        Whose labels they are.
    backbones
        See `Makers`.
    seed
        Of everything random.
    settings
        Of `cubeclf-finetune`.
    pretrained
        Whether it has learned something already: its early layers are trained more slowly then, and
        its head is fitted first, whatever is trained.
    known
        What the backbone says, by key of `SEEN`, if it is frozen; None if it goes on learning.
    """

    blocks: Blocks
    backbones: Makers
    seed: int
    settings: Mapping[str, Any]
    pretrained: bool = True
    known: Mapping[str, Known] | None = None

    def __call__(self, task: Task) -> npt.NDArray[np.float64]:
        """Train on what the task gives to learn from, and score what it tests."""
        data = join([self._labelled(name, index) for name, index in task.learn.items()])
        known = None
        if self.known is not None:
            said = self.known[task.seen]
            parts = [said[name].copies[:, index] for name, index in task.learn.items()]
            known = Features(torch.cat(parts, dim=1))
        nowhere = Path("unused")  # labels are in memory
        config = FinetuneConfig(
            backbone="unused" if self.pretrained else "scratch:unused",
            out=nowhere,
            brains=(nowhere,),
            seed=self.seed,
            freeze=self.known is not None,
            for_others=task.protocol == "transfer",
            **self.settings,
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
            known=known,
        )
        classifier = trials.run(resume=False).classifier
        everything = torch.from_numpy(task.test)
        if self.known is not None:
            logits = in_parts(classifier.head, self.known[task.seen][task.block].plain, everything)
        else:
            cuboids = self.blocks[task.block].cuboids
            logits = in_parts(classifier, lambda i: cuboids[i], everything)
        return np.asarray(logits.double().softmax(1)[:, CELL_CLASS].numpy(), np.float64)

    def _labelled(self, name: str, index: npt.NDArray[np.int64]) -> Labelled:
        block = self.blocks[name]
        cuboids = block.cuboids[torch.from_numpy(index)]
        return Labelled.unplaced(cuboids, block.labels[index], name)


def embed_blocks(backbone: Backbone, blocks: Blocks, copies: int) -> Known:
    """Ask a frozen backbone about all candidates, on a GPU if there is one."""
    classifier = fresh_classifier(backbone)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        name: keep_features(classifier, block.cuboids, copies=copies, device=device)
        for name, block in blocks.items()
    }


def vectors(known: Known, backbone: Backbone) -> Mapping[str, Float[Tensor, "n feature"]]:
    """Of each candidate as it is, by block: the projection, or the features that have none."""
    return {name: one_vector(said.copies[0], backbone.config) for name, said in known.items()}
