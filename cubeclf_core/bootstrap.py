"""Resampling of candidates by blocks of space, for intervals that neighbours do not narrow.

Neighbouring candidates share voxels, tissue, staining and light, so a mistake seldom comes alone:
a bootstrap that draws single candidates takes them for independent, and its intervals are too
narrow. Here a brain is cut into cubes, and all candidates of a cube are drawn together (a block
bootstrap: Künsch 1989, doi:10.1214/aos/1176347265; of space: Lahiri 2003).

Blocks are drawn within each brain, as often as it has blocks. So an interval says how far a number
would move with other tissue of the *same* brains; how far it moves from brain to brain is what the
brains beside one another show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BLOCK_UM = 150.0
_AT_A_TIME = 4_000_000  # weights, so that a few arrays of them fit any memory


@dataclass(frozen=True)
class Blocks:
    """Which candidates are resampled together.

    Attributes
    ----------
    block
        Shape (n,), the block of each candidate, counted from 0.
    first, size
        Shape (blocks,), for each block the first block of its brain, and how many that brain has.
    """

    block: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]

    def count(self, index: npt.NDArray[np.int64]) -> int:
        """How many blocks some candidates lie in."""
        return len(np.unique(self.block[index]))


def spatial_blocks(
    positions_um: npt.NDArray[np.float64], brains: Sequence[str], block_um: float = BLOCK_UM
) -> Blocks:
    """Cut every brain into cubes.

    Parameters
    ----------
    positions_um
        Shape (n, 3), z y x in µm. A candidate whose place is not known (NaN) is a block of its own.
    brains
        Name of the brain of each candidate.
    block_um
        Edge of a cube. It should be longer than the cuboid, so that few candidates share voxels
        over a border.

    Returns
    -------
    Blocks
        The grid of a brain starts at its lowest z, y and x.
    """
    assert len(positions_um) == len(brains)
    names, brain = np.unique(np.asarray(brains, dtype=object).astype(str), return_inverse=True)
    cube = np.zeros((len(brain), 4), np.int64)
    cube[:, 0] = brain
    known = np.isfinite(positions_um).all(axis=1)
    for number in range(len(names)):
        of_it = known & (brain == number)
        if of_it.any():
            inside = positions_um[of_it] - positions_um[of_it].min(axis=0)
            cube[of_it, 1:] = np.floor(inside / block_um)
    cube[~known, 1] = -1 - np.arange(int((~known).sum()))
    _, block = np.unique(cube, axis=0, return_inverse=True)
    block = block.ravel()
    brain_of = np.zeros(int(block.max(initial=-1)) + 1, np.int64)
    brain_of[block] = brain
    n_blocks = np.bincount(brain_of, minlength=len(names))
    starts = np.cumsum(n_blocks) - n_blocks  # blocks are sorted by brain
    return Blocks(block, starts[brain_of], n_blocks[brain_of])


def resampled_weights(
    blocks: Blocks, n_resamples: int, seed: int
) -> Iterator[npt.NDArray[np.int32]]:
    """Draw blocks with replacement, and tell how often each candidate was drawn.

    Parameters
    ----------
    blocks
        What is drawn.
    n_resamples
        How often.
    seed
        Resample i depends on the seed and i only.

    Yields
    ------
    numpy.ndarray
        Shape (some, n): the next resamples, `n_resamples` in all.
    """
    at_a_time = max(1, _AT_A_TIME // max(1, len(blocks.block)))
    for start in range(0, n_resamples, at_a_time):
        drawn = [_draw(blocks, seed, i) for i in range(start, min(start + at_a_time, n_resamples))]
        yield np.stack(drawn)[:, blocks.block]


def _draw(blocks: Blocks, seed: int, item: int) -> npt.NDArray[np.int32]:
    """How often each block is drawn, as many draws in each brain as it has blocks."""
    share = np.random.default_rng((seed, item)).random(len(blocks.size))
    drawn = blocks.first + (share * blocks.size).astype(np.int64)
    return np.bincount(drawn, minlength=len(drawn)).astype(np.int32)


def interval(values: npt.NDArray[np.float64], level: float = 0.95) -> tuple[float, float] | None:
    """Give the percentiles that hold a share of resampled values between them.

    Parameters
    ----------
    values
        Shape (r,), NaN where a resample did not define the value, as with one class only.
    level
        The share.

    Returns
    -------
    tuple of float, or None
        None if fewer than half of the resamples define it.
    """
    known = values[np.isfinite(values)]
    if len(known) < max(1, len(values) / 2):
        return None
    low, high = np.quantile(known, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
