"""Copying boxes of voxels between arrays, a row at a time.

Memory that is not in the cache is waited for once a row, not once a voxel's loop: numpy copies
boxes of short rows up to 1.6 times as fast if it is told that a row is one item.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped


def copy_box(
    source: Shaped[np.ndarray, "c z y x"],
    start: Sequence[int],
    out: Shaped[np.ndarray, "c z2 y2 x2"],
    out_start: Sequence[int],
    shape: Sequence[int],
) -> None:
    """Copy a box of all channels.

    Parameters
    ----------
    source, out
        Contiguous, of one dtype.
    start, out_start
        First voxel z y x in each.
    shape
        Voxels z y x, all within both arrays.
    """
    n_channels, size = source.shape[0], source.itemsize
    assert source.dtype == out.dtype
    row = np.dtype((np.void, shape[2] * size))
    rows = (n_channels, shape[0], shape[1])
    taken, given = (
        np.ndarray(
            rows,
            row,
            array,
            at[0] * array.strides[1] + at[1] * array.strides[2] + at[2] * size,
            array.strides[:3],
        )
        for array, at in ((source, start), (out, out_start))
    )
    given[...] = taken


def gather_boxes(
    sources: Sequence[Shaped[np.ndarray, ...]],
    starts: Sequence[Sequence[int]],
    out: Shaped[np.ndarray, "n c z y x"],
) -> None:
    """Copy one box out of each of many arrays; `copy_box` for whole batches.

    Parameters
    ----------
    sources
        Of shape (c, z, y, x), contiguous, of one dtype; each as often as boxes come from it.
    starts
        First voxel z y x of each box.
    out
        Contiguous, of the same dtype.
    """
    n_channels, nz, ny, nx = out.shape[1:]
    size = out.itemsize
    row = np.dtype((np.void, nx * size))
    rows = (n_channels, nz, ny)
    for source, (z, y, x), box in zip(sources, starts, out.view(row)[..., 0], strict=True):
        strides = source.strides
        at = z * strides[1] + y * strides[2] + x * size
        box[...] = np.ndarray(rows, row, source, at, strides[:3])
