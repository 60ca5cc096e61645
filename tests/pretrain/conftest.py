"""Objectives and cuboids small enough for hundreds of steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cubeclf_core.backbones import build_backbone
from cubeclf_core.config import AugmentConfig
from cubeclf_core.vit import Vit3dConfig
from pretrain.objective import Objective
from pretrain.objectives import load_objective, make_settings

SMALL_VIEWS = {
    "prototypes": 64,
    "local_views": 2,
    "local_patches": (1, 1, 1),
    "canvas_margin": (2, 4, 4),
}


def make_objective(
    name: str,
    *,
    shape: tuple[int, int, int] = (8, 20, 20),
    channels: int = 2,
    network: dict[str, Any] | None = None,
    augment: AugmentConfig | None = None,
    **settings: Any,
) -> Objective:
    """An objective on a grid of 2 × 2 × 2 patches, the same at every call."""
    kind = load_objective(name)
    values = SMALL_VIEWS | settings if name.startswith("dino") else settings
    made_settings = make_settings(kind, values)
    projection = 16 if kind.projects(made_settings) else 0
    config = Vit3dConfig(
        size="nano",
        channels=channels,
        cuboid_shape=shape,
        **{"projection": projection, **(network or {})},
    )
    torch.manual_seed(1)
    backbone = build_backbone(config, seed=0)
    made: Objective = kind(backbone, made_settings, augment or AugmentConfig())
    return made


def make_counts(
    n: int, shape: tuple[int, int, int], channels: int = 2, seed: int = 0
) -> torch.Tensor:
    """Photon counts around rates that differ from voxel to voxel."""
    random = torch.Generator().manual_seed(seed)
    rate = 200 + 100 * torch.rand(n, channels, *shape, generator=random)
    return torch.poisson(rate, generator=random)


@pytest.fixture(scope="session")
def objective():
    return make_objective


@pytest.fixture(scope="session")
def counts():
    return make_counts
