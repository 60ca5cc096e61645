"""Entry point of `cubeclf-pretrain`; nothing here imports torch."""

from __future__ import annotations

from typing import NoReturn

from cubeclf_core.cli import launch
from pretrain.config import PretrainConfig
from pretrain.presets import PRESETS


def pretrain() -> NoReturn:
    """Run `cubeclf-pretrain`."""
    launch("cubeclf-pretrain", PretrainConfig, "pretrain.run:pretrain", PRESETS)
