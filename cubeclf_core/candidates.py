"""Cuboids around given positions: each region of the volume is decoded about once.

Positions are grouped into blocks of the volume; a block is read in one go with the margin that its
cuboids need, and cut. No position is dropped: what a cuboid lacks at the border is reflected.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from cubeclf_core.axes import Shape3, Size3
from cubeclf_core.geometry import resample, source_shape, starts_around
from cubeclf_core.volumes import Volume

_BLOCK_UM = 640.0  # with the margin of a cuboid, a few times a chunk of usual size
_BLOCK_BYTES = 1 << 30  # of a block with its margin


@dataclass(frozen=True)
class CandidateCuboids:
    """Some of the candidates' cuboids.

    Attributes
    ----------
    index
        Shape (b,), which of the positions.
    cuboids
        Float32 raw counts at the wanted voxel size.
    padded
        Shape (b,), whether a part lay outside the volume and was reflected.
    """

    index: npt.NDArray[np.int64]
    cuboids: Float[Tensor, "b c z y x"]
    padded: npt.NDArray[np.bool_]


def read_candidates(
    volume: Volume,
    positions: npt.NDArray[np.float64],
    *,
    shape: Shape3,
    voxel_size_um: Size3,
    n_channels: int,
    batch_size: int = 64,
) -> Iterator[CandidateCuboids]:
    """Read the cuboids around positions, block by block, in bounded memory.

    Parameters
    ----------
    volume
        Where to read.
    positions
        Shape (n, 3), z y x in voxels of the volume, inside it.
    shape
        Of the cuboids, z y x, in voxels of `voxel_size_um`.
    voxel_size_um
        z y x; the cuboids are resampled to it.
    n_channels
        Channels to read; no more than the volume has.
    batch_size
        At most so many cuboids at a time.

    Yields
    ------
    CandidateCuboids
        In the order of reading; together every position once.

    Raises
    ------
    VolumeTooSmall
        If the volume is smaller than one cuboid.
    """
    extent = source_shape(shape, voxel_size_um, volume)
    starts = starts_around(positions, extent)
    for group in _blocks(volume, positions, extent, n_channels):
        # What is reflected at a border lies within one cuboid's extent of it.
        low = np.minimum(starts[group].min(axis=0), np.array(volume.shape) - extent).clip(0, None)
        high = np.maximum((starts[group] + extent).max(axis=0), extent).clip(None, volume.shape)
        block = volume.read(low, high, n_channels)
        for index in np.split(group, range(batch_size, len(group), batch_size)):
            cut = [_cut(block, low, start, extent, volume.shape) for start in starts[index]]
            yield CandidateCuboids(
                index,
                resample(np.stack([cuboid for cuboid, _ in cut]), shape),
                np.array([padded for _, padded in cut]),
            )


def read_all_candidates(
    volume: Volume,
    positions: npt.NDArray[np.float64],
    *,
    shape: Shape3,
    voxel_size_um: Size3,
    n_channels: int,
) -> Float[Tensor, "n c z y x"]:
    """Read the cuboids around positions into memory, in their order; see `read_candidates`."""
    cuboids = torch.empty(len(positions), n_channels, *shape)
    for part in read_candidates(
        volume, positions, shape=shape, voxel_size_um=voxel_size_um, n_channels=n_channels
    ):
        cuboids[torch.from_numpy(part.index)] = part.cuboids
    return cuboids


def _blocks(
    volume: Volume, positions: npt.NDArray[np.float64], extent: Shape3, n_channels: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Group positions by block, blocks in z y x order, the file's order within a block."""
    block = (positions // _block_shape(volume, extent, n_channels)).astype(np.int64)
    _, inverse = np.unique(block, axis=0, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(inverse[order])) + 1)


def _block_shape(volume: Volume, extent: Shape3, n_channels: int) -> npt.NDArray[np.int64]:
    """Choose the block, in voxels, such that with its margin it keeps to `_BLOCK_BYTES`."""
    voxel_bytes = n_channels * volume.dtype.itemsize
    shape = np.array(volume.shape)
    size = np.minimum(np.maximum(1, np.rint(_BLOCK_UM / np.array(volume.voxel_size_um))), shape)
    if volume.chunk_shape[1:] == volume.shape[1:]:  # planes are decoded whole: use all of them
        size[1:] = shape[1:]
    while np.prod(np.minimum(size + extent, shape)) * voxel_bytes > _BLOCK_BYTES and size.max() > 1:
        axis = 0 if size[0] > 1 else int(size.argmax())
        size[axis] = np.ceil(size[axis] / 2)
    block: npt.NDArray[np.int64] = size.astype(np.int64)
    return block


def _cut(
    block: npt.NDArray[np.generic],
    low: npt.NDArray[np.int64],
    start: npt.NDArray[np.int64],
    extent: Shape3,
    shape: Shape3,
) -> tuple[npt.NDArray[np.generic], bool]:
    """Cut the cuboid at `start` out of a block that begins at `low`, in the volume's voxels."""
    stop = start + extent
    if (start >= 0).all() and (stop <= shape).all():
        inside = (slice(a, b) for a, b in zip(start - low, stop - low, strict=True))
        return block[(slice(None), *inside)], False
    z, y, x = (
        _reflect(np.arange(a, b), n) - first
        for a, b, n, first in zip(start, stop, shape, low, strict=True)
    )
    return block[:, z[:, None, None], y[:, None], x], True


def _reflect(index: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    """Mirror indices at the first and the last of `n` voxels, which are not repeated."""
    mirrored: npt.NDArray[np.int64] = (n - 1) - np.abs((n - 1) - np.abs(index))
    return mirrored
