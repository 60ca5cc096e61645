"""Decoded voxels that cannot be real, as a damaged chunk without a checksum gives them.

Blosc decodes most flipped bytes without a word. Where one hurts, hundreds of voxels in a row become
noise; bytes of a voxel's upper half make it far higher than anything in tissue. Noise of the height
of tissue's own texture passes: no screen could tell, and hardly a network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Shaped

from cubeclf_core.tissue import Brightness, Statistics

HIGH = 8.0  # times a brain's bright level: by so much a voxel does not differ from its neighbours
OF_UINT16 = 0.3 * 65535  # or by so much, where that is less: random integers often differ by more
BLOCK = (16, 64)  # voxels along y and x
NOISY = 50  # of them that do differ; at most 9 in the worst debris that we know
BLOCKS = 2  # that are noisy: a scratch may be
FEW = 6  # in every fourth row of a plane: below, none of its blocks is noisy


@dataclass(frozen=True)
class Limits:
    """How much neighbours along x may differ, in grey values, for each channel."""

    jumps: tuple[float, ...]


def limits_from(statistics: Statistics, dtype: npt.DTypeLike) -> Limits:
    """Derive from a brain's statistics what its voxels can be.

    Parameters
    ----------
    statistics
        Of the brain.
    dtype
        Of its voxels.
    """
    dtype = np.dtype(dtype)
    widest = OF_UINT16 if dtype == np.uint16 else np.inf
    return Limits(tuple(_jump(channel, widest) for channel in statistics.channels))


def _jump(channel: Brightness, widest: float) -> float:
    bright = channel.high - min(channel.low, 0.0)
    return min(HIGH * bright, max(bright, widest)) or np.inf


def implausible(voxels: Shaped[np.ndarray, "c z y x"], limits: Limits) -> str | None:
    """Say why decoded voxels cannot be real, if so.

    They cannot if they hold noise that is far higher than tissue, or are not finite.

    Parameters
    ----------
    voxels
        A region, of the volume's dtype.
    limits
        Of its brain.

    Returns
    -------
    str or None
        What is wrong with them.
    """
    for c, (channel, jump) in enumerate(zip(voxels, limits.jumps, strict=True)):
        peaks = channel.max(axis=(1, 2))
        if not np.isfinite(peaks).all():
            return f"channel {c} holds values that are not finite"
        # Mostly none is so bright, or a look at every fourth row says that all are fine.
        suspects = np.flatnonzero(peaks > jump)
        if len(suspects) == 0:
            continue
        few = _spikes(channel[:, ::4][suspects], jump).sum(axis=(1, 2)) < FEW
        if (n := _count_noisy(_spikes(channel[suspects[~few]], jump))) >= BLOCKS:
            return (
                f"channel {c} holds noise in {n} blocks of {BLOCK[0]} × {BLOCK[1]} voxels: many "
                f"differ by over {jump:.5g} from those beside them, as no tissue does"
            )
    return None


def _spikes(planes: Shaped[np.ndarray, "z y x"], jump: float) -> Bool[np.ndarray, "z y x2"]:
    """Find the voxels that differ by more than `jump` from both neighbours along x, one way.

    Edges of objects do not, however sharp they are.
    """
    left, voxel, right = planes[..., :-2], planes[..., 1:-1], planes[..., 2:]
    lower, upper = np.minimum(left, right), np.maximum(left, right)
    limit = planes.dtype.type(jump)
    with np.errstate(over="ignore", invalid="ignore"):  # floats may be near the largest there is
        # Compared first, as a difference of unsigned numbers wraps around.
        above = (voxel > upper) & (voxel - upper > limit)
        return np.asarray(above | (voxel < lower) & (lower - voxel > limit))


def _count_noisy(spikes: Bool[np.ndarray, "z y x"]) -> int:
    """Count the blocks of which many voxels are spikes."""
    counts = spikes.astype(np.int32)
    for axis, size in zip((1, 2), BLOCK, strict=True):
        counts = np.add.reduceat(counts, np.arange(0, counts.shape[axis], size), axis)
    return int((counts > NOISY).sum())
