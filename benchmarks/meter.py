"""What work costs: processor time of all threads, and time on the clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_POLL_S = 0.02
_IDLE = 0.05  # of one core, below which nothing runs but Python's own threads


@dataclass
class Cost:
    """Seconds; filled in when the work is done."""

    cpu: float = 0.0
    wall: float = 0.0


@dataclass(frozen=True)
class Rate:
    """Cuboids a second of processor time, and of the clock."""

    cpu: float
    wall: float


@contextmanager
def metered() -> Iterator[Cost]:
    """Measure a block together with what its threads still do after it, and nothing before it.

    Yields
    ------
    Cost
        Of the block, once it has ended.
    """
    _rest()
    cost = Cost()
    cpu, wall = time.process_time(), time.perf_counter()
    yield cost
    end = _rest()
    cost.cpu, cost.wall = time.process_time() - cpu, end - wall


def _rest() -> float:
    """Wait until no thread computes; say when the last one did."""
    end, used = time.perf_counter(), time.process_time()
    while True:
        time.sleep(_POLL_S)
        now, total = time.perf_counter(), time.process_time()
        if total - used < _IDLE * _POLL_S:
            return end
        end, used = now, total
