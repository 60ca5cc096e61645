"""How each objective is pretrained: settings of `cubeclf-pretrain`, after trials on 695 and 753.

All have one network, but for the projection, which masked autoencoding does not train: the bar is
the better of the untrained ones with and without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pretrain.presets import PRESETS

COMMON: Mapping[str, Any] = {
    **PRESETS["laptop"],
    "channels": 1,
    "memory_gb": 0.5,
    "logger": ("none",),
    "log_every": 50,
    "monitor_every": 100_000,  # at the start and the end: a look takes as long as some steps
    "checkpoint_every": 100_000,
}
"""Settings of all objectives."""

# Fewer prototypes than by default, as there are few kinds of objects, and no local views, with
# which a step takes longer than these two cores have time for.
_DISTILLATION: Mapping[str, Any] = {
    "prototypes": 512,
    "local_views": 0,
    "teacher_temperature": [0.04, 0.04],
    "momentum": 0.98,
}

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "simclr": {},
    "dino": {"steps": 110, "settings": _DISTILLATION},
    "dinov2": {"steps": 110, "settings": _DISTILLATION},
    "mae": {"steps": 450},
}
"""Objectives, and the settings that are their own.

With these steps the default form ends in half an hour on two cores, and none takes longer than the
default objective.
"""
