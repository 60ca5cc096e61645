"""Backbones that a comparison pretrains itself, by `cubeclf-pretrain`, once for each seed."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import yaml

from cubeclf_core.brains import load_brains
from cubeclf_core.errors import InputError, RunFailed
from cubeclf_core.files import replacing

_COMMAND = "from pretrain.commands import pretrain; pretrain()"  # as cubeclf-pretrain does


@dataclass(frozen=True)
class Pretrained:
    """Finds backbones by name.

    Attributes
    ----------
    folder
        Where runs are.
    settings
        Of `cubeclf-pretrain`, by the name of a pretraining.
    """

    folder: Path
    settings: Mapping[str, Mapping[str, Any]]

    def find(self, name: str, seed: int) -> str:
        """Give what `cubeclf-finetune --backbone` takes, for a name in a plan."""
        if name in self.settings:
            return str(self.run(name, seed))
        return name.replace("{seed}", str(seed))

    def run(self, name: str, seed: int) -> Path:
        """Folder of a pretraining's run; another for other settings or other brains files."""
        settings = self.settings[name]
        files = [Path(path) for path in settings["brains"]]
        told = [dict(settings), seed, [f.read_text("utf-8") if f.is_file() else "" for f in files]]
        key = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:8]
        return self.folder / f"{name}-{seed}-{key}".replace(" ", "_").replace("/", "_")


def has_seen(backbone: str, volumes: Collection[str]) -> str:
    """Tell whether a backbone was pretrained on some volumes, without their labels.

    Parameters
    ----------
    backbone
        Path of a run; of anything else it is not known.
    volumes
        As `Brain.signal` has them.

    Returns
    -------
    str
        "yes" if on any of them, "no", or "unknown".
    """
    try:
        told = yaml.safe_load((Path(backbone) / "config.yaml").read_text(encoding="utf-8"))
        brains = load_brains(told["brains"], voxel_size_um=told.get("voxel_size_um"))
    except (OSError, InputError, KeyError, TypeError, yaml.YAMLError):
        return "unknown"
    return "yes" if {brain.signal for brain in brains} & set(volumes) else "no"


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
        return (self.out / "exported" / "backbone.safetensors").exists()


def run_pretraining(job: Pretraining) -> str:
    """Run it to its end, or go on with it; gives its name.

    Raises
    ------
    RunFailed
        If it fails; the message ends with what it said last.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _leave)  # so that the command ends with this process
    config, log = job.out.with_suffix(".yaml"), job.out.with_suffix(".log")
    with replacing(config) as made:
        settings = {**job.settings, "seed": job.seed, "out": str(job.out), "resume": True}
        made.write_text(yaml.safe_dump(settings), encoding="utf-8")
    words = [sys.executable, "-c", _COMMAND, "--config", str(config)]
    with log.open("wb") as told:
        code = subprocess.run(words, stdout=told, stderr=told, check=False).returncode
    if code:
        said = log.read_text(encoding="utf-8", errors="replace").splitlines() or ["nothing"]
        raise RunFailed(f"pretraining {job.name}, seed {job.seed}: {said[-1]} (all of it: {log})")
    return job.name


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(number)
