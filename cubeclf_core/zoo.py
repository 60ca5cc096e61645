"""Weights that come with cubeclf, by name: `checkpoints/index.yaml` tells what there is.

Small files are in the package itself; larger ones are downloaded once, and their SHA-256 is checked
before they are put in place.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from cubeclf_core.downloads import download
from cubeclf_core.errors import CheckpointError

Kind = Literal["backbone", "classifier"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the index says of a file of weights.

    Attributes
    ----------
    kind
        What it holds.
    file
        Its name, in the package or in the folder that downloads are kept in.
    sha256
        Of its bytes, in hexadecimal.
    licence
        SPDX identifier.
    data
        What it was trained on.
    command
        That made it.
    url
        Where to get it, if it is not in the package.
    """

    kind: Kind
    file: str
    sha256: str
    licence: str
    data: str
    command: str
    url: str | None = None


@functools.cache
def index() -> Mapping[str, Entry]:
    """All weights there are, by name."""
    told = yaml.safe_load((_package() / "index.yaml").read_text(encoding="utf-8"))
    return {name: Entry(**entry) for name, entry in told.items()}


def find(name: str | Path, kind: Kind) -> Path | None:
    """Give the file of weights that a name stands for; None if it is a name of none.

    Parameters
    ----------
    name
        As the index has it; a path that exists is no name.
    kind
        What is wanted.

    Raises
    ------
    CheckpointError
        If it holds something else, or what was downloaded is not what the index tells of.
    RunFailed
        If it cannot be downloaded.
    """
    entry = index().get(str(name))
    if entry is None or Path(name).exists():
        return None
    if entry.kind != kind:
        fitting = ", ".join(known(kind))
        raise CheckpointError(f"{name} is a {entry.kind}, expected a {kind}: {fitting}")
    if entry.url is None:
        return _package() / entry.file
    kept = _cache() / f"{entry.sha256[:16]}-{entry.file}"
    if not kept.exists():
        download(entry.url, kept, entry.sha256)
    return kept


def known(kind: str) -> list[str]:
    """Names of all weights of a kind; none of a kind that the index has nothing of."""
    return [name for name, entry in index().items() if entry.kind == kind]


def _package() -> Path:
    """Folder of the weights: beside this package, in a checkout and where a wheel was installed."""
    return Path(__file__).parents[1] / "checkpoints"


def _cache() -> Path:
    """Folder of what was downloaded: CUBECLF_CACHE, or where the system keeps such things."""
    if given := os.environ.get("CUBECLF_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cubeclf"
