"""cellfinder's labelled cubes: TIFF files in the folders that a training YAML names.

A cube is ``pCellz{z}y{y}x{x}Ch{c}.tif``, or ``pCellx{x}_y{y}_z{z}Ch{c}.tif`` as brainglobe-utils
writes it: 20 × 50 × 50 voxels of 5 × 1 × 1 µm, z y x. Its class is that of its entry.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile
import torch

from cubeclf_core.axes import Size3
from cubeclf_core.errors import CellsError
from cubeclf_core.network_configs import BackboneConfig
from cubeclf_core.sources import BROKEN
from finetune.labels import Labelled
from finetune.training_yaml import Entry, Position, position_in, read_training_yaml

CUBES_OF = "cubes of "
"""So begins what the volume of cubes is called."""

_CUBE = re.compile(r"(?!\.)(?P<at>.*[xyz]\d+.*)Ch(?P<channel>\d+)\.tiff?$", re.IGNORECASE)
_VOXEL_UM = (5.0, 1.0, 1.0)
_NOWHERE = (math.nan, math.nan, math.nan)
_DTYPES = ("uint8", "uint16", "float32")


@dataclass(frozen=True)
class Cube:
    """A labelled cube on disk.

    Attributes
    ----------
    paths
        Of its signal and, if there is one, its background.
    label
        1 cell, 0 no cell.
    position
        z y x from its name, in voxels of its volume; none if the name does not say all three.
    voxel_size_um
        z y x, of these voxels.
    group
        What it is split with.
    """

    paths: tuple[Path, ...]
    label: int
    position: Position | None
    voxel_size_um: Size3
    group: str

    @property
    def source(self) -> str:
        """Its folder and name."""
        return f"{self.paths[0].parent.name}/{self.paths[0].name}"

    @property
    def volume(self) -> str:
        """What its position is in: nothing else is known of it than the group."""
        return f"{CUBES_OF}{self.group}"


def list_cubes(file: Path) -> list[Cube]:
    """List the cubes of a training YAML without reading them.

    Parameters
    ----------
    file
        As `finetune.training_yaml` describes it.

    Returns
    -------
    list of Cube
        Entry by entry, each sorted by name.

    Raises
    ------
    InputError
        If the YAML cannot be used.
    CellsError
        If an entry has no cube, a cube lacks a channel, or a ``cell_def`` chooses none.
    """
    return [cube for entry in read_training_yaml(file) for cube in _list_folder(entry)]


def read_listed(cubes: Sequence[Cube], network: BackboneConfig) -> Labelled:
    """Read cubes, all of one shape and dtype.

    Parameters
    ----------
    cubes
        At least one.
    network
        What they are for. Of a cube with two channels, one for one channel takes the signal; for
        two channels, one without background gets a blank one.

    Raises
    ------
    CellsError
        If a cube cannot be read, has another shape than the network takes, another dtype than the
        others, or values that are not finite.
    """
    if network.voxel_size_um != _VOXEL_UM:
        raise CellsError(
            f"{cubes[0].paths[0]} is of voxels of {_VOXEL_UM} µm, as all cubes of cellfinder are; "
            f"the backbone takes {network.voxel_size_um}: give the brains themselves by --brains"
        )
    cuboids = np.zeros((len(cubes), network.channels, *network.cuboid_shape), np.float32)
    first: tuple[Path, npt.NDArray[np.generic]] | None = None
    for cuboid, cube in zip(cuboids, cubes, strict=True):
        for channel, path in zip(cuboid, cube.paths, strict=False):
            voxels = _read_voxels(path)
            first = first or (path, voxels)
            _check_voxels(path, voxels, first, network)
            channel[:] = voxels
    return Labelled(
        torch.from_numpy(cuboids),
        np.array([cube.label for cube in cubes], np.int64),
        [cube.group for cube in cubes],
        [cube.volume for cube in cubes],
        np.array([cube.position or _NOWHERE for cube in cubes], np.float64),
        np.array([cube.voxel_size_um for cube in cubes], np.float64),
        [cube.source for cube in cubes],
    )


def read_cubes(file: Path, network: BackboneConfig) -> Labelled:
    """Read all cubes of a training YAML, as `list_cubes` and `read_listed` do."""
    return read_listed(list_cubes(file), network)


def _list_folder(entry: Entry) -> list[Cube]:
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(entry.folder.iterdir()):
        if match := _CUBE.match(path.name):
            found.setdefault(match["at"], {})[int(match["channel"])] = path
    if not found:
        raise CellsError(f"{entry.folder} holds no cubes; expected files like pCellz1y2x3Ch0.tif")
    wanted = entry.wanted
    chosen = [at for at in found if wanted is None or position_in(at) in wanted]
    if not chosen:
        raise CellsError(
            f"none of the {len(found)} cubes in {entry.folder} lies at a position of its cell_def; "
            "are these positions those in the names of the cubes?"
        )
    return [_make_cube(at, found[at], entry) for at in chosen]


def _make_cube(at: str, paths: dict[int, Path], entry: Entry) -> Cube:
    if lacking := [channel for channel in entry.channels if channel not in paths]:
        raise CellsError(f"{entry.folder}: cube {at} lacks channel {lacking[0]}")
    return Cube(
        tuple(paths[channel] for channel in entry.channels),
        entry.label,
        position_in(at),
        entry.voxel_size_um,
        entry.group,
    )


def _read_voxels(path: Path) -> npt.NDArray[np.generic]:
    try:
        voxels = np.asarray(tifffile.imread(path))
    except BROKEN as error:
        raise CellsError(f"{path} cannot be read as TIFF: {error}") from error
    if voxels.dtype.name not in _DTYPES:
        expected = ", ".join(_DTYPES)
        raise CellsError(f"{path} holds {voxels.dtype}; expected one of {expected}")
    return voxels


def _check_voxels(
    path: Path,
    voxels: npt.NDArray[np.generic],
    first: tuple[Path, npt.NDArray[np.generic]],
    network: BackboneConfig,
) -> None:
    other, same = first
    if voxels.shape != same.shape:
        raise CellsError(
            f"{path} has shape {voxels.shape}, but {other} {same.shape}; all cubes must be of one "
            f"shape, and the backbone takes {network.cuboid_shape}"
        )
    if voxels.shape != network.cuboid_shape:
        raise CellsError(
            f"{path} has shape {voxels.shape}; the backbone takes {network.cuboid_shape}"
        )
    if voxels.dtype.name != same.dtype.name:  # either byte order
        raise CellsError(
            f"{path} holds {voxels.dtype}, but {other} {same.dtype}; cubes must be of one dtype, "
            "as what their counts mean may differ: cut them anew, or convert them"
        )
    if not np.isfinite(voxels).all():
        raise CellsError(f"{path} holds values that are not finite")
