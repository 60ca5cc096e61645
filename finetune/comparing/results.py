"""What a comparison finds: of each cell a row and scores, in a file; of each contender the cost.

Nothing here imports torch: tables and pictures are made of this alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cubeclf_core.errors import TrainingDiverged
from cubeclf_core.files import replacing


@dataclass(frozen=True)
class Row:
    """One line of the long table.

    Attributes
    ----------
    contender, protocol, budget, group, seed
        Which cell; a budget of 0 is all labels.
    labels, cells
        That were learned from, and how many of these are cells.
    tested, prevalence
        How many were tested, and the share of cells in them.
    auc, average_precision, average_precision_less_prevalence
        Of the scores.
    backbone
        Name or path, of a classifier too, of a run of this comparison from its folder on; empty for
        what has neither.
    seen
        Whether it has learned from the tested group's voxels before, without labels, or with them
        where it is a classifier: yes, no or unknown.
    device
        Kind of the device that it was computed on, which times and memory depend on.
    rate, rate_by
        Factor of the usual learning rate, and by what it was chosen.
    epochs
        Of training.
    train_seconds, test_seconds
        What took how long, in one process; see `finetune.comparing.tasks.Answer`.
    memory_gb
        The most that its process has held meanwhile; NaN where the system does not tell.
    """

    contender: str
    protocol: str
    budget: int
    group: str
    seed: int
    labels: int
    cells: int
    tested: int
    prevalence: float
    auc: float
    average_precision: float
    average_precision_less_prevalence: float
    backbone: str
    seen: str
    device: str
    rate: float
    rate_by: str
    epochs: int
    train_seconds: float
    test_seconds: float
    memory_gb: float


@dataclass(frozen=True)
class Cost:
    """Of one cuboid, in inference, in float32.

    Attributes
    ----------
    parameters
        Of backbone and head.
    gflop
        10⁹ floating-point operations forward: a multiplication and an addition are two.
    ms
        Milliseconds a cuboid in batches of 32 on `device` with `threads`, one as in training.
    device, threads
        Where that was measured.
    copies
        Of each label that a frozen backbone is asked about before its head is fitted; 0 of others.
    """

    parameters: int
    gflop: float
    ms: float
    device: str
    threads: int
    copies: int = 0

    def seconds_to_train(self, labels: int, seconds: float) -> float:
        """Seconds from labels to a classifier.

        A comparison asks a frozen backbone once for all cells, which counts in none of them. Who
        has so many labels asks it about these.

        Parameters
        ----------
        labels
            How many.
        seconds
            Of training, without that.
        """
        return seconds + labels * self.copies * self.ms / 1000

    @property
    def kind(self) -> str:
        """Kind of the device, as `cubeclf_core.engine.DEVICE_KINDS` has it: cards have names."""
        return self.device if self.device in ("cpu", "mps") else "cuda"


def write_cell(file: Path, row: dict[str, Any], scores: npt.NDArray[Any]) -> None:
    """Keep a cell: its row, without what names may change, and the score of each candidate."""
    with replacing(file) as made, made.open("wb") as opened:
        np.savez(opened, scores=scores, row=np.array(json.dumps(row)))


def read_cell(file: Path) -> tuple[dict[str, Any], npt.NDArray[Any]]:
    """Read what `write_cell` wrote."""
    with np.load(file) as opened:
        return json.loads(str(opened["row"])), opened["scores"]


def write_divergence(file: Path, error: TrainingDiverged) -> None:
    """Leave what is told of a training that diverged beside where its result would be."""
    with replacing(_divergence(file)) as made:
        made.write_text(str(error), encoding="utf-8")


def read_divergence(file: Path) -> str:
    """What `write_divergence` left there; empty if it has not."""
    told = _divergence(file)
    return told.read_text(encoding="utf-8") if told.exists() else ""


def _divergence(file: Path) -> Path:
    return file.with_suffix(".diverged.txt")
