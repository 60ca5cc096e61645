"""The commands of this package, as the shell starts them."""

from __future__ import annotations

from typing import NoReturn

from cubeclf_core.cli import launch
from cubeclf_core.config import ConvertConfig, SimulateConfig


def simulate() -> NoReturn:
    """Run ``cubeclf-simulate``."""
    launch("cubeclf-simulate", SimulateConfig, "cubeclf_core.simulate:simulate")


def convert() -> NoReturn:
    """Run ``cubeclf-convert``."""
    launch("cubeclf-convert", ConvertConfig, "cubeclf_core.convert:convert")
