"""Writing OME-Zarr 0.5 with a pyramid.

The pyramid halves y and x until their voxels are about as large as those of z, then all three, so
that low levels have nearly cubic voxels. A voxel of a level is the mean of those it covers.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from jaxtyping import Shaped
from zarr.codecs import BloscCodec

from cubeclf_core.axes import Shape3, Size3
from cubeclf_core.files import replacing

if TYPE_CHECKING:
    from dask.array import Array as DaskArray


CHUNKS: Shape3 = (64, 128, 128)
SMALLEST_LEVEL = 128  # voxels along the longest axis, at or below which the pyramid ends
_COLOURS = ("00FF00", "FF00FF", "00FFFF", "FFFF00")


@dataclass(frozen=True)
class Level:
    """One level of a pyramid: its shape and, per axis, the voxels of level 0 in one of its own."""

    shape: Shape3
    factor: Shape3


def pyramid(shape: Shape3, voxel_size_um: Size3) -> list[Level]:
    """Lay out the levels of a pyramid.

    An axis is halved (rounding up) where its voxels are less than twice as long as the shortest,
    until the longest axis has at most 128 voxels.

    Parameters
    ----------
    shape
        Of level 0, z y x.
    voxel_size_um
        Of level 0, z y x.

    Returns
    -------
    list of Level
        Level 0 first.

    Examples
    --------
    >>> [level.factor for level in pyramid((200, 600, 600), (4.0, 1.0, 1.0))]
    [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8)]
    """
    levels = [Level(shape, (1, 1, 1))]
    while max(levels[-1].shape) > SMALLEST_LEVEL:
        last = levels[-1]
        sizes = [v * f for v, f in zip(voxel_size_um, last.factor, strict=True)]
        shortest = min(size for size, n in zip(sizes, last.shape, strict=True) if n > 1)
        step = [
            2 if n > 1 and size < 2 * shortest else 1
            for size, n in zip(sizes, last.shape, strict=True)
        ]
        z, y, x = (-(-n // s) for n, s in zip(last.shape, step, strict=True))
        fz, fy, fx = (f * s for f, s in zip(last.factor, step, strict=True))
        levels.append(Level((z, y, x), (fz, fy, fx)))
    return levels


def count_chunks(
    shape: Shape3, n_channels: int, voxel_size_um: Size3, chunks: Shape3 = CHUNKS
) -> int:
    """Count the chunks of all levels and channels that `write_ome_zarr` will write."""
    return n_channels * sum(
        math.prod(-(-n // c) for n, c in zip(level.shape, chunks, strict=True))
        for level in pyramid(shape, voxel_size_um)
    )


def write_ome_zarr(
    path: Path,
    channels: Sequence[DaskArray | Shaped[np.ndarray, "z y x"]],
    voxel_size_um: Size3,
    *,
    channel_names: Sequence[str] = ("signal", "background"),
    chunks: Shape3 = CHUNKS,
    on_chunk: Callable[[int], None] | None = None,
) -> None:
    """Write an OME-Zarr 0.5 with a pyramid; level 0 is bit-exact.

    Memory stays at about one slab: the full planes of one chunk's depth, of one channel.

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
    on_chunk
        Called with the number of chunks just written; `count_chunks` gives the total.
    """
    shape: Shape3 = channels[0].shape
    assert all(channel.shape == shape and channel.ndim == 3 for channel in channels)
    assert all(channel.dtype == channels[0].dtype for channel in channels)
    assert len(channels) <= len(channel_names)
    report = on_chunk or (lambda n: None)
    levels = pyramid(shape, voxel_size_um)
    with replacing(path) as temporary:
        group = zarr.open_group(temporary, mode="w", zarr_format=3)
        arrays = [
            group.create_array(
                str(i),
                shape=(len(channels), *level.shape),
                chunks=(1, *(min(c, n) for c, n in zip(chunks, level.shape, strict=True))),
                dtype=np.dtype(channels[0].dtype).newbyteorder("="),
                compressors=BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"),
                dimension_names=["c", "z", "y", "x"],
            )
            for i, level in enumerate(levels)
        ]
        for c, channel in enumerate(channels):
            _write_channel(arrays[0], c, channel, report)
        for finer, coarser in itertools.pairwise(arrays):
            _write_coarser(finer, coarser, report)
        names = list(channel_names[: len(channels)])
        group.attrs["ome"] = _metadata(_stem(path), levels, voxel_size_um, names, arrays[-1])


def _write_channel(
    target: zarr.Array[Any],
    c: int,
    channel: DaskArray | np.ndarray,
    report: Callable[[int], None],
) -> None:
    """Write one channel of level 0 slab by slab, so that a plane is read once."""
    _, depth, height, width = target.chunks
    per_row = -(-target.shape[3] // width)
    for z in range(0, target.shape[1], depth):
        slab = channel[z : z + depth]
        if not isinstance(slab, np.ndarray):
            buffer = np.empty(slab.shape, target.dtype)
            slab.store(buffer, lock=False, scheduler="threads")
            slab = buffer
        for y in range(0, target.shape[2], height):
            target[c, z : z + depth, y : y + height] = slab[:, y : y + height]
            report(per_row)


def _write_coarser(
    finer: zarr.Array[Any], coarser: zarr.Array[Any], report: Callable[[int], None]
) -> None:
    """Fill a level from the next finer one, chunk by chunk."""
    step = tuple(-(-f // c) for f, c in zip(finer.shape, coarser.shape, strict=True))
    n_threads = os.cpu_count() or 1

    def write(block: tuple[slice, ...]) -> None:
        source = tuple(slice(s.start * f, s.stop * f) for s, f in zip(block, step, strict=True))
        coarser[block] = block_means(np.asarray(finer[source])[0], step[1:])[None]

    with ThreadPoolExecutor(n_threads) as pool:
        blocks = _blocks(coarser.shape, coarser.chunks)
        while batch := list(itertools.islice(blocks, 4 * n_threads)):
            for _ in pool.map(write, batch):
                report(1)


def _blocks(shape: Sequence[int], chunks: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    starts = (range(0, n, c) for n, c in zip(shape, chunks, strict=True))
    for corner in itertools.product(*starts):
        yield tuple(slice(i, min(i + c, n)) for i, c, n in zip(corner, chunks, shape, strict=True))


def block_means(
    array: Shaped[np.ndarray, "z y x"], step: Sequence[int]
) -> Shaped[np.ndarray, "z2 y2 x2"]:
    """Mean over blocks of `step` voxels; of what there is, where the last block is cut short.

    Integers are rounded to the nearest, halves up.
    """
    missing = [(0, -n % s) for n, s in zip(array.shape, step, strict=True)]
    padded = np.pad(array, missing, mode="edge")  # repeating the one voxel keeps its mean
    nz, ny, nx = (n // s for n, s in zip(padded.shape, step, strict=True))
    blocks = padded.reshape(nz, step[0], ny, step[1], nx, step[2])
    if array.dtype.kind == "f":
        means: np.ndarray = blocks.mean(axis=(1, 3, 5), dtype=np.float64)
    else:
        n = math.prod(step)
        means = (blocks.sum(axis=(1, 3, 5), dtype=np.uint32) + n // 2) // n
    return means.astype(array.dtype)


def _metadata(
    name: str,
    levels: Sequence[Level],
    voxel_size_um: Size3,
    channel_names: Sequence[str],
    coarsest: zarr.Array[Any],
) -> dict[str, Any]:
    datasets = []
    for i, level in enumerate(levels):
        scale = [v * f for v, f in zip(voxel_size_um, level.factor, strict=True)]
        # A coarse voxel's centre is the centre of those it covers, not that of the first.
        shift = [v * (f - 1) / 2 for v, f in zip(voxel_size_um, level.factor, strict=True)]
        transforms = [
            {"type": "scale", "scale": [1.0, *scale]},
            {"type": "translation", "translation": [0.0, *shift]},
        ]
        datasets.append({"path": str(i), "coordinateTransformations": transforms})
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    shown = []
    for c, label in enumerate(channel_names):
        low, start, end, high = np.nanpercentile(np.asarray(coarsest[c]), [0, 1, 99.8, 100])
        window = {"min": float(low), "max": float(high), "start": float(start), "end": float(end)}
        colour = _COLOURS[c % len(_COLOURS)]
        shown.append({"label": label, "color": colour, "active": True, "window": window})
    multiscale = {"name": name, "type": "mean", "axes": axes, "datasets": datasets}
    return {"version": "0.5", "multiscales": [multiscale], "omero": {"channels": shown}}


def _stem(path: Path) -> str:
    return path.name.removesuffix(".zarr").removesuffix(".ome")
