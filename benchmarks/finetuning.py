"""Measure what fine-tuning costs: whole commands of `cubeclf-finetune`, one way of training each.

A hundred labels of a simulated brain, signal and background, nothing held out. A frozen backbone's
head is fitted at once; what is trained takes ten steps an epoch, so it is run for one epoch and for
some more, and a training of the default length is worked out from the two. Takes minutes; nothing
else should run meanwhile.

    python -m benchmarks.finetuning --json finetuning.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from benchmarks.classifying.processes import Usage, measured, ours
from benchmarks.output import Figures, machine, working_folder, write_json
from benchmarks.page import finetuning_part
from cubeclf_core.axes import Shape3
from cubeclf_core.config import SimulateConfig
from cubeclf_core.console import console, say
from cubeclf_core.errors import CubeclfError
from finetune.config import FinetuneConfig

_FROZEN: tuple[str, ...] = ()
_ALL = ("--no-freeze",)
_RESNET = (*_ALL, "--batch-size", "16")  # cellfinder's, as in the comparisons
WAYS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "nano, frozen": ("scratch:vit-nano+projection", _FROZEN),
    "nano, trained": ("scratch:vit-nano+projection", _ALL),
    "tiny, frozen": ("vit3d-tiny-v1", _FROZEN),
    "tiny, LoRA": ("vit3d-tiny-v1", ("--lora-rank", "8")),
    "tiny, trained": ("vit3d-tiny-v1", _ALL),
    "ResNet-18, trained": ("resnet18", _RESNET),
    "ResNet-50, trained": ("resnet50", _RESNET),
}
LABELS, LONGER = 100, 6
_SHAPE: Shape3 = (96, 512, 512)
_CELLS = 400
PACKAGES = ("torch", "timm", "numpy", "cubeclf")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; give the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.finetuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="of training")
    flag("--json", type=Path, help="file to write all figures to")
    given = parser.parse_args(argv)
    try:
        with working_folder(None) as folder:
            figures = measure(folder, given.ways)
        if given.json:
            write_json(figures, given.json)
    except CubeclfError as error:
        console.print(f"error: {error}", markup=False)
        return error.exit_code
    print("\n\n".join(finetuning_part(figures)), flush=True)
    return 0


def measure(folder: Path, ways: Sequence[str]) -> Figures:
    """Measure some ways: ``WAY.seconds`` of a whole training, ``WAY.peak_gb`` of 10⁹ bytes."""
    from cubeclf_core.simulate import simulate  # late, so that --help answers at once

    made = folder / "brain"
    simulate(SimulateConfig(out=made, shape=_SHAPE, cells=_CELLS))
    files = {"signal": "brain/brain.ome.zarr", "cells": "brain/cells.xml"}
    brains = folder / "brains.yaml"
    brains.write_text(yaml.safe_dump([{"name": "simulated", **files}]), encoding="utf-8")
    figures = machine(PACKAGES)
    for way in ways:
        used = _once(folder, brains, way, 1)
        seconds, peak = used.seconds, used.peak_bytes
        if WAYS[way][1]:
            longer = _once(folder, brains, way, LONGER)
            an_epoch = (longer.seconds - used.seconds) / (LONGER - 1)
            seconds += an_epoch * (FinetuneConfig.epochs - 1)
            peak = max(peak, longer.peak_bytes)
        figures |= {f"{way}.seconds": seconds, f"{way}.peak_gb": peak / 1e9}
        say(f"{way}: {seconds:.0f} s, {peak / 1e9:.1f} GB")
    return figures


def _once(folder: Path, brains: Path, way: str, epochs: int) -> Usage:
    backbone, how = WAYS[way]
    words = ["--backbone", backbone, "--brains", brains, "--labels", LABELS, "--folds", 0, *how]
    out = folder / "run"
    command = ours("finetune", *words, "--epochs", epochs, "--out", out, "--overwrite")
    return measured(command, folder / "log")


if __name__ == "__main__":
    sys.exit(main())
