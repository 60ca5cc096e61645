"""How each objective is pretrained: settings of `cubeclf-pretrain`, chosen on blocks 695 and 753.

All have one network, so that one untrained network is the bar for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COMMON: Mapping[str, Any] = {
    "size": "nano",
    "channels": 1,
    "batch_size": 32,
    "candidate_share": 1.0,
    "memory_gb": 0.5,
    "logger": ("none",),
    "log_every": 50,
    "monitor_every": 100_000,  # at the start and the end: a look takes as long as some steps
    "checkpoint_every": 100_000,
}
"""Settings of all objectives."""

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "dino": {"steps": 360, "learning_rate": 1e-3},
    "dinov2": {"steps": 330, "learning_rate": 1e-3},
    "mae": {"steps": 2000, "learning_rate": 1e-3},
}
"""Objectives, and the settings that are their own; steps for some seven minutes on a core."""
