"""cellfinder's training YAML: which folders of cubes there are, and of which class.

::

    data:
      - cube_dir: cells         # relative to this file, or to the working directory
        cell_def: ""            # or cells (XML, YAML, CSV), or a folder of files named like cubes:
        type: cell              #    only cubes at these positions are taken, whatever their types
        signal_channel: 0
        bg_channel: 1           # negative: there is none
        group: mouse 1          # of ours, as in a brains file; by default the name of this file
        voxel_size_um: [5, 1, 1]  # of ours: of the volume that positions in names are voxels of

``signal_mean``, ``signal_std``, ``bg_mean`` and ``bg_std`` are taken and not used: cubeclf
normalises each cuboid by itself. Other keys are passed over, as cellfinder does.

Where ``voxel_size_um`` is not given, positions count as voxels of 5 × 1 × 1 µm. If the volume's
voxels are coarser, as they mostly are, distances are then longer than they seem, and a guard
between training and test keeps too much apart rather than too little; if they are finer, give it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cubeclf_core.axes import Size3
from cubeclf_core.cells import read_cells
from cubeclf_core.errors import CellsError, InputError

Position = tuple[int, int, int]
"""z y x in voxels."""

_KINDS = {"cell": 1, "no_cell": 0}
_UM: Size3 = (5.0, 1.0, 1.0)
_STATISTICS = ("signal_mean", "signal_std", "bg_mean", "bg_std")


@dataclass(frozen=True)
class Entry:
    """A folder of cubes of one class.

    Attributes
    ----------
    folder
        It exists.
    label
        1 cell, 0 no cell.
    channels
        Numbers of signal and, if there is one, background.
    wanted
        Where the cubes are that count; none if all do.
    voxel_size_um
        z y x, of the volume that the cubes are from.
    group
        What they are split with.
    """

    folder: Path
    label: int
    channels: tuple[int, ...]
    wanted: frozenset[Position] | None
    voxel_size_um: Size3
    group: str


def read_training_yaml(file: Path) -> list[Entry]:
    """Read a training YAML.

    Raises
    ------
    InputError
        If it is none, has a wrong value, names something that is not there, or calls a folder
        both cell and no_cell.
    CellsError
        If a ``cell_def`` cannot be read.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read as YAML: {error}") from error
    entries = content.get("data") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{file} is no training YAML: expected a list under the key 'data'")
    read = [_read_entry(entry, file) for entry in entries]
    labels: dict[Path, int] = {}
    for entry in read:
        whole = entry.wanted is None  # otherwise another entry may have others of its cubes
        if whole and labels.setdefault(entry.folder.resolve(), entry.label) != entry.label:
            raise InputError(f"{file} names the folder {entry.folder} both as cell and as no_cell")
    return read


def position_in(name: str) -> Position | None:
    """Read z, y, x from the name of a file: the last number after each of these letters.

    Examples
    --------
    >>> position_in("pCellz10y522x392Ch0.tif"), position_in("pCellx392_y522_z10Ch0.tif")
    ((10, 522, 392), (10, 522, 392))
    """
    numbers = [re.findall(rf"{axis}(\d+)", name.lower()) for axis in "zyx"]
    if not all(numbers):
        return None
    z, y, x = (int(number[-1]) for number in numbers)
    return z, y, x


def _read_entry(entry: Any, file: Path) -> Entry:
    _check_entry(entry, file)
    channels = (entry.get("signal_channel", 0), entry.get("bg_channel", -1))
    z, y, x = map(float, entry.get("voxel_size_um", _UM))
    group = entry.get("group")
    return Entry(
        _find(entry["cube_dir"], file, "cube_dir", folder=True),
        _KINDS[entry["type"]],
        tuple(channel for channel in channels if channel >= 0),
        _read_cell_def(entry["cell_def"], file) if entry.get("cell_def") else None,
        (z, y, x),
        file.stem if group is None else str(group),
    )


def _check_entry(entry: Any, file: Path) -> None:
    if not isinstance(entry, dict) or not isinstance(entry.get("cube_dir"), str):
        raise InputError(f"{file}: each entry needs a cube_dir, a folder")
    if entry.get("type") not in list(_KINDS):
        raise InputError(f"{file}: type is {entry.get('type')!r}, expected cell or no_cell")
    for key, lowest in (("signal_channel", 0), ("bg_channel", -(2**31))):
        value = entry.get(key, 0)
        if type(value) is not int or value < lowest:
            raise InputError(f"{file}: {key} is {value!r}, expected the number of a channel")
    for key, kinds, expected in (
        ("cell_def", (str,), "a file or a folder"),
        ("group", (str, int), "a name"),
    ):
        value = entry.get(key)
        if value is not None and type(value) not in kinds:
            raise InputError(f"{file}: {key} is {value!r}, expected {expected}")
    size = entry.get("voxel_size_um", _UM)
    if not isinstance(size, list | tuple) or len(size) != 3 or not all(map(_above_zero, size)):
        raise InputError(f"{file}: voxel_size_um is {size!r}, expected [z, y, x] in µm")
    _check_statistics(entry, file)


def _check_statistics(entry: dict[str, Any], file: Path) -> None:
    """Check what is not used: a mistake there is one in cellfinder too."""
    given = [key for key in _STATISTICS if entry.get(key) is not None]
    lacking = [key for key in _STATISTICS if key not in given]
    if given and lacking:
        raise InputError(f"{file}: {given[0]} is there but not {lacking[0]}; give all or none")
    for key in given:
        fits = _above_zero if key.endswith("std") else _finite
        if not fits(entry[key]):
            raise InputError(f"{file}: {key} is {entry[key]!r}, expected a number")


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _above_zero(value: Any) -> bool:
    return _finite(value) and value > 0


def _read_cell_def(cell_def: str, file: Path) -> frozenset[Position]:
    """Positions in whole voxels, cut off towards 0 as brainglobe-utils does."""
    path = _find(cell_def, file, "cell_def")
    if not path.is_dir():
        positions = np.trunc(read_cells(path).positions).astype(np.int64).tolist()
        return frozenset((z, y, x) for z, y, x in positions)
    named = (position_in(f.name) for f in path.iterdir() if not f.name.startswith("."))
    found = frozenset(position for position in named if position is not None)
    if not found:
        raise CellsError(f"{path}, a cell_def, holds no file whose name says z, y and x")
    return found


def _find(path: str, file: Path, key: str, *, folder: bool = False) -> Path:
    tried = [file.parent / path, Path.cwd() / path]
    for found in tried:
        if found.is_dir() or (found.exists() and not folder):
            return found
    what = "a folder" if folder else "a file or a folder"
    raise InputError(f"{file}: {key} is {path}; neither {tried[0]} nor {tried[1]} is {what}")
