"""Settings of `cubeclf-finetune`, `-export` and `-classify`; nothing here imports torch."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from cubeclf_core.errors import InputError, require


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Train a cell/artefact classifier on a backbone with a few labels.

    Give labelled cuboids by --cubes, labelled brains by --brains, or both. OUT can be passed to
    `cubeclf-export` and `cubeclf-classify` as it is.

    Parameters
    ----------
    backbone
        Folder of a pretraining run, a .safetensors file, or scratch:vit-SIZE (nano, micro, tiny,
        small, base) for random weights.
    out
        Folder of the run.
    brains
        YAML brains file; its brains need cells, type 2 cell and anything else no cell.
    cubes
        cellfinder's training YAML; its paths are tried against its own folder, then this one.
    test
        YAML brains file of brains that are scored at the end and not used before.
    freeze
        Keep the backbone as it is and train the head alone: fast, and good with few labels.
    labels
        Use only so many labels, drawn at random but with cells and others in proportion.
    steps
        Of training the whole network, with --no-freeze.
    batch_size
        Cuboids a step, with --no-freeze; half of them cells.
    learning_rate
        Peak, with --no-freeze.
    channels
        Of a network from scratch: 1 signal, 2 signal and background.
    voxel_size_um
        Z Y X of brains whose files do not say.
    seed
        Of everything random.
    overwrite
        Replace OUT if it exists.
    """

    backbone: str
    out: Path
    brains: Path | None = None
    cubes: Path | None = None
    test: Path | None = None
    freeze: bool = True
    labels: int | None = None
    steps: int = 200
    batch_size: int = 32
    learning_rate: float = 1e-4
    channels: Literal[1, 2] = 2
    voxel_size_um: tuple[float, float, float] | None = None
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.brains and not self.cubes:
            raise InputError("no labels: give --brains FILE, --cubes FILE, or both")
        enough = self.labels is None or self.labels >= 2
        require(enough, "--labels", self.labels, "at least 2, one of each class")
        require(self.steps >= 1, "--steps", self.steps, "at least 1")
        require(self.batch_size >= 2, "--batch-size", self.batch_size, "at least 2")
        rate = self.learning_rate
        require(math.isfinite(rate) and rate > 0, "--learning-rate", rate, "a number above 0")
        require(self.seed >= 0, "--seed", self.seed, "0 or more")


@dataclass(frozen=True)
class ExportConfig:
    """Write the classifier of a fine-tuning run as one file for inference.

    The file is read back and its outputs compared with the trained network's before it is put in
    place.

    Parameters
    ----------
    run
        Folder of a fine-tuning run, or its classifier.safetensors.
    out
        File to write, such as classifier.pt2.
    format
        torch: a torch.export program (.pt2), which loads without cubeclf.
    overwrite
        Replace OUT if it exists.
    """

    run: Path
    _: KW_ONLY
    out: Path
    format: Literal["torch"] = "torch"
    overwrite: bool = False


@dataclass(frozen=True)
class ClassifyConfig:
    """Give every candidate of a brain its probability of being a cell.

    OUT gets points/cell_classification.xml and points/cells.xml, as brainmapper lays them out,
    candidates.csv in the order of the input, and a picture. Candidates at the border are padded
    and flagged, never dropped.

    Parameters
    ----------
    brain
        OME-Zarr or zarr array (also by URL), folder of TIFF planes, TIFF stack, or a brains file of
        one brain.
    classifier
        Exported file, or folder of a fine-tuning run.
    cells
        Candidates, a cells XML in voxels of the brain.
    out
        Folder to write.
    background
        Volume of the second channel, where BRAIN has one only.
    voxel_size_um
        Z Y X, if the brain does not say.
    threshold
        Probability from which on a candidate is a cell.
    overwrite
        Replace OUT if it exists.
    """

    brain: str
    _: KW_ONLY
    classifier: Path
    cells: Path
    out: Path
    background: str | None = None
    voxel_size_um: tuple[float, float, float] | None = None
    threshold: float = 0.5
    overwrite: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.threshold <= 1, "--threshold", self.threshold, "a probability")
