"""Brains: volumes with, perhaps, their labelled cells, from paths or a YAML brains file.

A brains file is a list; its paths are relative to its own folder; cells are XML, YAML or CSV::

    - name: mouse 1
      signal: mouse1.ome.zarr
      cells: mouse1_cells.xml
      group: animal 1  # by default the name: volumes of one group are never split apart
    - name: mouse 2
      signal: mouse2/ch0
      background: mouse2/ch1
      voxel_size_um: [5, 2, 2]
    - name: mouse 3
      signal: https://example.org/mouse3.ome.zarr
      channels: [2, 0]  # signal and, if there is one, background, by number from 0
      weight: 2  # pretraining draws twice as much of it as of another
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cubeclf_core.cells import Cells, read_cells
from cubeclf_core.errors import BrainsFileError
from cubeclf_core.inside import check_inside
from cubeclf_core.locations import Location, is_url, locate, on_disk, same_name
from cubeclf_core.volumes import Volume, open_volume

_REQUIRED = ("name", "signal")
_KEYS = (*_REQUIRED, "background", "channels", "voxel_size_um", "cells", "group", "weight")


@dataclass(frozen=True)
class VolumeAt:
    """Where a volume lies and how it is opened; see `open_volume`."""

    signal: Location
    background: Location | None = None
    channels: Sequence[int] | None = None
    voxel_size_um: Sequence[float] | None = None
    name: str | None = None

    def open(self) -> Volume:
        """Open it."""
        return open_volume(
            self.signal,
            background=self.background,
            channels=self.channels,
            voxel_size_um=self.voxel_size_um,
            name=self.name,
        )

    def from_anywhere(self) -> VolumeAt:
        """Give the same for a process with another working directory."""
        signal, background = (
            where if where is None or is_url(where) else Path(where).absolute()
            for where in (self.signal, self.background)
        )
        assert signal is not None
        channels = None if self.channels is None else tuple(self.channels)
        size = None if self.voxel_size_um is None else tuple(self.voxel_size_um)
        return VolumeAt(signal, background, channels, size, self.name)


@dataclass(frozen=True)
class Brain:
    """A volume and, where they are known, its labelled cells or candidates.

    Attributes
    ----------
    name
        Unique among the brains that were loaded together.
    volume
        Its channels.
    cells
        All inside the volume.
    paths
        Every file and folder of this machine that it was read from.
    signal
        Where its signal lies, the same however it was named: the resolved path or the URL. Empty
        if it was made in memory.
    weight
        How much pretraining draws of it, relative to others.
    group
        The animal that it is of, with perhaps other brains: splits keep a group together.
    cells_path
        Where its cells were read from.
    at
        What opens the volume again, in this or another process; None if it was made in memory.
    """

    name: str
    volume: Volume
    cells: Cells | None
    paths: tuple[Path, ...]
    signal: str = ""
    weight: float = 1.0
    group: str | None = None
    cells_path: Path | None = None
    at: VolumeAt | None = None


def load_brains(
    paths: Sequence[Location], *, voxel_size_um: Sequence[float] | None = None
) -> list[Brain]:
    """Open brains, each given as a volume or within a YAML brains file.

    Parameters
    ----------
    paths
        Volumes, as `open_volume` takes them, and brains files (``.yaml``, ``.yml``).
    voxel_size_um
        z y x, of every brain that does not have its own in a brains file. Wins over the volumes'
        files.

    Returns
    -------
    list of Brain
        In the order of `paths`, and within a brains file in its order.

    Raises
    ------
    BrainsFileError
        If a brains file cannot be understood, or two brains have one name.
    VolumeError
        If a volume cannot be opened.
    CellsError
        If cells cannot be read, or lie outside their volume.
    """
    brains: list[Brain] = []
    for path in map(locate, paths):
        if (
            isinstance(path, Path)
            and path.suffix.lower() in (".yaml", ".yml")
            and not path.is_dir()
        ):
            brains += _load_file(path, voxel_size_um)
        else:
            at = VolumeAt(path, voxel_size_um=voxel_size_um)
            volume = at.open()
            brains.append(Brain(volume.name, volume, None, on_disk(path), same_name(path), at=at))
    twice = [name for name, n in Counter(brain.name for brain in brains).items() if n > 1]
    if twice:
        raise BrainsFileError(
            f"two brains are named {twice[0]!r}; give each its own name in a brains file"
        )
    return brains


def _load_file(path: Path, voxel_size_um: Sequence[float] | None) -> list[Brain]:
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BrainsFileError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise BrainsFileError(
            f"{path} holds no list of brains; expected mappings with {_spell(_KEYS)}"
        )
    return [_load_entry(entry, i, path, voxel_size_um) for i, entry in enumerate(entries, 1)]


def _load_entry(
    entry: Any, number: int, file: Path, voxel_size_um: Sequence[float] | None
) -> Brain:
    _check_entry(entry, f"{file}, brain {number}")
    name, size = str(entry["name"]), entry.get("voxel_size_um")
    signal = locate(entry["signal"], file.parent)
    background, cells_path = (
        None if entry.get(key) is None else locate(entry[key], file.parent)
        for key in ("background", "cells")
    )
    at = VolumeAt(
        signal,
        background=background,
        channels=entry.get("channels"),
        voxel_size_um=voxel_size_um if size is None else size,
        name=name,
    )
    volume = at.open()
    cells = None if cells_path is None else read_cells(Path(cells_path))
    if cells is not None:
        check_inside(cells, volume, cells_path)
    paths = on_disk(signal, background, cells_path, file)
    weight, group = entry.get("weight"), entry.get("group")
    return Brain(
        name,
        volume,
        cells,
        paths,
        signal=same_name(signal),
        weight=1.0 if weight is None else float(weight),
        group=None if group is None else str(group),
        cells_path=None if cells is None else Path(str(cells_path)),
        at=at,
    )


def _check_entry(entry: Any, who: str) -> None:
    if not isinstance(entry, dict):
        raise BrainsFileError(f"{who} is {entry!r}; expected a mapping with {_spell(_KEYS)}")
    who += f" ({entry['name']})" if "name" in entry else ""
    if unknown := [str(key) for key in entry if key not in _KEYS]:
        raise BrainsFileError(f"{who} has the unknown key {unknown[0]!r}; allowed: {_spell(_KEYS)}")
    if missing := [key for key in _REQUIRED if entry.get(key) in (None, "")]:
        raise BrainsFileError(f"{who} lacks {_spell(missing)}; allowed: {_spell(_KEYS)}")
    for key, (fits, expected) in _FORMS.items():
        if entry.get(key) is not None and not fits(entry[key]):
            raise BrainsFileError(f"{who}: {key} is {entry[key]!r}; expected {expected}")


def _name(value: Any) -> bool:
    """Tell whether a name can be part of the name of a report's file."""
    if not isinstance(value, str | int | float):
        return False
    return set(str(value)).isdisjoint("/\\\0") and str(value) not in (".", "..")


def _location(value: Any) -> bool:
    return isinstance(value, str)


def _path(value: Any) -> bool:
    return isinstance(value, str) and not is_url(value)


def _above_zero(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int for v in value)


def _three_numbers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    )


_FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_name, "a name without slashes that is not dots"),
    "signal": (_location, "a path or a URL"),
    "background": (_location, "a path or a URL"),
    "cells": (_path, "a path"),
    "channels": (_integers, "[signal] or [signal, background], each a number from 0"),
    "voxel_size_um": (_three_numbers, "[z, y, x] in µm"),
    "group": (_name, "a name without slashes that is not dots"),
    "weight": (_above_zero, "a number above 0"),
}


def _spell(keys: Sequence[str]) -> str:
    return ", ".join(keys)
