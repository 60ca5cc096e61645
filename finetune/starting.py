"""Names of networks that a classifier may start from, of all kinds."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cubeclf_core.backbones import load_backbone
from cubeclf_core.bundle import is_bundle, load_bundled_backbone
from cubeclf_core.errors import InputError
from cubeclf_core.heads import HeadConfig
from cubeclf_core.keras_weights import SUFFIXES, load_cellfinder
from cubeclf_core.networks import Backbone
from cubeclf_core.resnet import BLOCKS, ResNet3d, ResNet3dConfig
from cubeclf_core.trained import Classifier, fresh_classifier
from finetune.adapt import choose_trained
from finetune.config import FinetuneConfig

_RESNET = re.compile(r"resnet(\d+)$")


@dataclass(frozen=True)
class Start:
    """What a classifier starts from.

    Attributes
    ----------
    backbone
        In evaluation mode, on the CPU.
    origin
        What is known of where its weights come from.
    """

    backbone: Backbone
    origin: dict[str, Any]


def load_start(name: str, *, channels: int, seed: int) -> Start:
    """Get a network by name or from a file.

    Parameters
    ----------
    name
        As `cubeclf_core.backbones.load_backbone` takes it; ``resnet18`` … ``resnet152`` for
        cellfinder's network with random weights; a model of cellfinder's, ``.h5`` or ``.keras``; or
        a bundle, whose classifier's backbone is taken.
    channels
        Of a network that has none of its own yet.
    seed
        Of random weights.

    Raises
    ------
    CheckpointError
        If a file is none of these.
    InputError
        If the name is unknown.
    RunFailed
        If weights cannot be downloaded.
    """
    if match := _RESNET.match(name):
        depth = int(match[1])
        if depth not in BLOCKS:
            known = ", ".join(f"resnet{depth}" for depth in BLOCKS)
            raise InputError(f"no network {name!r}; expected one of {known}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = ResNet3d(ResNet3dConfig(depth=depth, channels=channels))
        return Start(network.eval(), {"backbone": name})
    if Path(name).suffix in SUFFIXES:
        network, _, _ = load_cellfinder(name)
        return Start(network.eval(), {"backbone": name})
    if is_bundle(Path(name)):
        return Start(*load_bundled_backbone(Path(name)))
    backbone, origin = load_backbone(name, channels=channels, seed=seed)
    return Start(backbone, origin)


def untrained_classifier(start: Start, config: FinetuneConfig) -> Classifier:
    """Put a fresh head on a backbone.

    Raises
    ------
    InputError
        If the backbone cannot be trained as the settings ask for.
    """
    _check_precision(start.backbone, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        classifier = fresh_classifier(
            start.backbone,
            HeadConfig(kind=config.head, classes=(*HeadConfig.classes, *config.classes)),
        )
    choose_trained(
        copy.deepcopy(classifier),
        freeze=config.frozen,
        last=config.unfreeze_last,
        rank=config.lora_rank,
        seed=config.seed,
    )
    return classifier


def _check_precision(backbone: Backbone, config: FinetuneConfig) -> None:
    """Refuse to train a residual network in bfloat16 on a CPU.

    With torch 2.15 and AVX512-BF16, gradients of the weights of padded kernels of 3³ were not right
    on two planes, or on one voxel of each: off by as much as they are, or infinite, another each
    time, and once a crash. A usual cuboid has two planes in the third stage. Patches of a vision
    transformer are not concerned: nothing is padded.
    """
    half = config.precision == "bf16-mixed" and not torch.cuda.is_available()
    if half and not config.frozen and isinstance(backbone, ResNet3d):
        raise InputError(
            "precision is bf16-mixed, in which a CPU gets gradients of a residual network's "
            "convolutions wrong; train it there with precision 32-true"
        )
