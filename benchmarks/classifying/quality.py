"""Average precision on the real c-Fos blocks of what is measured, and what speed costs of it.

Every classifier learns the same 100 labels of one half of a block and is tested on the other, as
it is stored where its speed is measured. cellfinder's ResNet-18 is trained from
scratch on the same labels, as `python -m benchmarks.finetuning` does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.classifying.classifiers import Backbones, exported, write_fitted
from benchmarks.learning.blocks import open_block, read_block
from benchmarks.learning.config import LABELLED
from benchmarks.learning.contenders import Blocks
from benchmarks.learning.grid import Grid, measured_cells
from benchmarks.learning.protocols import Task, make_tasks
from cubeclf_core.classifier import load_classifier
from cubeclf_core.console import say
from cubeclf_core.heads import CELL_CLASS
from cubeclf_core.metrics import classification_metrics

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
                with self._file.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(asdict(known[key])) + "\n")
            yield known[key]

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
        labels = block.labels[task.test]
        found = classification_metrics(labels, scores)["average_precision"]
        return Scored(size, form, task.block, pretrained, found, float(labels.mean()))

    def _read(self) -> Iterator[Scored]:
        if self._file.exists():
            for line in self._file.read_text(encoding="utf-8").splitlines():
                yield Scored(**json.loads(line))


def resnet_over_share(folder: Path) -> float:
    """Train cellfinder's ResNet-18 on the same tasks; its average precision less the share.

    Parameters
    ----------
    folder
        Where ``python -m benchmarks.finetuning`` keeps what it measured; minutes for a block, once.
    """
    grid = Grid(
        folder=folder,
        blocks=LABELLED,
        contenders=(RESNET,),
        own=(LABELS,),
        transfer=(),
        seeds=1,
        show=False,
        json=None,
        plot=Path("unused"),
    )
    cells = measured_cells(grid)
    return sum(cell.ap_less_prevalence for cell in cells) / len(cells)
