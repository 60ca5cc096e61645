"""Entry points of the commands around labels; nothing here imports torch."""

from __future__ import annotations

from typing import NoReturn

from cubeclf_core.cli import launch
from finetune.config import ClassifyConfig, ExportConfig, FinetuneConfig


def finetune() -> NoReturn:
    """Run `cubeclf-finetune`."""
    launch("cubeclf-finetune", FinetuneConfig, "finetune.run:finetune")


def export() -> NoReturn:
    """Run `cubeclf-export`."""
    launch("cubeclf-export", ExportConfig, "finetune.export:export")


def classify() -> NoReturn:
    """Run `cubeclf-classify`."""
    launch("cubeclf-classify", ClassifyConfig, "finetune.classify:classify")
