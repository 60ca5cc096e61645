"""Make the weights that come with cubeclf, and write them into `checkpoints`.

Backbones are pretrained on simulated brains that differ from each other, and on the serial
two-photon crop of cellfinder's tests (BSD-3-Clause; in brainglobe/cellfinder, folders ch0 and ch1
of tests/data/integration/detection/crop_planes). Then a head that tells
cells from artefacts is trained on the labels of the simulated brains. All are written in half
precision, with a card each and a line in the index.

    python -m benchmarks.zoo --folder runs/zoo --crop serial2p_crop
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from cubeclf_core import zoo
from cubeclf_core.checkpoint import load_checkpoint, save_checkpoint
from cubeclf_core.config import SimulateConfig
from cubeclf_core.console import console, say
from cubeclf_core.content import content_hash
from cubeclf_core.downloads import sha256_of
from cubeclf_core.errors import CubeclfError, RunFailed
from cubeclf_core.files import remove, replacing
from finetune.comparing.pretraining import has_ended

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
BACKBONES: Mapping[str, str] = {"vit3d-nano-v1": "nano", "vit3d-tiny-v1": "tiny"}  # size of each
CLASSIFIER, ITS_BACKBONE = "cells-tiny-v1", "vit3d-tiny-v1"

# Factors of the usual brain, see `cubeclf-simulate --traits`; no two are alike.
TRAITS: Sequence[Mapping[str, float]] = (
    {},
    {"brightness": 0.5},
    {"brightness": 1.8, "noise": 1.5},
    {"blur": 1.8},
    {"artefacts": 2.0},
    {"stripes": 2.5, "noise": 1.5},
    {"blur": 0.7, "artefacts": 1.5},
    {"brightness": 0.7, "blur": 1.4, "stripes": 1.5},
)
LICENCE = "BSD-3-Clause"
TESTED = 2  # the last brains, which no head learns from
DATA: Mapping[zoo.Kind, str] = {
    "backbone": f"without labels: {len(TRAITS)} brains of cubeclf-simulate, and the serial "
    "two-photon crop of cellfinder's tests (BSD-3-Clause)",
    "classifier": f"labels of {len(TRAITS) - TESTED} brains of cubeclf-simulate, on {ITS_BACKBONE}",
}
_SHAPE = (96, 512, 512)
_FIRST_SEED = 1000  # other brains than those of tests and comparisons
_CROP_UM = (5.0, 2.0, 2.0)

PRETRAINING: Mapping[str, Any] = {
    "method": "simclr",
    "channels": 2,
    "steps": 900,
    "batch_size": 64,
    "memory_gb": 1.0,
    "seed": 0,
    "logger": ["none"],
}
HEAD: Mapping[str, Any] = {"freeze": True, "labels": 2000, "copies": 1, "seed": 0}


def main(argv: Sequence[str] | None = None) -> int:
    """Make them; give the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.zoo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag("--folder", type=Path, required=True, help="for brains and runs")
    flag("--crop", type=Path, required=True, help="folder of the crop, with ch0 and ch1")
    flag("--into", type=Path, default=CHECKPOINTS, help="folder of the weights and their index")
    flag("--only", choices=[*BACKBONES, CLASSIFIER], help="make that one alone")
    given = parser.parse_args(argv)
    folder = given.folder.resolve()
    command = f"python -m benchmarks.zoo --folder FOLDER --crop {given.crop.name}"
    try:
        write_brains(folder, given.crop.resolve())
        for name in BACKBONES:
            if given.only in (None, name):
                publish(pretrain(folder, name), "backbone", name, command, given.into)
        if given.only in (None, CLASSIFIER):
            run = train_head(folder, given.into)
            publish(run, "classifier", CLASSIFIER, command, given.into)
    except CubeclfError as error:
        console.print(f"error: {error}", markup=False)
        return error.exit_code
    return 0


