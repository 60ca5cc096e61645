"""In which order cells of a volume are decoded for cuboids at given places.

What each cuboid needs is known beforehand, so that every cell is decoded once, as far as memory
allows, and no cuboid waits longer than for its own cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cubeclf_core.axes import Shape3
from cubeclf_core.errors import VolumeError
from cubeclf_core.volumes import Volume

Integers = npt.NDArray[np.int64]
Box = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Visit:
    """A cell to decode, and the cuboids that have a part in it; those it completes come last."""

    who: Integers  # candidates
    completed: npt.NDArray[np.bool_]
    low: Integers  # (n, 3), the part of the cell that each needs, in the volume
    high: Integers

    @property
    def corner(self) -> Integers:
        """First voxel z y x of what is read."""
        return np.asarray(self.low.min(axis=0))

    def read(self, volume: Volume, n: int) -> Decoded:
        """Read what the cuboids need of the cell, of the first `n` channels."""
        box = volume.read(self.corner, self.high.max(axis=0), n)
        return Decoded(self, box, np.zeros(len(self.who), bool))

    def salvage(self, volume: Volume, n: int) -> Decoded:
        """Read as `read` does; where that fails, once more, what needs the same chunks at once."""
        try:
            return self.read(volume, n)
        except VolumeError as error:
            fault = str(error)
        corner = self.corner
        box = np.zeros((n, *(self.high.max(axis=0) - corner).tolist()), volume.dtype)
        lost = np.zeros(len(self.who), bool)
        for who in self._by_chunks(volume, n):
            low, high = self.low[who].min(axis=0), self.high[who].max(axis=0)
            try:
                part = volume.read(low, high, n, finite=False)
            except VolumeError:
                lost[who] = True
                continue
            finite = np.isfinite(part)
            for i in who.tolist() if not finite.all() else ():
                lost[i] = not finite[_slices(self.low[i] - low, self.high[i] - low)].all()
            # Groups overlap: what one has read is not undone by another that has not.
            np.copyto(box[_slices(low - corner, high - corner)], part, where=finite)
        return Decoded(self, box, lost, fault if lost.any() else None)

    def _by_chunks(self, volume: Volume, n: int) -> list[Integers]:
        """Group the cuboids, by number, whose parts lie in the same chunks."""
        chunks = np.concatenate([channel.chunks for channel in volume.channels[:n]])
        low, high = np.tile(self.low, n), np.tile(self.high, n)
        reach = np.concatenate([low // chunks, (high - 1) // chunks], axis=1)
        _, group = np.unique(reach, axis=0, return_inverse=True)
        group = group.reshape(-1)
        return [np.flatnonzero(group == number) for number in range(int(group.max()) + 1)]


def _slices(low: Integers, high: Integers) -> tuple[slice, ...]:
    """Every channel of a box."""
    return slice(None), *map(slice, low.tolist(), high.tolist())


class Decoded(NamedTuple):
    """A visit, what was read, and which of its cuboids lack a part because of what fault."""

    visit: Visit
    box: Box
    lost: npt.NDArray[np.bool_]
    fault: str | None = None


class Plan:
    """In which order cells are decoded, and which cuboids are in a batch.

    Cells come by in raster order, bundle after bundle. Cuboids are ranked such that those that are
    begun and completed in the same layers of cells are neighbours; batches are runs of ranks, so
    that every voxel is written once, to its final place, and no batch waits for a few of its own.

    Parameters
    ----------
    volume
        What is read.
    starts
        Shape (n, 3), first voxels of the cuboids; n > 0.
    extent
        Of the cuboids.
    cell
        What is decoded in one call.
    batch_size
        At most so many cuboids a batch.
    n_live
        How many cuboids may be in memory at once.
    """

    def __init__(
        self,
        volume: Volume,
        starts: Integers,
        extent: Shape3,
        cell: Integers,
        batch_size: int,
        n_live: int,
    ) -> None:
        shape = np.array(volume.shape)
        self.extent, self.starts = extent, starts
        self.low, self.high, self.padded = _needed(starts, extent, volume.shape)
        self.batch_size = min(batch_size, max(1, n_live // 4))
        self._cell, self._grid = cell, -(-shape // cell)
        self._first, self._last = self.low // cell, (self.high - 1) // cell
        # Layers are slowest along the axis along which the fewest cuboids straddle them.
        self._axes = np.argsort((np.array(extent) + cell) / shape, kind="stable")

        across = self._axes[1:]
        cell_width, least = cell[across], np.array(extent)[across]
        width = shape[across]
        # One batch more is in the caller's hands.
        while (self._arrange(width) + 1) * self.batch_size > n_live and (width > least).any():
            half = -(-width // 2)  # rounded up to whole cells, while there are any
            half = np.where(width > cell_width, -(-half // cell_width) * cell_width, half)
            axis = np.argmax(np.where(width > least, width / cell_width, 0))
            width[axis] = half[axis]

    def _arrange(self, width: Integers) -> int:
        """Bundle the candidates by `width`, rank them, and count the batches that live at once."""
        n, slow = len(self.starts), self._axes[0]
        column = self.low[:, self._axes[1:]] // width
        self._bundle = column[:, 0] * (column[:, 1].max() + 1) + column[:, 1]
        first, last = self._place(self._first), self._place(self._last)
        layers = self._first[:, slow], self._last[:, slow]
        self.by_rank = np.lexsort((last, *layers, self._bundle))
        turn = np.arange(1, n + 1)
        self.rank = np.empty(n, np.int64)
        self.rank[self.by_rank] = turn - 1
        # Cuboids within one cell are begun in their turn, others as soon as their first cell is.
        first, last = first[self.by_rank], last[self.by_rank]
        begun = first * (n + 1) + np.where(first == last, turn, 0)
        batches = np.arange(0, n, self.batch_size)
        begun = np.sort(np.minimum.reduceat(begun, batches))
        done = np.sort(np.maximum.reduceat(last * (n + 1) + turn, batches))
        return int((np.searchsorted(begun, done, side="right") - np.arange(len(done))).max())

    def _place(self, cells: Integers, who: Integers | slice = slice(None)) -> Integers:
        """Where a cell of each candidate comes in the order of decoding."""
        place: Integers = self._bundle[who]
        for axis in self._axes:
            place = place * self._grid[axis] + cells[:, axis]
        return place

    def visits(self) -> Iterator[Visit]:
        """Yield the cells in their order, worked out a layer at a time."""
        slow, *across = self._axes.tolist()
        spans = (self._last - self._first).max(axis=0)
        bottom = self._bundle * self._grid[slow] + self._first[:, slow]
        top = bottom + self._last[:, slow] - self._first[:, slow]
        order = np.argsort(bottom, kind="stable")
        bottoms = bottom[order]
        for layer in np.unique(np.unique(bottoms)[:, None] + np.arange(spans[slow] + 1)):
            begin, end = np.searchsorted(bottoms, (layer - spans[slow], layer + 1))
            near = order[begin:end]
            near = near[top[near] >= layer]
            who, cells = [], []
            for steps in product(*(range(spans[axis] + 1) for axis in across)):
                cell = self._first[near]
                cell[:, slow] = layer % self._grid[slow]
                cell[:, across] += steps
                needed = (cell <= self._last[near]).all(axis=1)
                who.append(near[needed])
                cells.append(cell[needed])
            yield from self._visits_of(np.concatenate(who), np.concatenate(cells))

    def _visits_of(self, who: Integers, cells: Integers) -> Iterator[Visit]:
        """Group pairs of a candidate and a cell by cell."""
        place = self._place(cells, who)
        completed = (cells == self._last[who]).all(axis=1)
        order = np.lexsort((self.rank[who], completed, place))
        who, cells, completed = who[order], cells[order], completed[order]
        low = np.maximum(self.low[who], cells * self._cell)
        high = np.minimum(self.high[who], (cells + 1) * self._cell)
        _, begins = np.unique(place[order], return_index=True)
        for begin, end in pairwise([*begins.tolist(), len(who)]):
            part = slice(begin, end)
            yield Visit(who[part], completed[part], low[part], high[part])


def _needed(
    starts: Integers, extent: Shape3, shape: Shape3
) -> tuple[Integers, Integers, npt.NDArray[np.bool_]]:
    """Find the voxels that each cuboid needs, first and stop, and whether it is reflected."""
    low, high = starts.copy(), starts + np.array(extent)
    padded = np.asarray(((low < 0) | (high > shape)).any(axis=1))
    for axis in range(3):
        index = reflect(low[padded, axis, None] + np.arange(extent[axis]), shape[axis])
        low[padded, axis], high[padded, axis] = index.min(axis=1), index.max(axis=1) + 1
    return low, high, padded


def reflect(index: Integers, n: int) -> Integers:
    """Mirror indices at the first and the last of `n` voxels, which are not repeated."""
    mirrored: Integers = np.abs((index + n - 1) % max(1, 2 * (n - 1)) - (n - 1))
    return mirrored
