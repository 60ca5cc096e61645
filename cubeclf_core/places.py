"""Places: where in a volume cuboids are drawn, as a measure over their origins.

Each kind of place says how much of its measure lies in each tile, and draws origins within a tile
in proportion to it, so that over all tiles, origins follow the measure.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from jaxtyping import Shaped

from cubeclf_core.geometry import starts_around
from cubeclf_core.tiles import Ints, Tiling

Floats = npt.NDArray[np.float64]

_DRAWS_PER_CANDIDATE = 8  # of a region; more would show one candidate again and again
_PEAK_BLOCK = (2, 4, 4)  # voxels; a peak is the brightest of a block of them
_PEAKS = 64  # per region, at most
_PEAK_CONTRAST = 5.0  # above the median, in robust standard deviations, both of block maxima


@runtime_checkable
class Places(Protocol):
    """A measure over the origins of a volume's cuboids."""

    weights: Floats
    """Shape (n,), of each tile; its sum is 1."""

    most_draws: Floats
    """Shape (n,), how many draws a tile is good for, however much of it was decoded."""

    def draw(
        self, tile: int, n: int, random: np.random.Generator, voxels: Shaped[np.ndarray, "c z y x"]
    ) -> Ints:
        """Draw n origins within a tile, whose decoded voxels are given; shape (n, 3)."""


class Tissue:
    """All origins whose cuboid has its middle in tissue, alike.

    Parameters
    ----------
    tiling
        Of the volume.
    mask
        Where tissue is, over the whole volume at any resolution, z y x; some of it true.

    Raises
    ------
    ValueError
        If no origin's middle lies in tissue.
    """

    def __init__(self, tiling: Tiling, mask: npt.NDArray[np.bool_]) -> None:
        self._tiling = tiling
        self._mask = mask
        # Which mask voxel the middle of each origin's cuboid lies in, per axis.
        self._cells = [
            ((np.arange(n) + axis.extent / 2) / (n + axis.extent - 1) * m).astype(np.int64)
            for axis, n, m in zip(tiling.axes, tiling.n_origins, mask.shape, strict=True)
        ]
        counts = mask.astype(np.float32)  # holds whole numbers up to 2²⁴ exactly
        for axis, cells, m in zip(tiling.axes, self._cells, mask.shape, strict=True):
            tile_of = np.repeat(np.arange(len(axis.start)), axis.stop - axis.start)
            table = np.zeros((len(axis.start), m), np.float32)
            np.add.at(table, (tile_of, cells), 1)
            counts = np.moveaxis(np.tensordot(table, counts, (1, 0)), 0, -1)  # z y x again, thrice
        self.most_draws = counts.ravel().astype(np.float64)
        total = self.most_draws.sum()
        if total == 0:
            raise ValueError("no cuboid has its middle in tissue")
        self.weights = self.most_draws / total

    def draw(
        self, tile: int, n: int, random: np.random.Generator, voxels: Shaped[np.ndarray, "c z y x"]
    ) -> Ints:
        """Draw n origins within a tile; see `Places`."""
        start, stop = self._tiling.origins(tile)
        within = random.random((n, 3))
        cells, firsts, counts = zip(
            *(
                _runs(of[a:b])
                for of, a, b in zip(self._cells, start.tolist(), stop.tolist(), strict=True)
            ),
            strict=True,
        )
        mask = self._mask[np.ix_(*cells)]
        if mask.all():  # as nearly everywhere
            return start + (within * (stop - start)).astype(np.int64)
        z, y, x = counts
        weights = mask * (1.0 * z[:, None, None] * y[:, None] * x)
        cell = np.unravel_index(choose(np.cumsum(weights), n, random), weights.shape)
        drawn = [
            a + first[i] + (u * count[i]).astype(np.int64)
            for a, first, count, i, u in zip(start, firsts, counts, cell, within.T, strict=True)
        ]
        return np.stack(drawn, axis=1)

    def holds(self, origins: Ints) -> npt.NDArray[np.bool_]:
        """Tell of which origins, shape (n, 3), the cuboid has its middle in tissue."""
        z, y, x = (of[at] for of, at in zip(self._cells, origins.T, strict=True))
        return np.asarray(self._mask[z, y, x])


