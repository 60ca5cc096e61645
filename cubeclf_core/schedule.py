"""The schedule: which region each cuboid of each step is drawn from, a pure function of the seed.

Where all regions fit into memory, each step draws evenly from all of them (`ResidentSchedule`).
Else there is a pool with slots (`PoolSchedule`). At each turn, every slot gives one cuboid of the
region that it holds. In an epoch, regions stand in random order along a closed line, each for as
many draws as its decoding pays for; those that are worth less than that stand there in some epochs
only. All slots move along the line, one draw a turn, at equal distances. So

* a region is drawn from in proportion to its measure;
* the regions of a batch are distinct wherever there are enough of them, and where they are few,
  slots share them evenly;
* where a slot stands is looked up, not counted up: any step can be asked for.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_LAP = 1 << 32  # more visits than an entry has in a lap
_VISITS = 32  # regions that a slot goes through in an epoch, at least: the next begins in others


@dataclass(frozen=True)
class Draws:
    """The draws of some items of one step; every array has the shape (n,).

    Attributes
    ----------
    region
        Which region to draw from.
    slot
        Which slot of the pool holds it.
    epoch, entry
        Where that is written in the schedule.
    visit
        What tells this visit of the slot to the entry from its others.
    number
        Which draw of the visit, from 0.
    """

    region: Ints
    slot: Ints
    epoch: Ints
    entry: Ints
    visit: Ints
    number: Ints


@runtime_checkable
class Schedule(Protocol):
    """Says which regions are drawn from.

    Attributes
    ----------
    n_live
        Regions in memory at a time.
    distinct
        Whether those that a batch draws from are.
    """

    n_live: int
    distinct: bool

    def draws(self, step: int, items: range) -> Draws:
        """Say where some items of a step's batch are drawn from."""

    def epoch_of(self, step: int) -> int:
        """The epoch that a step begins in."""

    def length(self, region: int) -> int:
        """How many draws a visit to a region has."""


class ResidentSchedule:
    """Draws evenly from regions that all stay in memory.

    Parameters
    ----------
    weights
        Shape (n,), each region's share of all draws; their sum is 1, all above 0.
    batch_size
        Draws a step.
    seed
        Of the order.
    """

    def __init__(self, weights: Floats, *, batch_size: int, seed: int) -> None:
        self._weights, self._batch_size, self._seed = weights, batch_size, seed
        self.n_live = len(weights)
        self.distinct = bool(weights.max() * batch_size <= 1)

    def draws(self, step: int, items: range) -> Draws:
        """Say where some items are drawn from: systematic sampling of regions in random order."""
        random = np.random.default_rng((self._seed, 1, step))
        order = random.permutation(len(self._weights))
        ends = np.cumsum(self._weights[order])
        at = (np.arange(self._batch_size) + random.random()) / self._batch_size * ends[-1]
        drawn = order[np.searchsorted(ends, at, side="right").clip(max=len(order) - 1)]
        item = np.arange(items.start, items.stop)
        region = random.permutation(drawn)[items.start : items.stop]
        none = np.zeros_like(item)
        return Draws(region, item, none + step, item, none, none)

    def epoch_of(self, step: int) -> int:
        """The epoch that a step begins in: each step is its own."""
        return step

    def length(self, region: int) -> int:
        """How many draws a visit has: there is no need to stay."""
        return 1


@dataclass(frozen=True)
class _Line:
    """The regions of an epoch in their order, and where each begins along the line."""

    region: Ints
    begin: Ints  # (n + 1,): the last is the line's length
    offset: int  # where the first slot begins; chosen at random, or the first entry would be rare


