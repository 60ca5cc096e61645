"""Backbones that a comparison pretrains itself, by `cubeclf-pretrain`, once for each seed."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from cubeclf_core import zoo
from cubeclf_core.brains import load_brains
from cubeclf_core.checkpoint import load_checkpoint
from cubeclf_core.content import content_hash
from cubeclf_core.errors import InputError, RunFailed
from cubeclf_core.files import replacing
from finetune.config import is_random
from finetune.cubes import CUBES_OF

# As cubeclf-pretrain does; it stops, ready to go on, when what started it is gone.
_COMMAND = """
import os, signal, threading
def follow():
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=follow, daemon=True).start()
from pretrain.commands import pretrain
pretrain()
"""
_BOOKKEEPING = {"logger", "log_every", "monitor_every", "checkpoint_every"}  # change no weight
_CROP = "serial2p"  # the one real volume that the zoo has seen, by what its folder is called


@dataclass(frozen=True)
class Pretrained:
    """Finds backbones by name.

    Attributes
    ----------
    folder
        Where runs are.
    settings
        Of `cubeclf-pretrain`, by the name of a pretraining.
    digests
        Of what each learns from: where its brains are, their cells' places, and the weights that it
        begins with.
    """

    folder: Path
    settings: Mapping[str, Mapping[str, Any]]
    digests: Mapping[str, str]

    @classmethod
    def plan(cls, folder: Path, settings: Mapping[str, Mapping[str, Any]]) -> Pretrained:
        """Check settings and brains, before anything is trained.

        Raises
        ------
        InputError
            If `cubeclf-pretrain` would refuse them.
        """
        for name, own in settings.items():
            _check(name, own)
        digests = {name: _digest_of(own) for name, own in settings.items()}
        return cls(folder, settings, digests)

    def find(self, name: str, seed: int) -> str:
        """Give what `cubeclf-finetune --backbone` takes, for a name in a plan."""
        if name in self.settings:
            return str(self.run(name, seed))
        return name.replace("{seed}", str(seed))

    def shown(self, backbone: str) -> str:
        """Give what a table says of a backbone: of a run of this comparison, its place in OUT."""
        path = Path(backbone)
        inside = path.is_relative_to(self.folder)
        return path.relative_to(self.folder.parent).as_posix() if inside else backbone

    def run(self, name: str, seed: int) -> Path:
        """Folder of a pretraining's run; another for other settings or other brains."""
        settings = {key: v for key, v in self.settings[name].items() if key not in _BOOKKEEPING}
        told = [settings, seed, self.digests[name], version("cubeclf")]
        key = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:8]
        return self.folder / f"{re.sub(r'[^A-Za-z0-9-]+', '_', name)}-{seed}-{key}"


def _check(name: str, settings: Mapping[str, Any]) -> None:
    """Ask the command itself whether it takes some settings."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(yaml.safe_dump({**settings, "out": "any"}), encoding="utf-8")
        command = "from pretrain.commands import pretrain; pretrain()"
        words = [sys.executable, "-c", command, "--config", str(config), "--print-config"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        told = said[-1].removeprefix("error: ").replace(f"--config {config} has", "found")
        raise InputError(f"pretraining.{name}: {told}")


def _digest_of(settings: Mapping[str, Any]) -> str:
    told = hashlib.sha256(content_hash(settings.get("init") or "").encode())
    for brain in load_brains(settings["brains"], voxel_size_um=settings.get("voxel_size_um")):
        assert brain.at is not None
        told.update(repr((brain.at.from_anywhere(), brain.weight)).encode())
        told.update(b"" if brain.cells is None else brain.cells.positions.tobytes())
    return told.hexdigest()


@functools.cache
def has_seen(backbone: str, volumes: frozenset[str]) -> str:
    """Tell whether weights have learned from some volumes, or what they began with has.

    Parameters
    ----------
    backbone
        Name, or path of a run, of `cubeclf-finetune` too; of other files it is not known.
    volumes
        As `Brain.signal` has them, or as labelled cubes are called, which do not say of what
        they are.

    Returns
    -------
    str
        "yes" if on any of them, "no", or "unknown".
    """
    if not backbone or is_random(backbone):
        return "no"
    no = "unknown" if any(volume.startswith(CUBES_OF) for volume in volumes) else "no"
    if backbone in zoo.index():  # simulated brains, and a crop
        return "unknown" if any(_CROP in volume for volume in volumes) else no
    try:
        told = yaml.safe_load((Path(backbone) / "config.yaml").read_text(encoding="utf-8"))
        brains = load_brains(told["brains"], voxel_size_um=told.get("voxel_size_um"))
        began, cubes = told.get("init") or told.get("backbone"), told.get("cubes")
    except (OSError, InputError, KeyError, TypeError, yaml.YAMLError):
        return "unknown"
    if {brain.signal for brain in brains} & volumes:
        return "yes"
    before = has_seen(str(began), volumes) if began else "no"
    if before != "no":
        return before
    return "unknown" if cubes else no  # a cube does not say of what it is


def has_ended(run: Path) -> bool:
    """Tell whether a run of `cubeclf-pretrain` took all of its steps; Ctrl-C exports sooner.

    Raises
    ------
    InputError
        If it cannot be told.
    """
    if not (run / "exported" / "backbone.safetensors").exists():
        return False
    header, _ = load_checkpoint(run, "backbone")
    try:
        settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        return bool(header.training["steps"] == settings["steps"])
    except (OSError, UnicodeDecodeError, TypeError, KeyError, yaml.YAMLError) as error:
        raise InputError(
            f"{run}: its config.yaml does not say how many steps were to be taken; delete the "
            "folder, and they are taken anew"
        ) from error


@dataclass(frozen=True)
class Pretraining:
    """One run.

    Attributes
    ----------
    name
        In the plan.
    seed
        Of it.
    settings
        Of `cubeclf-pretrain`.
    out
        Its folder.
    """

    name: str
    seed: int
    settings: Mapping[str, Any]
    out: Path

    def done(self) -> bool:
        """Whether it has ended well."""
        return has_ended(self.out)


def run_pretraining(job: Pretraining) -> int:
    """Run it to its end, or go on with it.

    Raises
    ------
    RunFailed
        If it fails; the message ends with what it said last.
    """
    config, log = (job.out.with_name(job.out.name + end) for end in (".yaml", ".log"))
    with replacing(config) as made:
        settings = {**job.settings, "seed": job.seed, "out": str(job.out), "resume": True}
        made.write_text(yaml.safe_dump(settings), encoding="utf-8")
    words = [sys.executable, "-c", _COMMAND, "--config", str(config)]
    with log.open("wb") as told:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=told,
            stderr=told,
            start_new_session=True,  # a Ctrl-C is for the comparison, which ends this in its way
        )
        code = process.wait()  # its input stays open as long as this process lives
    if code or not job.done():
        said = log.read_text(encoding="utf-8", errors="replace").splitlines() or ["nothing"]
        raise RunFailed(f"pretraining {job.name}, seed {job.seed}: {said[-1]} (all of it: {log})")
    return 1
