from __future__ import annotations

import sys
import threading
from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cubeclf_core.ahead import ReadAhead


class Counter:
    """A generator that knows how far it has been asked, and whether it has been closed."""

    def __init__(self, n: int, fails_at: int | None = None) -> None:
        self.n, self.fails_at, self.given, self.closed = n, fails_at, 0, threading.Event()

    def items(self) -> Generator[int, None, None]:
        try:
            for i in range(self.n):
                if i == self.fails_at:
                    raise ValueError(f"no {i}")
                self.given = i + 1
                yield i
        finally:
            self.closed.set()


@given(st.integers(0, 20), st.integers(1, 4))
def test_items_come_in_order_and_the_thread_ends(n: int, ahead: int) -> None:
    counter = Counter(n)
    with ReadAhead(counter.items(), ahead) as reading:
        assert list(reading) == list(range(n))
    assert counter.closed.is_set()
    assert reading.reading_s >= 0 <= reading.waiting_s


def test_what_is_raised_in_the_thread_is_raised_at_its_place() -> None:
    counter = Counter(5, fails_at=3)
    seen = []
    with ReadAhead(counter.items()) as reading, pytest.raises(ValueError, match="no 3"):
        seen.extend(reading)
    assert seen == [0, 1, 2]
    assert counter.closed.is_set()


def test_who_leaves_early_leaves_no_thread_and_no_more_than_was_read_ahead() -> None:
    counter = Counter(1000)
    before = threading.active_count()
    with ReadAhead(counter.items(), 3) as reading:
        for item in reading:
            if item == 10:
                break
    assert threading.active_count() == before
    assert counter.closed.is_set()
    assert counter.given <= 10 + 1 + 3 + 1


def test_nothing_is_lost_when_the_reader_is_as_quick_as_the_thread() -> None:
    """An item that is taken while the thread has hardly let go of it."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            with ReadAhead(Counter(500).items(), 1) as reading:
                assert sum(1 for _ in reading) == 500
    finally:
        sys.setswitchinterval(interval)