class Around:
    """Origins of the cuboids around positions, each position alike, shifted by a jitter.

    Parameters
    ----------
    tiling
        Of the volume.
    positions
        Shape (n, 3), z y x in the volume's voxels, n at least 1.
    jitter
        Largest shift along z y x, in voxels, drawn uniformly among those that stay in the volume.
    """

    def __init__(self, tiling: Tiling, positions: Floats, jitter: Ints) -> None:
        self._tiling = tiling
        self._low, self._high = _boxes(positions, jitter, tiling)
        tiles, which, shares = self._overlaps()
        order = np.lexsort((which, tiles))
        self._which, self._shares = which[order], shares[order]
        n_tiles = int(np.prod(tiling.shape))
        self._ends = np.searchsorted(tiles[order], np.arange(n_tiles + 1))
        inside = np.bincount(tiles, shares, n_tiles)
        self.weights = inside / inside.sum()
        self.most_draws = np.ceil(_DRAWS_PER_CANDIDATE * inside)

    def draw(
        self, tile: int, n: int, random: np.random.Generator, voxels: Shaped[np.ndarray, "c z y x"]
    ) -> Ints:
        """Draw n origins within a tile; see `Places`."""
        these = slice(self._ends[tile], self._ends[tile + 1])
        which = self._which[these][choose(np.cumsum(self._shares[these]), n, random)]
        start, stop = self._tiling.origins(tile)
        low, high = np.maximum(self._low[which], start), np.minimum(self._high[which], stop)
        return _within(low, high, random)

    def _overlaps(self) -> tuple[Ints, Ints, Floats]:
        """Every pair of a tile and a box that meet, and the box's share that lies in the tile."""
        axes = self._tiling.axes
        first = [
            np.searchsorted(axis.start, low, "right") - 1
            for axis, low in zip(axes, self._low.T, strict=True)
        ]
        last = [
            np.searchsorted(axis.start, high - 1, "right") - 1
            for axis, high in zip(axes, self._high.T, strict=True)
        ]
        most = [int((b - a).max()) + 1 for a, b in zip(first, last, strict=True)]
        pairs = []
        for steps in np.ndindex(*most):
            tile = [a + step for a, step in zip(first, steps, strict=True)]
            which = np.flatnonzero(
                np.all([t <= b for t, b in zip(tile, last, strict=True)], axis=0)
            )
            tile = [t[which] for t in tile]
            share = np.ones(len(which))
            for axis, t, low, high in zip(
                axes, tile, self._low[which].T, self._high[which].T, strict=True
            ):
                met = np.minimum(high, axis.stop[t]) - np.maximum(low, axis.start[t])
                share *= met / (high - low)
            pairs.append((np.ravel_multi_index(tile, self._tiling.shape), which, share))
        tiles, which, shares = (np.concatenate(part) for part in zip(*pairs, strict=True))
        return tiles, which, shares


class Peaks:
    """Cuboids around the bright spots that are found in a tile as it is decoded, with a jitter.

    Tiles are chosen as for tissue; in one without a bright spot in tissue, origins are too.

    Parameters
    ----------
    tissue
        Where to look.
    tiling
        Of the volume.
    jitter
        As in `Around`.
    """

    def __init__(self, tissue: Tissue, tiling: Tiling, jitter: Ints) -> None:
        self._tissue, self._tiling, self._jitter = tissue, tiling, jitter
        self.weights, self.most_draws = tissue.weights, tissue.most_draws

    def draw(
        self, tile: int, n: int, random: np.random.Generator, voxels: Shaped[np.ndarray, "c z y x"]
    ) -> Ints:
        """Draw n origins within a tile; see `Places`."""
        start, stop = self._tiling.origins(tile)
        peaks = find_peaks(voxels[0])
        low, high = _boxes(peaks + start, self._jitter, self._tiling)
        low, high = np.maximum(low, start), np.minimum(high, stop)
        within = (low < high).all(axis=1)
        if not within.any():
            return self._tissue.draw(tile, n, random, voxels)
        which = np.flatnonzero(within)[random.integers(0, int(within.sum()), n)]
        drawn = _within(low[which], high[which], random)
        outside = ~self._tissue.holds(drawn)
        if outside.any():
            drawn[outside] = self._tissue.draw(tile, int(outside.sum()), random, voxels)
        return drawn