class PoolSchedule:
    """Takes regions into a pool's slots, each for as many draws as its decoding pays for.

    Parameters
    ----------
    weights
        Shape (n,), each region's share of all draws; their sum is 1, all above 0.
    uses
        Shape (n,), integers of at least 1: how many draws a region gives before it retires.
    batch_size
        Draws a step.
    most_slots
        Regions that may be live, at least 1.
    seed
        Of the order.
    """

    def __init__(
        self, weights: Floats, uses: Ints, *, batch_size: int, most_slots: int, seed: int
    ) -> None:
        assert len(weights) == len(uses) > 0
        assert weights.min() > 0
        assert uses.min() >= 1
        self._weights, self._uses, self._seed = weights, uses, seed
        self._batch_size = batch_size
        # With room for several batches' regions, a slot takes part in every n-th batch; with room
        # for less than one, it gives several cuboids to each.
        self._turns_apart = max(1, most_slots // batch_size)
        self._per_slot = -(-batch_size // most_slots)
        self.n_live = -(-batch_size // self._per_slot) * self._turns_apart
        # The fewer regions there are, the more the length of the line varies between epochs.
        apart = 1.02 + 4 / math.sqrt(len(weights))
        longest = int(uses.max())
        self._length = max(float((uses / weights).min()), apart * self.n_live * longest)
        per_visit = 1 / float((weights / uses).sum())
        self._turns = int(max(self._length / self.n_live, _VISITS * per_visit))
        # A region takes up as much of the line as it is worth, in whole visits.
        taken = (np.ceil(self._length * weights / uses) * uses).max() * apart
        between = self._length / self.n_live
        self._all_distinct = bool(taken <= between)
        self.distinct = self._per_slot == 1 and bool(taken <= between * self._turns_apart)
        self._lines: OrderedDict[int, _Line] = OrderedDict()

    def draws(self, step: int, items: range) -> Draws:
        """Say where some items of a step's batch are drawn from."""
        item = np.arange(items.start, items.stop)
        if self._turns_apart > 1:
            turn = np.full(len(item), step // self._turns_apart)
            slot = item * self._turns_apart + self._order(step)[items.start : items.stop]
        else:
            turn = step * self._per_slot + item % self._per_slot
            slot = item // self._per_slot
        epoch = turn // self._turns
        lap, entry, number, region = (np.empty_like(slot) for _ in range(4))
        for e in np.unique(epoch):
            line, these = self._line(int(e)), epoch == e
            length = int(line.begin[-1])
            begin = line.offset + slot[these] * length // self.n_live
            lap[these], at = np.divmod(begin + turn[these] % self._turns, length)
            entry[these] = np.searchsorted(line.begin, at, side="right") - 1
            number[these] = at - line.begin[entry[these]]
            region[these] = line.region[entry[these]]
        again, number = np.divmod(number, self._uses[region])
        return Draws(region, slot, epoch, entry, lap * _LAP + again, number)

    def epoch_of(self, step: int) -> int:
        """The epoch that a step begins in."""
        turn = step // self._turns_apart if self._turns_apart > 1 else step * self._per_slot
        return turn // self._turns

    def length(self, region: int) -> int:
        """How many draws a visit to a region has."""
        return int(self._uses[region])

    def _order(self, step: int) -> Ints:
        """Which of its slots each item of the batch uses: all of them in turn, shuffled anew.

        Each item shuffles for itself; but where neighbouring slots may hold the same region, all
        items use the slot of the same number, so that those of a batch are far apart.
        """
        turn, part = divmod(step, self._turns_apart)
        random = np.random.default_rng((self._seed, 1, turn))
        rows = self._batch_size if self._all_distinct else 1
        slots = np.tile(np.arange(self._turns_apart), (rows, 1))
        shuffled = random.permuted(slots, axis=1)[:, part]
        return np.broadcast_to(shuffled, (self._batch_size,))

    def _line(self, epoch: int) -> _Line:
        if epoch not in self._lines:
            self._lines[epoch] = self._lay_out(epoch)
            while len(self._lines) > 2:
                self._lines.popitem(last=False)
        self._lines.move_to_end(epoch)
        return self._lines[epoch]

    def _lay_out(self, epoch: int) -> _Line:
        random = np.random.default_rng((self._seed, 2, epoch))
        order = random.permutation(len(self._weights))
        uses, wanted = self._uses[order], self._length * self._weights[order]
        # Wanted for a part of a visit, a region is taken in some epochs and not in others:
        # systematic sampling, with chances in proportion.
        ends = np.floor(np.cumsum(wanted / uses) + random.random())
        draws = np.diff(ends, prepend=0.0) * uses
        taken = draws > 0
        begin = np.concatenate([[0], np.cumsum(draws[taken])]).astype(np.int64)
        return _Line(order[taken], begin, int(random.integers(begin[-1])))