def write_brains(folder: Path, crop: Path) -> None:
    """Simulate brains that are not there yet, and write brains files: unlabelled, learn, test."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        entries = list(pool.map(_simulate, [folder] * len(TRAITS), range(len(TRAITS))))
    real = {
        "name": "serial2p_crop",
        "signal": str(crop / "ch0"),
        "background": str(crop / "ch1"),
        "voxel_size_um": list(_CROP_UM),
    }
    files = {
        "unlabelled": [*entries, real],
        "learn": entries[:-TESTED],
        "test": entries[-TESTED:],
    }
    for name, listed in files.items():
        text = yaml.safe_dump(listed, sort_keys=False)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def _simulate(folder: Path, number: int) -> dict[str, str]:
    from cubeclf_core.simulate import simulate

    out, name = folder / f"simulated_{number}", f"simulated_{number}"
    if not (out / "cells.xml").exists():
        simulate(
            SimulateConfig(
                out=out,
                shape=_SHAPE,
                cells=300 + 100 * (number % 4),
                seed=_FIRST_SEED + number,
                overwrite=True,
                traits=dict(TRAITS[number]),
            )
        )
    return {
        "name": name,
        "signal": str(out / "brain.ome.zarr"),
        "cells": str(out / "cells.xml"),
    }


def pretrain(folder: Path, name: str) -> Path:
    """Run `cubeclf-pretrain`, or go on with it; give the folder of the run."""
    brains = [str(folder / "unlabelled.yaml")]
    settings = {**PRETRAINING, "size": BACKBONES[name], "brains": brains}
    return _run("pretrain", settings, folder / name)


def train_head(folder: Path, into: Path) -> Path:
    """Run `cubeclf-finetune` on the backbone in `into`, or go on with it; give its folder."""
    settings = {
        **HEAD,
        "backbone": str((into / f"{ITS_BACKBONE}.safetensors").resolve()),
        "brains": [str(folder / "learn.yaml")],
        "test": [str(folder / "test.yaml")],
    }
    return _run("finetune", settings, folder / CLASSIFIER)


def _run(command: str, settings: Mapping[str, Any], out: Path) -> Path:
    """Run a command, or go on with it; what is done with other settings or weights is done anew."""
    file = out.with_suffix(".yaml")
    text = yaml.safe_dump({**settings, "out": str(out), "resume": True})
    if "backbone" in settings:
        text = f"# on {content_hash(settings['backbone'])}\n{text}"
    if file.exists() and file.read_text(encoding="utf-8") != text:
        remove(out)
    classifier = out / "exported" / "classifier.safetensors"
    if has_ended(out) if command == "pretrain" else classifier.exists():
        say(f"{out} is there already")
        return out
    file.write_text(text, encoding="utf-8")
    code = f"from {command}.commands import {command}; {command}()"
    words = [sys.executable, "-c", code, "--config", str(file)]
    if subprocess.run(words, check=False).returncode:
        raise RunFailed(f"{shlex.join(words)} failed")
    return out


def publish(run: Path, kind: zoo.Kind, name: str, command: str, into: Path) -> None:
    """Write what a run exported in half precision, with its card, and enter it in the index.

    Parameters
    ----------
    run
        Folder of the run.
    kind
        What it exported.
    name
        For the index.
    command
        That makes it.
    into
        Folder of the index.
    """
    header, tensors = load_checkpoint(run, kind)
    header.provenance["command"] = command  # not where it was on this machine
    if kind == "classifier":
        header.training["backbone"]["backbone"] = ITS_BACKBONE
    halved = {
        key: tensor.half() if tensor.is_floating_point() else tensor
        for key, tensor in tensors.items()
    }
    file = into / f"{name}.safetensors"
    save_checkpoint(file, header, halved)
    card = _classifier_card(run, name) if kind == "classifier" else _backbone_card(run, name)
    (into / f"{name}.md").write_text(card.replace(_UNDECIDED[kind], f"{LICENCE}, as its data."))
    listed = {key: asdict(entry) for key, entry in _index(into).items()}
    listed[name] = asdict(
        zoo.Entry(
            kind=kind,
            file=file.name,
            sha256=sha256_of(file),
            licence=LICENCE,
            data=DATA[kind],
            command=command,
        )
    )
    with replacing(into / "index.yaml") as made:
        made.write_text(yaml.safe_dump(listed, sort_keys=True), encoding="utf-8")
    say(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


def _index(into: Path) -> dict[str, zoo.Entry]:
    file = into / "index.yaml"
    told = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {name: zoo.Entry(**entry) for name, entry in told.items()}


_NO_RESULT = r"This card holds no result on [^.]*\."
_BACKBONE_ON_REAL = (
    "What it is worth on real brains that it has not seen stands in docs/benchmarks.md, what the "
    "results above mean in docs/pretraining.md: measure on labelled cells of your own."
)
_ON_REAL = (
    "It has learned from simulated cells alone. What it reaches on real ones stands in "
    f'docs/comparisons/cfos_own.md, as "{CLASSIFIER}, as it is": '
    "measure on labelled cells of your own."
)

_UNDECIDED: Mapping[zoo.Kind, str] = {
    "backbone": "The owner of the data above decides on the licence of these weights.",
    "classifier": "The owner of the labelled data decides on the licence of these weights.",
}


def _backbone_card(run: Path, name: str) -> str:
    """Call the weights by their name, and leave out paths and pictures that do not come along."""
    card = (run / "exported" / "README.md").read_text(encoding="utf-8")
    card = card.replace(str(run.parent), "FOLDER").replace("backbone.safetensors", name)
    card = re.sub(_NO_RESULT, _BACKBONE_ON_REAL, card)
    return "\n".join(line for line in card.splitlines() if not line.startswith("![")) + "\n"


def _classifier_card(run: Path, name: str) -> str:
    """Describe it as its export would, with what it reached on brains it has no labels of."""
    from cubeclf_core.trained import load_trained
    from finetune.exporting.card import export_card

    classifier, header = load_trained(run)
    told = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["evaluation"]["brains"]
    results = {
        f"{brain}, no label of which it has seen": f"AUC {found['auc']:.3f}, average precision "
        f"{found['average_precision']:.3f} ({found['prevalence']:.3f} are cells)"
        for brain, found in told.items()
    }
    card = export_card(name, "bundle", header, classifier, results)
    card = card.replace("load_classifier\nclassifier", "load_classifier\n\nclassifier")
    card = card.replace(f"'{name}'", f'"{name}"')
    card = card[card.index("# ") :].replace("takes the folder", "takes the name")
    card = re.sub(_NO_RESULT, _ON_REAL, card)
    return re.sub(r"; `cubeclf-finetune --backbone` starts [^.]*", "", card)


if __name__ == "__main__":
    sys.exit(main())
