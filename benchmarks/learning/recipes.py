"""How each objective is pretrained: settings of `cubeclf-pretrain`, after trials on 695 and 753.

All have one network, so that one untrained network is the bar for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cubeclf_core.config import AugmentConfig

COMMON: Mapping[str, Any] = {
    "size": "nano",
    "channels": 1,
    "batch_size": 32,
    "candidate_share": 1.0,
    "jitter_um": 4.0,
    # Contrast tells cells from artefacts: the scale is hardly bent, and noise is mild.
    "augment": AugmentConfig(warp=0.0, gamma=0.05, noise=0.1, surroundings=0.8),
    "memory_gb": 0.5,
    "logger": ("none",),
    "log_every": 50,
    "monitor_every": 100_000,  # at the start and the end: a look takes as long as some steps
    "checkpoint_every": 100_000,
}
"""Settings of all objectives."""

_DISTILLATION: Mapping[str, Any] = {
    "features": "pooled",
    "prototypes": 512,
    "local_views": 0,
    "canvas_margin": [1, 4, 4],
    "teacher_temperature": [0.04, 0.04],
    "momentum": 0.98,
}

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "dino": {"steps": 450, "learning_rate": 1e-3, "settings": _DISTILLATION},
    "dinov2": {"steps": 400, "learning_rate": 1e-3, "settings": _DISTILLATION},
    "mae": {"steps": 2000, "learning_rate": 1e-3},
}
"""Objectives, and the settings that are their own; steps are to take about as long for each."""
