"""Average precision on the real c-Fos blocks of what is measured, and what speed costs of it.

Every classifier learns the same 100 labels of one half of a block and is tested on the other, as
it is stored where its speed is measured. cellfinder's ResNet-18 is trained from scratch on the same
labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.classifying.classifiers import Backbones, exported, write_fitted
from benchmarks.learning.blocks import open_block, read_block
from benchmarks.learning.config import LABELLED
from benchmarks.learning.contenders import Blocks
from benchmarks.learning.finetuned import Finetuned
from benchmarks.learning.protocols import Task, make_tasks
from cubeclf_core.classifier import load_classifier
from cubeclf_core.console import say
from cubeclf_core.heads import CELL_CLASS
from cubeclf_core.metrics import classification_metrics
from cubeclf_core.resnet import ResNet3d, ResNet3dConfig

LABELS = 100
RESNET = "resnet18"


@dataclass(frozen=True)
class Scored:
    """One classifier, in one format, on one block.

    Attributes
    ----------
    size, form, block
        Which.
    pretrained
        Whether its backbone is.
    average_precision
        On the other half of the block.
    share
        Of cells there, where average precision starts.
    """

    size: str
    form: str
    block: str
    pretrained: bool
    average_precision: float
    share: float


class Quality:
    """Classifiers of each size and block, and how good they are; what was measured is kept.

    Parameters
    ----------
    data
        Folder of the real data.
    folder
        Of classifiers and results.
    backbones
        To fit heads on.
    """

    def __init__(self, data: Path, folder: Path, backbones: Backbones) -> None:
        self._folder, self._backbones = folder, backbones
        network = backbones.config("nano")
        brains = {name: open_block(data, name, folder) for name in LABELLED}
        self.brains_files = {name: folder / f"{name}_labelled.yaml" for name in LABELLED}
        self._blocks: Blocks = {n: read_block(b, network, None) for n, b in brains.items()}
        self._file = folder / "quality.jsonl"

    def files(self, size: str) -> Mapping[str, Path]:
        """Fitted classifier of a size for each block."""
        return {task.block: self._fitted(size, task) for task in self._tasks()}

    def score(self, size: str, form: str) -> Iterator[Scored]:
        """Score a size in a format on every block, or say what was found the last time."""
        pretrained = self._backbones.has(size)
        known = {(s.size, s.form, s.block, s.pretrained): s for s in self._read()}
        for task in self._tasks():
            key = (size, form, task.block, pretrained)
            if key not in known:
                known[key] = self._score(size, form, task, pretrained)
                self._keep(known[key])
            yield known[key]

    def resnet18(self) -> float:
        """Train cellfinder's ResNet-18 on the same tasks, minutes each, once.

        Returns
        -------
        float
            Average precision less the share of cells, a mean over blocks.
        """
        known = {s.block: s for s in self._read() if s.size == RESNET}
        for task in self._tasks():
            if task.block in known:
                continue
            say(f"training {RESNET}, block {task.block}")
            resnet = Finetuned(
                self._blocks,
                {task.seen: _random_resnet},
                0,
                # A step takes as long on two cores as ten of a nano network.
                {"epochs": 10, "batch_size": 16},
                pretrained=False,
            )
            reached = self._rank(task, resnet(task))
            self._keep(Scored(RESNET, "exact", task.block, False, *reached))
        found = [s for s in self._read() if s.size == RESNET]
        return sum(s.average_precision - s.share for s in found) / len(found)

    def _tasks(self) -> Iterator[Task]:
        for task in make_tasks(self._blocks, labels=LABELS, draws=1):
            if task.protocol == "own":
                yield task

    def _fitted(self, size: str, task: Task) -> Path:
        kind = "pretrained" if self._backbones.has(size) else "random"
        file = self._folder / f"{size}-{kind}-{task.block}.safetensors"
        return write_fitted(file, self._backbones.make(size, task.seen), task, self._blocks)

    def _score(self, size: str, form: str, task: Task, pretrained: bool) -> Scored:
        say(f"average precision: {size}, {form}, block {task.block}")
        file = exported(self._fitted(size, task), form, self.brains_files)
        classifier = load_classifier(file, exact=form == "exact")
        block = self._blocks[task.block]
        scores = classifier.predict(block.cuboids[task.test])[:, CELL_CLASS]
        return Scored(size, form, task.block, pretrained, *self._rank(task, scores))

    def _rank(self, task: Task, scores: npt.NDArray[np.float64]) -> tuple[float, float]:
        """Average precision of scores in a task, and the share of cells there."""
        labels = self._blocks[task.block].labels[task.test]
        found = classification_metrics(labels, scores)["average_precision"]
        return found, float(labels.mean())

    def _keep(self, scored: Scored) -> None:
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(scored)) + "\n")

    def _read(self) -> Iterator[Scored]:
        if self._file.exists():
            for line in self._file.read_text(encoding="utf-8").splitlines():
                yield Scored(**json.loads(line))


def _random_resnet() -> ResNet3d:
    torch.manual_seed(0)
    return ResNet3d(ResNet3dConfig(depth=18, channels=1))
