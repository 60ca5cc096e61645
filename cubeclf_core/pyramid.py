"""Writing OME-Zarr with a pyramid, unit by unit."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore

from cubeclf_core.axes import Shape3, Size3
from cubeclf_core.files import replacing
from cubeclf_core.levels import Level, pyramid
from cubeclf_core.sources import Slices, Source
from cubeclf_core.work_units import (
    Unit,
    Voxels,
    ceil_div,
    each_unit,
    smaller,
    unit_shape,
    volume_shape,
)

if TYPE_CHECKING:
    from dask.array import Array as DaskArray

CHUNKS: Shape3 = (64, 128, 128)
# Small inner chunks: a cuboid of 20×50×50 voxels costs less CPU than from chunks of CHUNKS, a large
# region 1.5 times as much; still smaller ones only cost. Shards are flat, so that planes that come
# compressed are decoded few times where a slab of them does not fit into memory.
INNER_CHUNKS: Shape3 = (32, 64, 64)
SHARDS: Shape3 = (32, 1024, 1024)
_COLOURS = ("00FF00", "FF00FF", "00FFFF", "FFFF00")


@dataclass(frozen=True)
class Layout:
    """How voxels lie in files.

    Attributes
    ----------
    ome_version
        0.4 is zarr v2, which knows neither shards nor checksums.
    chunks
        Voxels compressed together, z y x; smaller where the level is.
    shards
        Voxels of the chunks that share a file, z y x; None for a file a chunk.
    """

    ome_version: Literal["0.4", "0.5"] = "0.5"
    chunks: Shape3 = CHUNKS
    shards: Shape3 | None = None

    def __post_init__(self) -> None:
        assert self.shards is None or self.ome_version == "0.5"


def write_ome_zarr(
    path: Path,
    channels: Sequence[Source | DaskArray | Voxels],
    voxel_size_um: Size3,
    *,
    channel_names: Sequence[str] = ("signal", "background"),
    chunks: Shape3 = CHUNKS,
    shards: Shape3 | None = None,
    ome_version: Literal["0.4", "0.5"] = "0.5",
    memory_bytes: float = 1e9,
) -> None:
    """Write an OME-Zarr with a pyramid; level 0 is bit-exact.

    Parameters
    ----------
    path
        The folder to write. It is put in place when complete, over what may be there.
    channels
        z y x each, of one shape and one of the dtypes uint8, uint16 and float32.
    voxel_size_um
        z y x.
    channel_names
        Shown by viewers; as many are used as there are channels.
    chunks
        z y x; smaller where the volume is.
    shards
        z y x, multiples of the chunks; None for a file a chunk.
    ome_version
        0.5, or 0.4, which has no shards.
    memory_bytes
        To take at most, besides what the channels hold.
    """
    shape, dtype = channels[0].shape, channels[0].dtype
    assert all(channel.shape == shape and channel.dtype == dtype for channel in channels)
    layout = Layout(ome_version, chunks, shards)
    with replacing(path) as temporary:
        create(temporary, len(channels), shape, dtype, voxel_size_um, layout)
        arrays = open_levels(temporary)
        each_unit(arrays, channels, write_unit, memory_bytes=memory_bytes)
        describe(temporary, _stem(path), voxel_size_um, channel_names)


def create(
    path: Path,
    n_channels: int,
    shape: Shape3,
    dtype: np.dtype[Any],
    voxel_size_um: Size3,
    layout: Layout,
) -> None:
    """Make the group and the empty arrays, named 0, 1, …, of an OME-Zarr."""
    v3 = layout.ome_version == "0.5"
    group = zarr.open_group(path, mode="w", zarr_format=3 if v3 else 2)
    for i, level in enumerate(pyramid(shape, voxel_size_um)):
        chunks, shards = _fitted(layout, level.shape)
        options: dict[str, Any] = {
            "compressors": [BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"), Crc32cCodec()],
            "shards": None if shards == chunks else (1, *shards),
            "dimension_names": ["c", "z", "y", "x"],
        }
        if not v3:
            zstd = {"id": "blosc", "cname": "zstd", "clevel": 3, "shuffle": 1, "blocksize": 0}
            separator = {"name": "v2", "separator": "/"}
            options = {"compressors": zstd, "chunk_key_encoding": separator}
        group.create_array(
            str(i),
            shape=(n_channels, *level.shape),
            chunks=(1, *chunks),
            dtype=np.dtype(dtype).newbyteorder("="),
            **options,
        )


def _fitted(layout: Layout, shape: Shape3) -> tuple[Shape3, Shape3]:
    """Chunks and shards of a level: no larger than it, a shard of whole chunks."""
    chunks = smaller(layout.chunks, shape)
    whole = [-(-n // c) * c for n, c in zip(shape, chunks, strict=True)]
    return chunks, smaller(layout.shards or chunks, whole)


def open_levels(path: Path) -> list[zarr.Array[Any]]:
    """Open the arrays 0, 1, … of an OME-Zarr that `create` made, for reading and writing."""
    group = zarr.open_group(path, mode="r+")
    arrays = [group[str(i)] for i in range(len(list(group.array_keys())))]
    return [array for array in arrays if isinstance(array, zarr.Array)]


def write_unit(unit: Unit, array: zarr.Array[Any], box: Slices, voxels: Voxels) -> None:
    """Write one unit and flush it to the disk, over whatever was there."""
    files = _files(unit, array)
    for file in files:
        file.unlink(missing_ok=True)  # else zarr would read a shard, maybe a torn one, to update it
    array[(unit.channel, *box)] = voxels
    for file in files:
        if file.exists():  # zarr writes no file where all is 0
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())


def _files(unit: Unit, array: zarr.Array[Any]) -> list[Path]:
    stored = (array.shards or array.chunks)[1:]
    per_unit = map(ceil_div, unit_shape(array), stored)
    grid = list(map(ceil_div, array.shape[1:], stored))
    indices = itertools.product(
        *(
            range(i * n, min((i + 1) * n, end))
            for i, n, end in zip(unit[2:], per_unit, grid, strict=True)
        )
    )
    assert isinstance(array.store, LocalStore)
    folder = array.store.root / array.path
    return [folder / array.metadata.encode_chunk_key((unit.channel, *index)) for index in indices]


def describe(path: Path, name: str, voxel_size_um: Size3, channel_names: Sequence[str]) -> None:
    """Write the OME metadata of the arrays at a path; needs the coarsest level."""
    group = zarr.open_group(path, mode="r+")
    arrays = open_levels(path)
    multiscale: dict[str, Any] = {
        "name": name,
        "type": "mean",
        "axes": [
            {"name": "c", "type": "channel"},
            *({"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"),
        ],
        "datasets": datasets(pyramid(volume_shape(arrays[0]), voxel_size_um), voxel_size_um),
    }
    coarsest = np.asarray(arrays[-1][...])
    omero = {"channels": list(map(_shown, range(len(coarsest)), channel_names, coarsest))}
    if group.metadata.zarr_format == 3:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale], "omero": omero}
    else:
        group.attrs["multiscales"] = [{"version": "0.4", **multiscale}]
        group.attrs["omero"] = {"version": "0.4", **omero}


def datasets(levels: Sequence[Level], voxel_size_um: Size3) -> list[dict[str, Any]]:
    """What OME-Zarr says of the levels: path, voxel size and the centre of the first voxel."""
    described = []
    for i, level in enumerate(levels):
        scale = [v * f for v, f in zip(voxel_size_um, level.factor, strict=True)]
        # A coarse voxel's centre is the centre of those it covers, not that of the first.
        shift = [v * (f - 1) / 2 for v, f in zip(voxel_size_um, level.factor, strict=True)]
        transforms = [
            {"type": "scale", "scale": [1.0, *scale]},
            {"type": "translation", "translation": [0.0, *shift]},
        ]
        described.append({"path": str(i), "coordinateTransformations": transforms})
    return described


def _shown(c: int, label: str, voxels: Voxels) -> dict[str, Any]:
    finite = voxels[np.isfinite(voxels)].astype(np.float64)
    percentiles = np.percentile(finite if finite.size else np.zeros(1), [0, 1, 99.8, 100])
    low, start, end, high = percentiles.tolist()
    window = {"min": low, "max": high, "start": start, "end": end}
    colour = _COLOURS[c % len(_COLOURS)]
    return {"label": label, "color": colour, "active": True, "window": window}


def _stem(path: Path) -> str:
    return path.name.removesuffix(".zarr").removesuffix(".ome")