class Mixed:
    """Two kinds of places, the second with a given share of all draws.

    Parameters
    ----------
    first, second
        Of one tiling.
    share
        Of the second; above 0 and below 1.
    """

    def __init__(self, first: Places, second: Places, share: float) -> None:
        self._first, self._second = first, second
        self.weights = (1 - share) * first.weights + share * second.weights
        with np.errstate(divide="ignore", invalid="ignore"):
            self._share = np.nan_to_num(share * second.weights / self.weights)
            good_for = (first.most_draws / (1 - self._share), second.most_draws / self._share)
        self.most_draws = np.fmin(*good_for)  # 0 / 0 is of no consequence: the other kind decides

    def draw(
        self, tile: int, n: int, random: np.random.Generator, voxels: Shaped[np.ndarray, "c z y x"]
    ) -> Ints:
        """Draw n origins within a tile; see `Places`."""
        second = random.random(n) < self._share[tile]
        drawn = np.empty((n, 3), np.int64)
        for places, rows in ((self._first, ~second), (self._second, second)):
            if rows.any():
                drawn[rows] = places.draw(tile, int(rows.sum()), random, voxels)
        return drawn


def find_peaks(signal: Shaped[np.ndarray, "z y x"]) -> Floats:
    """Find the brightest spots of a region: blocks brighter than all around them and than most.

    Parameters
    ----------
    signal
        Raw counts.

    Returns
    -------
    numpy.ndarray
        Shape (n, 3), z y x in voxels, the middle of a block of 2 × 4 × 4; at most 64.
    """
    blocks = [n // block for n, block in zip(signal.shape, _PEAK_BLOCK, strict=True)]
    if min(blocks) < 3:
        return np.empty((0, 3))
    brightest = signal
    for axis, (n, block) in enumerate(zip(blocks, _PEAK_BLOCK, strict=True)):
        whole = brightest.take(range(n * block), axis)
        split = whole.reshape(*whole.shape[:axis], n, block, *whole.shape[axis + 1 :])
        brightest = split.max(axis=axis + 1)
    middle = brightest[1:-1, 1:-1, 1:-1]
    is_peak = np.ones(middle.shape, bool)
    for dz, dy, dx in np.ndindex(3, 3, 3):
        nz, ny, nx = middle.shape
        around = brightest[dz : dz + nz, dy : dy + ny, dx : dx + nx]
        if (dz, dy, dx) != (1, 1, 1):
            is_peak &= middle > around if (dz, dy, dx) < (1, 1, 1) else middle >= around
    values = brightest.astype(np.float64)
    median = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - median))
    is_peak &= middle > median + _PEAK_CONTRAST * spread
    found = np.argwhere(is_peak)
    order = np.argsort(-middle[is_peak].astype(np.float64), kind="stable")[:_PEAKS]
    middles: Floats = (found[order] + 1.5) * np.array(_PEAK_BLOCK) - 0.5
    return middles


def _boxes(positions: Floats, jitter: Ints, tiling: Tiling) -> tuple[Ints, Ints]:
    """Origins around positions: the first of each box, and the one after its last."""
    starts = starts_around(positions, tiling.extent)
    last = np.array(tiling.n_origins) - 1
    return (starts - jitter).clip(0, last), (starts + jitter).clip(0, last) + 1


def _within(low: Ints, high: Ints, random: np.random.Generator) -> Ints:
    """Draw one origin in each box, all of a box alike."""
    return low + (random.random(low.shape) * (high - low)).astype(np.int64)


def _runs(values: Ints) -> tuple[Ints, Ints, Ints]:
    """Find the values of a rising sequence, where each begins, and how often it comes."""
    begins = np.concatenate([[0], np.flatnonzero(np.diff(values)) + 1])
    return values[begins], begins, np.diff(begins, append=len(values))


def choose(ends: Floats, n: int, random: np.random.Generator) -> Ints:
    """Draw n indices in proportion to weights, whose running sums are given."""
    drawn = np.searchsorted(ends, random.random(n) * ends[-1], side="right")
    return np.asarray(np.minimum(drawn, len(ends) - 1))
