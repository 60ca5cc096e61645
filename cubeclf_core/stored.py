"""What lies at one location: the channels of each level of a pyramid, not yet chosen from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from cubeclf_core.axes import Shape3, Size3
from cubeclf_core.errors import VolumeError
from cubeclf_core.locations import Location
from cubeclf_core.ome_zarr import Dataset, Multiscale, parse_multiscale
from cubeclf_core.sources import Source, ZarrSource, by, one_line
from cubeclf_core.tiff import open_planes, open_stack

DTYPES = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.float32))

_EXPECTED = "expected an OME-Zarr, a zarr array, a folder of TIFF planes or a TIFF stack"


@dataclass(frozen=True)
class Level:
    """All channels of one level, and the size of its voxels in voxels of the finest, z y x."""

    channels: tuple[Source, ...]
    step: Size3 = (1.0, 1.0, 1.0)

    def scaled(self, finest_um: Size3) -> Size3:
        """Voxel size of this level, from that of the finest."""
        z, y, x = (size * step for size, step in zip(finest_um, self.step, strict=True))
        return z, y, x


@dataclass(frozen=True)
class Stored:
    """The levels at one location, finest first, and the finest's voxel size where it says so."""

    levels: list[Level]
    voxel_size_um: Size3 | None


def open_stored(where: Location) -> Stored:
    """Open what lies at a path or, if it is a zarr, at a URL.

    Parameters
    ----------
    where
        As `cubeclf_core.locations.locate` gives it: a string only if it is a URL.

    Raises
    ------
    VolumeError
        If there is no volume of a kind that is supported.
    """
    if isinstance(where, str):
        return _open_zarr(where)
    if not where.exists():
        raise VolumeError(f"{where} does not exist; {_EXPECTED}")
    if any((where / marker).exists() for marker in ("zarr.json", ".zgroup", ".zarray")):
        return _open_zarr(where)
    size = None
    if where.is_dir():
        channel: Source = open_planes(where)
    elif where.suffix.lower() in (".tif", ".tiff"):
        channel, size = open_stack(where)
    else:
        raise VolumeError(f"{where} is a file of another kind; {_EXPECTED}")
    _check_channel(channel, where)
    return Stored([Level((channel,))], size)


def _open_zarr(where: Location) -> Stored:
    try:
        node = zarr.open(where, mode="r")
        attributes = dict(node.attrs)
    except FileNotFoundError as error:
        raise VolumeError(
            f"there is no zarr at {where}; expected an OME-Zarr or a zarr array"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # remote stores raise what they like
        raise VolumeError(
            f"{where} cannot be opened as a zarr ({one_line(error)}); "
            "expected an OME-Zarr or a zarr array"
        ) from error
    image = _plain(node) if isinstance(node, zarr.Array) else None
    image = image or parse_multiscale(attributes, source=where)
    if image is None and isinstance(node, zarr.Array):
        raise VolumeError(f"{where} is a zarr array of {node.ndim} axes; expected z y x or c z y x")
    if image is None:
        raise VolumeError(
            f"{where} is a zarr group without OME-Zarr multiscales; name an array or an image in it"
        )
    finest, *others = image.datasets
    whole = _open_level(node, finest.path, image.axes, where)
    levels = [Level(whole)]
    for dataset in others:
        try:
            channels = _open_level(node, dataset.path, image.axes, where)
        except VolumeError:  # the whole is there, and that is what was asked for
            continue
        step = _step(dataset, finest, channels[0].shape, whole[0].shape)
        alike = (len(channels), channels[0].dtype) == (len(whole), whole[0].dtype)
        if alike and step is not None:
            levels.append(Level(channels, step))
    return Stored(levels, image.voxel_size_um)


def _plain(array: zarr.Array[Any]) -> Multiscale | None:
    axes = {3: "zyx", 4: "czyx"}.get(array.ndim)
    return None if axes is None else Multiscale(axes, (Dataset("", None),), None)


def _open_level(
    node: zarr.Array[Any] | zarr.Group, path: str, axes: str, where: Location
) -> tuple[Source, ...]:
    try:
        array = node if isinstance(node, zarr.Array) else node[path]
    except MemoryError:
        raise
    except Exception as error:  # remote stores raise what they like
        raise VolumeError(f"{where} lacks its array {path!r}: {one_line(error)}") from error
    if not isinstance(array, zarr.Array) or array.ndim != len(axes):
        raise VolumeError(f"{where}: {path!r} is no array with the axes {axes}")
    n_channels = array.shape[axes.index("c")] if "c" in axes else 1
    if n_channels == 0:
        raise VolumeError(f"{where} holds no channel")
    channels = tuple(ZarrSource(array, axes, c, where) for c in range(n_channels))
    _check_channel(channels[0], where)
    return channels


def _check_channel(channel: Source, where: Location) -> None:
    if channel.dtype not in DTYPES:
        raise VolumeError(f"{where} holds {channel.dtype}; expected uint8, uint16 or float32")
    if 0 in channel.shape:
        raise VolumeError(f"{where} holds no voxels: its shape is {by(channel.shape)}")


def _step(dataset: Dataset, finest: Dataset, shape: Shape3, whole: Shape3) -> Size3 | None:
    """Size of a level's voxels in voxels of the finest; None if it is no copy of the whole."""
    if dataset.scale and finest.scale and min(finest.scale) > 0:
        ratios = [own / least for own, least in zip(dataset.scale, finest.scale, strict=True)]
    else:
        ratios = [n / own for n, own in zip(whole, shape, strict=True)]
    for ratio, own, n in zip(ratios, shape, whole, strict=True):
        # Levels round their shapes up or down. But some writers give all of them one scale.
        if not 0 < ratio < math.inf or abs(own * ratio - n) > 2 * ratio + n / 20:
            return None
    return ratios[0], ratios[1], ratios[2]
