"""The schedule: which region each cuboid of each step is drawn from, a pure function of the seed.

A pool has slots; at each turn, every slot gives one cuboid of the region that it holds. In an
epoch, regions stand in random order along a closed line, each for as many draws as its decoding
pays for; those that are worth less than that stand there in some epochs only. All slots move along
the line, one draw a turn, at equal distances. So

* a region is drawn from in proportion to its measure;
* the regions that slots hold at one time are distinct wherever there are enough of them, and where
  they are few, slots share them evenly;
* where a slot stands is looked up, not counted up: any step can be asked for.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_EVEN = 16  # visits of a region that a line holds at least, where slots have to share regions
_VISITS = 32  # regions that a slot goes through in an epoch, at least: the next begins in others


@dataclass(frozen=True)
class Draws:
    """The draws of one step.

    Attributes
    ----------
    slot
        Shape (n,), which slot.
    epoch
        Shape (n,).
    lap
        Shape (n,), how often the slot has passed the end of the line.
    entry
        Shape (n,), which entry of the epoch's line: one region, taken once.
    number
        Shape (n,), which draw of the entry, from 0.
    """

    slot: Ints
    epoch: Ints
    lap: Ints
    entry: Ints
    number: Ints


@dataclass(frozen=True)
class _Line:
    """The regions of an epoch in their order, and where each begins along the line."""

    region: Ints
    begin: Ints  # (n + 1,): the last is the line's length
    offset: int  # where the first slot begins; chosen at random, or the first entry would be rare


class Schedule:
    """Lay out the order of draws.

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

    Attributes
    ----------
    n_slots
        Regions live at a time.
    distinct
        Whether those that a batch draws from are.
    resident
        Whether all regions stay live, so that none has to retire.
    """

    def __init__(
        self, weights: Floats, uses: Ints, *, batch_size: int, most_slots: int, seed: int
    ) -> None:
        assert len(weights) == len(uses) > 0
        assert weights.min() > 0
        assert uses.min() >= 1
        self._weights, self._uses, self._seed = weights, uses, seed
        self._batch_size = batch_size
        # No more slots than regions of the largest one's measure, or it would be in two of them.
        self.resident = len(weights) <= most_slots
        # What stands on the line for a region comes in units: a whole visit, or single draws.
        self._unit = np.ones_like(uses) if self.resident else uses
        # The fewer regions there are, the more the length of the line varies between epochs.
        apart = 1.02 + 4 / math.sqrt(len(weights))
        longest = int(uses.max())
        room = (longest // self._unit) * self._unit  # what a region may take between two slots
        distinct = int((room / weights).min() / (longest * apart))
        most_slots = min(most_slots, max(distinct, batch_size))
        # With room for several batches' regions, a slot takes part in every n-th batch; with room
        # for less than one, it gives several cuboids to each.
        self.turns_apart = max(1, most_slots // batch_size)
        self.per_slot = -(-batch_size // most_slots)
        self.n_slots = -(-batch_size // self.per_slot) * self.turns_apart
        self.distinct = distinct >= batch_size and self.per_slot == 1
        if not self.distinct:
            apart *= _EVEN
        self._length = max(float((uses / weights).min()), apart * self.n_slots * longest)
        per_visit = 1 / float((weights / uses).sum())
        self._turns = int(max(self._length / self.n_slots, _VISITS * per_visit))
        self._lines: OrderedDict[int, _Line] = OrderedDict()

    def draws(self, step: int, items: range) -> Draws:
        """Say where some items of a step's batch are drawn from."""
        item = np.arange(items.start, items.stop)
        if self.turns_apart > 1:
            turn = np.full(len(item), step // self.turns_apart)
            slot = item * self.turns_apart + self._order(step)[items.start : items.stop]
        else:
            turn = step * self.per_slot + item % self.per_slot
            slot = item // self.per_slot
        epoch = turn // self._turns
        lap, entry, number = (np.empty_like(slot) for _ in range(3))
        for e in np.unique(epoch):
            line, these = self._line(int(e)), epoch == e
            length = int(line.begin[-1])
            begin = line.offset + slot[these] * length // self.n_slots
            lap[these], at = np.divmod(begin + turn[these] % self._turns, length)
            entry[these] = np.searchsorted(line.begin, at, side="right") - 1
            number[these] = at - line.begin[entry[these]]
        return Draws(slot, epoch, lap, entry, number)

    def region(self, epoch: int, entry: int) -> int:
        """Which region an entry of an epoch takes."""
        return int(self._line(epoch).region[entry])

    def epoch_of(self, step: int) -> int:
        """The epoch that a step begins in."""
        turn = step // self.turns_apart if self.turns_apart > 1 else step * self.per_slot
        return turn // self._turns

    def _order(self, step: int) -> Ints:
        """Which of its slots each item of the batch uses: all of them in turn, shuffled anew."""
        turn, part = divmod(step, self.turns_apart)
        random = np.random.default_rng((self._seed, 1, turn))
        slots = np.tile(np.arange(self.turns_apart), (self._batch_size, 1))
        return np.asarray(random.permuted(slots, axis=1)[:, part])

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
        unit, wanted = self._unit[order], self._length * self._weights[order]
        # Wanted for a part of a unit, it is taken in some epochs and not in others: systematic
        # sampling, with chances in proportion.
        ends = np.floor(np.cumsum(wanted / unit) + random.random())
        draws = np.diff(ends, prepend=0.0) * unit
        taken = draws > 0
        begin = np.concatenate([[0], np.cumsum(draws[taken])]).astype(np.int64)
        return _Line(order[taken], begin, int(random.integers(begin[-1])))
