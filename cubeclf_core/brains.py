"""Brains: volumes with, perhaps, their labelled cells, from paths or a YAML brains file.

A brains file is a list; its paths are relative to its own folder::

    - name: mouse 1
      signal: mouse1.ome.zarr
      cells: mouse1_cells.xml
    - name: mouse 2
      signal: mouse2/ch0
      background: mouse2/ch1
      voxel_size_um: [5, 2, 2]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cubeclf_core.cells import Cells, read_cells
from cubeclf_core.errors import BrainsFileError, CellsOutside
from cubeclf_core.volumes import Volume, open_volume

_REQUIRED = ("name", "signal")
_KEYS = (*_REQUIRED, "background", "voxel_size_um", "cells")


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
        Every file and folder that it was read from, the signal's first.
    """

    name: str
    volume: Volume
    cells: Cells | None
    paths: tuple[Path, ...]


def load_brains(
    paths: Sequence[str | Path], *, voxel_size_um: Sequence[float] | None = None
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
    for path in map(Path, paths):
        if path.suffix.lower() in (".yaml", ".yml") and not path.is_dir():
            brains += _load_file(path, voxel_size_um)
        else:
            volume = open_volume(path, voxel_size_um=voxel_size_um)
            brains.append(Brain(volume.name, volume, None, (path,)))
    twice = [name for name, n in Counter(brain.name for brain in brains).items() if n > 1]
    if twice:
        raise BrainsFileError(
            f"two brains are named {twice[0]!r}; give each its own name in a brains file"
        )
    return brains


def check_inside(cells: Cells, volume: Volume, source: object) -> None:
    """Check that all positions, rounded to voxels, lie inside a volume.

    Parameters
    ----------
    cells
        Positions z y x in voxels of the volume.
    volume
        Where they should lie, 0 to shape - 1.
    source
        What to call the cells in the error: their file.

    Raises
    ------
    CellsOutside
        If any lies outside.
    """
    outside = _outside(cells.positions, volume)
    if not outside.any():
        return
    if not _outside(cells.positions[:, ::-1], volume).any():
        cause = "with x and z swapped all would lie inside"
    else:
        cause = "were they found at another resolution, in another brain, or are x y z swapped?"
    where = ", ".join(f"{p:g}" for p in cells.positions[outside][0])
    shape = " × ".join(str(n) for n in volume.shape)
    raise CellsOutside(
        f"{source}: {int(outside.sum())} of {len(cells)} positions lie outside "
        f"{volume.name}, whose shape z y x is {shape} (the first at {where}); {cause}"
    )


def _outside(positions: np.ndarray, volume: Volume) -> np.ndarray:
    voxels = np.rint(positions)
    return np.asarray(((voxels < 0) | (voxels > np.array(volume.shape) - 1)).any(axis=1))


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
    who = f"{file}, brain {number}"
    if not isinstance(entry, dict):
        raise BrainsFileError(f"{who} is {entry!r}; expected a mapping with {_spell(_KEYS)}")
    who += f" ({entry['name']})" if "name" in entry else ""
    if unknown := [str(key) for key in entry if key not in _KEYS]:
        raise BrainsFileError(f"{who} has the unknown key {unknown[0]!r}; allowed: {_spell(_KEYS)}")
    if missing := [key for key in _REQUIRED if entry.get(key) in (None, "")]:
        raise BrainsFileError(f"{who} lacks {_spell(missing)}; allowed: {_spell(_KEYS)}")
    for key in ("signal", "background", "cells"):
        if not isinstance(entry.get(key), str | None):
            raise BrainsFileError(f"{who}: {key} is {entry[key]!r}; expected a path")
    if not isinstance(entry["name"], str | int | float):
        raise BrainsFileError(f"{who}: expected a name")
    size = entry.get("voxel_size_um")
    if size is not None and not _three_numbers(size):
        raise BrainsFileError(f"{who}: voxel_size_um is {size!r}; expected [z, y, x] in µm")
    signal, background, cells_path = (
        None if entry.get(key) is None else file.parent / entry[key]
        for key in ("signal", "background", "cells")
    )
    assert signal is not None
    name = str(entry["name"])
    if not set(name).isdisjoint("/\\\0") or name in (".", ".."):  # it names files of the report
        raise BrainsFileError(f"{who}: a name may not hold a slash or be dots")
    size = voxel_size_um if size is None else size
    volume = open_volume(signal, background=background, voxel_size_um=size, name=name)
    cells = None if cells_path is None else read_cells(cells_path)
    if cells is not None:
        check_inside(cells, volume, cells_path)
    paths = tuple(path for path in (signal, background, cells_path, file) if path is not None)
    return Brain(name, volume, cells, paths)


def _three_numbers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    )


def _spell(keys: Sequence[str]) -> str:
    return ", ".join(keys)
