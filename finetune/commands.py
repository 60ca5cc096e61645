"""Entry points of the commands around labels; nothing here imports torch."""

from __future__ import annotations

from typing import NoReturn

from cubeclf_core.cli import launch
from finetune.config import (
    ClassifyConfig,
    CompareConfig,
    ExportConfig,
    FinetuneConfig,
    SuggestConfig,
)


def finetune() -> NoReturn:
    """Run `cubeclf-finetune`."""
    launch("cubeclf-finetune", FinetuneConfig, "finetune.run:finetune")


def suggest() -> NoReturn:
    """Run `cubeclf-suggest`."""
    launch("cubeclf-suggest", SuggestConfig, "finetune.suggest:suggest")


def export() -> NoReturn:
    """Run `cubeclf-export`."""
    launch("cubeclf-export", ExportConfig, "finetune.exporting.run:export")


def classify() -> NoReturn:
    """Run `cubeclf-classify`."""
    launch("cubeclf-classify", ClassifyConfig, "finetune.classifying.run:classify")


def compare() -> NoReturn:
    """Run `cubeclf-compare`."""
    launch("cubeclf-compare", CompareConfig, "finetune.comparing.run:compare")
