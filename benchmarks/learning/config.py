"""What ``python -m benchmarks.pretraining`` can be told, and how much of it there is to measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.learning.recipes import RECIPES
from cubeclf_core.axes import Shape3, Size3
from pretrain.config import Size

LABELLED = ("695", "753", "969")


@dataclass(frozen=True)
class LearningConfig:
    """What the user said; see ``python -m benchmarks.pretraining --help``."""

    blocks: tuple[str, ...] = LABELLED
    methods: tuple[str, ...] = tuple(RECIPES)
    full: bool = False
    quick: bool = False
    reuse: bool = False
    check: bool = False
    json: Path | None = None
    plot: Path | None = None
    folder: Path | None = None
    seeds: int | None = None
    steps_scale: float | None = None
    patch_um: Size3 | None = None


@dataclass(frozen=True)
class SpeedEffort:
    """How much to measure of a training step.

    Attributes
    ----------
    size
        Of the network.
    batch_size
        Cuboids a step.
    rounds
        In each of which every kind of step is measured; figures are medians over them.
    steps
        In a round, of those that `step_share` is of; a third as many of others.
    shape
        Of the volume that is streamed, z y x.
    """

    size: Size = "tiny"
    batch_size: int = 32
    rounds: int = 20
    steps: int = 6
    shape: Shape3 = (128, 512, 512)


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes
    ----------
    seeds
        Pretrainings of an objective, with different seeds.
    steps_scale
        Times the steps that the recipes say.
    overrides
        Settings of pretraining that win over the recipes.
    untrained_seeds
        Of the networks that are not trained, and of the forests.
    labels
        To learn from in a brain of one's own.
    draws
        Of these labels; figures are means over them.
    candidates
        Of each block at most; all if None.
    copies
        Of each cuboid, from which heads learn: itself, and turned and flipped ones.
    unlabelled
        Cuboids from which principal components are found.
    finetune_draws
        The first of `draws`, on which whole networks are trained.
    finetune_epochs
        Of training a whole network; of 100 labels, ten steps each.
    finetune_batch
        Cuboids a step of it.
    speed
        Of a training step.
    """

    seeds: int = 1
    steps_scale: float = 1.0
    overrides: Mapping[str, Any] = field(default_factory=dict)
    untrained_seeds: int = 3
    labels: int = 100
    draws: int = 5
    candidates: int | None = None
    copies: int = 1
    unlabelled: int = 1000
    finetune_draws: int = 1
    finetune_epochs: int = 4
    finetune_batch: int = 32
    speed: SpeedEffort = SpeedEffort()


DEFAULT = Effort()
FULL = Effort(seeds=3, steps_scale=4.0, copies=4, finetune_draws=5, finetune_epochs=20)
QUICK = Effort(
    steps_scale=0.0,  # one step is taken
    overrides={"size": "nano", "batch_size": 4, "memory_gb": 0.25},
    untrained_seeds=2,
    labels=40,
    draws=2,
    candidates=200,
    unlabelled=64,
    finetune_epochs=1,
    finetune_batch=2,
    speed=SpeedEffort("nano", batch_size=4, rounds=2, steps=2, shape=(64, 128, 128)),
)
