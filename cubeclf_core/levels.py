"""The levels of a pyramid: how they are laid out, and how one follows from the next finer.

The pyramid halves y and x until their voxels are about as large as those of z, then all three, so
that low levels have nearly cubic voxels. A voxel of a level is the mean of those it covers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from cubeclf_core.axes import Shape3, Size3
from cubeclf_core.sources import Slices, Source

SMALLEST_LEVEL = 128  # voxels along the longest axis, at or below which the pyramid ends


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


def block_means(
    array: Shaped[np.ndarray, "z y x"], step: Sequence[int]
) -> Shaped[np.ndarray, "z2 y2 x2"]:
    """Mean over blocks of `step` voxels; of what there is, where the last block is cut short.

    Integers are rounded to the nearest, halves up. Always added in one order, so that a block has
    the same mean to the last bit whatever box it is computed in.
    """
    missing = [(0, -n % s) for n, s in zip(array.shape, step, strict=True)]
    if any(after for _, after in missing):
        array = np.pad(array, missing, mode="edge")  # repeating the one voxel keeps its mean
    corners = [array[tuple(map(slice, at, array.shape, step))] for at in np.ndindex(*step)]
    n = math.prod(step)
    with np.errstate(invalid="ignore"):  # infinities and NaN are no errors here
        total: np.ndarray = corners[0].astype(np.float64 if array.dtype.kind == "f" else np.uint32)
        for corner in corners[1:]:
            np.add(total, corner, out=total)
        if array.dtype.kind != "f":
            return ((total + n // 2) // n).astype(array.dtype)
        means = (total / n).astype(array.dtype)
        # Of two NaN, it depends on the processor and the box which one's bits a sum has.
        means[np.isnan(means)] = np.nan
        return means


class Means:
    """A channel of a level, computed from the next finer level where it is read.

    Parameters
    ----------
    finer
        The channel at the next finer level.
    shape
        Of this level, z y x.
    """

    def __init__(self, finer: Source, shape: Shape3) -> None:
        self._finer = finer
        self.shape, self.dtype = shape, finer.dtype
        z, y, x = (-(-f // n) for f, n in zip(finer.shape, shape, strict=True))
        self.step: Shape3 = (z, y, x)
        z, y, x = (max(1, c // s) for c, s in zip(finer.chunks, self.step, strict=True))
        self.chunks: Shape3 = (z, y, x)

    def __getitem__(self, key: Slices) -> Shaped[np.ndarray, "z y x"]:
        z, y, x = (
            slice(s.start * f, min(s.stop * f, n))
            for s, f, n in zip(key, self.step, self._finer.shape, strict=True)
        )
        return block_means(self._finer[z, y, x], self.step)
