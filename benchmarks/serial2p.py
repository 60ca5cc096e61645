r"""Repeat the published protocol of cellfinder's serial two-photon cubes, with any backbone.

The set (https://gin.g-node.org/cellfinder/training_data) holds folders of cubes, `cells` and
`non_cells` side by side. A tenth of all cubes, drawn at random, is held out, as in the published
figure: 3.58 % of what is no cell is called one where 99 % of the cells are found (ResNet-50, two
channels). Cubes of one brain lie on both sides of that split, so it says little of a new brain;
--by-folder holds out whole folders instead.

    python -m benchmarks.serial2p --archive URL --sha256 HEX --folder F \
        --backbones resnet50 vit3d-tiny-v1

Random weights are trained, for all epochs, and others are frozen, unless --train says otherwise.
All cubes to learn from are in memory, 0.4 MB each with two channels. Of an archive whose checksum
is not known, the first download's is kept, and another one is refused.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import yaml

from cubeclf_core.console import console, say
from cubeclf_core.content import content_hash
from cubeclf_core.downloads import download, sha256_of
from cubeclf_core.errors import CubeclfError, InputError, RunFailed
from cubeclf_core.files import remove, replacing
from finetune.config import is_random

PUBLISHED = {"recall": 0.99, "false_positive_rate": 0.0358}
HELD_OUT = 0.1
_KINDS = {"cells": "cell", "non_cells": "no_cell"}
_CHANNEL = re.compile(r"Ch\d+\.tiff?$", re.IGNORECASE)
_AT_A_TIME = 512  # cubes in memory
_RUN = "from finetune.commands import finetune; finetune()"  # as cubeclf-finetune does


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; give the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serial2p",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag("--archive", required=True, help="zip or tar of the set, a URL or a file")
    flag("--sha256", help="of the archive, in hexadecimal")
    flag("--folder", type=Path, required=True, help="for cubes, runs and results")
    flag("--backbones", nargs="+", required=True, help="as cubeclf-finetune takes them")
    flag("--train", default="{}", help="settings of cubeclf-finetune for all backbones, YAML")
    flag("--by-folder", action="store_true", help="hold out whole folders")
    flag("--seed", type=int, default=0, help="of the split and of all trainings")
    given = parser.parse_args(argv)
    try:
        folder = given.folder.resolve()
        train = {name: settings_of(name, given.train) for name in given.backbones}
        archive, sha256 = fetch(given.archive, given.sha256, folder)
        cubes = unpack(archive, folder / f"cubes_{sha256[:16]}")
        split = write_split(cubes, by_folder=given.by_folder, seed=given.seed)
        found = {name: score(name, train[name], split, given.seed) for name in given.backbones}
        with replacing(split / "results.json") as made:
            told = {"published": PUBLISHED, "found": found}
            made.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    except CubeclfError as error:
        console.print(f"error: {error}", markup=False)
        return error.exit_code
    for name, figures in found.items():
        rate = figures["false_positive_rate_at_recall_0.99"]
        print(f"{name}: false-positive rate at recall 0.99 {rate:.2%} (published 3.58 %)")
    return 0


def settings_of(backbone: str, text: str) -> dict[str, Any]:
    """Read settings of a training; frozen random weights would be no fair baseline."""
    usual = {"freeze": False, "folds": 0} if is_random(backbone) else {}
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--train is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise InputError(f"--train is {given}, expected settings such as {{freeze: false}}")
    return usual | given


def fetch(archive: str, sha256: str | None, folder: Path) -> tuple[Path, str]:
    """Download the archive unless it is there; check what it is.

    Parameters
    ----------
    archive
        URL or file.
    sha256
        If it is known; else what the first download had is expected of every later one.
    folder
        To keep it in.

    Returns
    -------
    file, sha256
        Where it is, and what it is.
    """
    to = folder / Path(urlsplit(archive).path).name
    note = to.with_name(f"{to.name}.sha256")
    expected = sha256 or (note.read_text().strip() if note.exists() else None)
    if not to.exists():
        download(archive, to, expected)
    found = sha256_of(to)
    if expected is not None and expected.lower() != found:
        raise InputError(
            f"{to} has the SHA-256 {found}, expected {expected}; delete it to load anew"
        )
    note.write_text(found + "\n")
    return to, found


def unpack(archive: Path, to: Path) -> Path:
    """Unpack the archive unless it has been; nothing is written outside of `to`."""
    if to.exists():
        return to
    with replacing(to) as made:
        made.mkdir()
        try:
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as opened:
                    opened.extractall(made)
            else:
                with tarfile.open(archive) as opened:
                    opened.extractall(made, filter="data")
        except tarfile.ReadError as error:
            raise InputError(f"{archive} is no zip or tar archive: {error}") from error
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, RuntimeError) as error:
            raise InputError(f"{archive} cannot be unpacked: {error}") from error
        except OSError as error:
            raise RunFailed(f"{archive} cannot be unpacked: {error}") from error
    return to


def write_split(cubes: Path, *, by_folder: bool, seed: int) -> Path:
    """Sort cubes into those to learn from and those to test on; by links, nothing is copied.

    What is there already stays, with the runs in it: the same cubes and seed give the same split.

    Returns
    -------
    Path
        A folder with ``train.yaml`` and ``test.yaml``, as cellfinder's training YAML.
    """
    pairs = sorted(
        path.parent for path in cubes.rglob("cells") if (path.parent / "non_cells").is_dir()
    )
    if not pairs:
        raise InputError(f"no folders cells and non_cells side by side in {cubes}")
    split = cubes.with_name(f"{cubes.name}_{'by_folder' if by_folder else 'random'}_{seed}")
    if all((split / f"{part}.yaml").exists() for part in ("train", "test")):
        return split
    remove(split)
    random = np.random.default_rng(seed)
    if by_folder and len(pairs) < 2:
        raise InputError(f"{cubes} has one folder of cells and non_cells; --by-folder needs two")
    n_held = max(1, round(HELD_OUT * len(pairs)))
    held = {pairs[i] for i in random.permutation(len(pairs))[:n_held]} if by_folder else set()
    entries: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for number, pair in enumerate(pairs):
        for kind, label in _KINDS.items():
            named = _cubes_in(pair / kind)
            out = random.random(len(named)) < HELD_OUT
            if by_folder:
                out[:] = pair in held
            for part, chosen in (("train", ~out), ("test", out)):
                files = [named[i] for i in np.flatnonzero(chosen)]
                to = split / part / f"{number}_{kind}"
                _link([file for cube in files for file in cube], to)
                if files:
                    group = str(pair.relative_to(cubes))
                    entries[part].append(_entry(to, label, len(files[0]), group))
    _write_yamls(entries, cubes, split)
    return split


def _write_yamls(entries: Mapping[str, Sequence[dict[str, Any]]], cubes: Path, split: Path) -> None:
    for part, listed in entries.items():
        if {entry["type"] for entry in listed} != set(_KINDS.values()):
            raise InputError(f"too few cubes in {cubes}: those to {part} are not of both classes")
        text = yaml.safe_dump({"data": listed}, sort_keys=False)
        with replacing(split / f"{part}.yaml") as made:
            made.write_text(text, encoding="utf-8")


def _cubes_in(folder: Path) -> list[list[Path]]:
    """Files of each cube, by channel."""
    named: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if _CHANNEL.search(file.name) and not file.name.startswith("."):  # as a Mac adds some
            named.setdefault(_CHANNEL.sub("", file.name), []).append(file)
    return list(named.values())


def _link(files: Sequence[Path], to: Path) -> None:
    to.mkdir(parents=True)
    for file in files:
        (to / file.name).symlink_to(file)


def _entry(folder: Path, label: str, channels: int, group: str) -> dict[str, Any]:
    return {
        "cube_dir": str(folder),
        "cell_def": "",
        "type": label,
        "signal_channel": 0,
        "bg_channel": 1 if channels > 1 else -1,
        "group": group,
    }


def score(backbone: str, train: Mapping[str, Any], split: Path, seed: int) -> dict[str, float]:
    """Train on one part, unless that is done, and measure on the other."""
    from cubeclf_core.classifier import load_classifier
    from cubeclf_core.heads import CELL_CLASS
    from cubeclf_core.metrics import classification_metrics
    from cubeclf_core.ranking import rank
    from finetune.cubes import list_cubes, read_listed

    settings = {**train, "backbone": backbone, "cubes": [str(split / "train.yaml")], "seed": seed}
    depends = json.dumps(
        [settings, content_hash(backbone), version("cubeclf")], sort_keys=True, default=str
    )
    told = hashlib.sha256(depends.encode()).hexdigest()
    run = split / f"{re.sub(r'[^A-Za-z0-9-]+', '_', backbone)}_{told[:8]}"
    if not (run / "exported" / "classifier.safetensors").exists():
        config = run.with_suffix(".yaml")
        text = yaml.safe_dump({**settings, "out": str(run), "resume": True})
        config.write_text(text, encoding="utf-8")
        words = [sys.executable, "-c", _RUN, "--config", str(config)]
        if subprocess.run(words, check=False).returncode:
            raise RunFailed(f"cubeclf-finetune --config {config} failed")
    classifier = load_classifier(run)
    listed = list_cubes(split / "test.yaml")
    scores = np.concatenate(
        [
            classifier.predict(read_listed(listed[at : at + _AT_A_TIME], classifier.config).cuboids)
            for at in range(0, len(listed), _AT_A_TIME)
        ]
    )[:, CELL_CLASS]
    labels = np.array([cube.label for cube in listed])
    say(f"{backbone}: {len(listed)} cubes tested, {labels.sum()} of them cells")
    (rate,) = rank(labels, scores).false_positive_rate_at_recall(PUBLISHED["recall"])
    key = f"false_positive_rate_at_recall_{PUBLISHED['recall']:g}"
    return {"cubes": float(len(listed)), key: float(rate), **classification_metrics(labels, scores)}


if __name__ == "__main__":
    sys.exit(main())
