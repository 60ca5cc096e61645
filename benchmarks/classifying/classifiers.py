"""Classifiers to measure: frozen networks of each size with heads, and what is exported."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.classifying.config import DEFAULT_SIZE
from benchmarks.classifying.processes import measured, ours
from benchmarks.learning.blocks import VOXEL_SIZE_UM
from benchmarks.learning.config import DEFAULT
from benchmarks.learning.contenders import Blocks
from benchmarks.learning.protocols import Task, brains_to_learn, labels_to_learn
from benchmarks.learning.trainings import network_of, settings_of
from cubeclf_core.backbones import build_backbone, load_backbone
from cubeclf_core.network_configs import n_projected
from cubeclf_core.trained import fresh_classifier, save_classifier
from cubeclf_core.vit import Vit3d, Vit3dConfig
from finetune.examples import keep_features
from finetune.training import fit_head

METHOD = "simclr"
_COPIES = 4
_EXPORTS = {
    "torch": ("torch", ".pt2", None),
    "onnx": ("onnx", ".onnx", "onnxruntime"),
    "int8": ("onnx", ".int8.onnx", "onnxruntime"),
    "keras": ("keras", ".keras", "keras"),
}
"""What `cubeclf-export --format` is given, the suffix, and the package that reads it."""


class Backbones:
    """Networks of each size: pretrained where the folder has it, else with random weights.

    Parameters
    ----------
    folder
        Of ``python -m benchmarks.pretraining``, with or without its runs.
    """

    def __init__(self, folder: Path) -> None:
        self._runs = folder / "runs"
        self.pretrained = all(self._run(seen).exists() for seen in "AB")

    def config(self, size: str, channels: int = 1) -> Vit3dConfig:
        """Give the network of a size: the pretrained one's, or as that would be."""
        if self.pretrained:
            config = load_backbone(str(self._run("A")))[0].config
        else:
            config = network_of(settings_of(METHOD, DEFAULT))
        return dataclasses.replace(config, size=size, channels=channels)

    def make(self, size: str, seen: str = "A", channels: int = 1) -> Vit3d:
        """Make a network; `seen` is what a pretrained one has seen, a key of `SEEN`."""
        if self.has(size) and channels == 1:
            return load_backbone(str(self._run(seen)))[0]
        return build_backbone(self.config(size, channels), 0)

    def has(self, size: str) -> bool:
        """Whether there is a pretrained network of a size."""
        return self.pretrained and size == DEFAULT_SIZE

    def _run(self, seen: str) -> Path:
        return self._runs / f"{METHOD}-{seen}-0"


def write_random(file: Path, backbone: Vit3d) -> Path:
    """Write a classifier whose head has learned nothing: as fast as any."""
    if not file.exists():
        torch.manual_seed(0)
        save_classifier(file, fresh_classifier(backbone), {})
    return file


def write_fitted(file: Path, backbone: Vit3d, task: Task, blocks: Blocks) -> Path:
    """Fit a head to a task's labels, as `cubeclf-finetune` does, and write the classifier."""
    if not file.exists():
        classifier = fresh_classifier(backbone)
        index = {name: torch.from_numpy(rows) for name, rows in task.learn.items()}
        cuboids = torch.cat([blocks[name].cuboids[rows] for name, rows in index.items()])
        kept = keep_features(classifier, cuboids, copies=_COPIES)
        labels = labels_to_learn(task, blocks)
        brains = brains_to_learn(task)
        n = n_projected(classifier.backbone.config)
        fit_head(classifier.head, kept, labels, brains, task.draw, n_projected=n)
        save_classifier(file, classifier, {"block": task.block, "labels": len(labels)})
    return file


def can_read(form: str) -> bool:
    """Whether what reads a format is installed."""
    package = _EXPORTS[form][2] if form in _EXPORTS else None
    return package is None or find_spec(package) is not None


def exported(file: Path, form: str, brains: Mapping[str, Path]) -> Path:
    """Give the file to load for one of `FORMATS`, exported if it has not been.

    Parameters
    ----------
    file
        A classifier's safetensors.
    form
        Of `FORMATS`.
    brains
        Brains file of each block; int8 is measured on the first.
    """
    if form not in _EXPORTS:
        return file
    given, suffix, _ = _EXPORTS[form]
    out = file.with_suffix(suffix)
    if not out.exists():
        words: list[object] = [file, "--format", given, "--out", out]
        if form == "int8":
            size = VOXEL_SIZE_UM
            words += ["--int8", "--brains", next(iter(brains.values())), "--voxel-size-um", *size]
        measured(ours("export", *words), out.with_name(out.name + ".log"))
    return out
