"""What the scores of a brain's candidates depend on, so that none of two runs are ever mixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cubeclf_core.brains import Brain
from cubeclf_core.content import content_hash
from cubeclf_core.errors import InputError
from cubeclf_core.fast import fastest
from cubeclf_core.files import replacing
from finetune.config import ClassifyConfig

_FILE = "job.json"

Job = dict[str, Any]
"""What is said of a brain's work: words for a user, each with a value that has to stay."""


def describe(config: ClassifyConfig, brains: Sequence[Brain]) -> list[Job]:
    """Say what the scores of each brain's candidates depend on.

    Parameters
    ----------
    config
        Of the run.
    brains
        With their candidates.
    """
    alike = {
        "classifier": [content_hash(path) for path in config.classifier],
        "way of computing (precision and kind of device)": computing(exact=config.exact),
        "choice of --tta, --embeddings and --part": [config.tta, config.embeddings, config.part],
        "version of cubeclf": version("cubeclf"),
    }
    return [{**_describe(brain), **alike} for brain in brains]


def _describe(brain: Brain) -> Job:
    volume = brain.volume
    assert brain.at is not None
    assert brain.cells is not None
    return {
        "place of the volume, its channels or voxel size": repr(brain.at.from_anywhere()),
        "volume": [list(volume.shape), volume.dtype.name, list(volume.voxel_size_um)],
        "number of channels": volume.n_channels,
        "chunk shape": [list(channel.chunks) for channel in volume.channels],
        "list of candidates": hashlib.sha256(brain.cells.positions.tobytes()).hexdigest(),
    }


def computing(*, exact: bool) -> str:
    """Say in which precision and on what kind of device networks of ours compute here."""
    if exact:
        return "float32 on cpu"
    device, dtype = fastest()
    return f"{str(dtype).removeprefix('torch.')} on {device.type}"


def digest(job: Job) -> str:
    """Give the same for the same job, and something else for any other."""
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()


def write_job(folder: Path, job: Job) -> None:
    """Keep in a brain's folder what its parts are parts of."""
    with replacing(folder / _FILE) as temporary:
        temporary.write_text(json.dumps(job, indent=2) + "\n", encoding="utf-8")


def check_job(folder: Path, job: Job, name: str, *, begun: bool) -> None:
    """Raise unless a brain's folder belongs to the same job, or to none yet.

    Parameters
    ----------
    folder
        Of the brain's results.
    job
        What is to go on.
    name
        Of the brain.
    begun
        Whether the folder holds results.

    Raises
    ------
    InputError
        If it does not, or results are there and nothing says of what.
    """
    anew = "begin anew with --overwrite, or choose another --out"
    try:
        before = dict(json.loads((folder / _FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        if begun:
            raise InputError(
                f"{folder / _FILE}, which says what the results in {folder} are of, cannot be "
                f"read; {anew}"
            ) from error
        return
    for what, value in job.items():
        if value != before.get(what):
            raise InputError(
                f"the {what} of {name} is not what the run in {folder} began with; {anew}"
            )
