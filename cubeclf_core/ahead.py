"""Reading ahead: an iterator runs in a thread of its own, a few items before they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from itertools import islice
from queue import Empty, Full, Queue
from time import perf_counter
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
_LOOK_S = 0.1  # how often a full queue is asked whether anybody still reads


class ReadAhead(Generic[T]):
    """Take items from a generator in a thread; used in a ``with`` block, which ends the thread.

    Parameters
    ----------
    items
        What to read; it runs, and is closed, in the thread. What it raises is raised where its
        items are taken.
    ahead
        Items that wait at most.

    Attributes
    ----------
    reading_s
        Seconds that the thread has worked for its items.
    waiting_s
        Seconds that the reader of the items has waited for them.

    Examples
    --------
    >>> with ReadAhead(n * n for n in range(4)) as ahead:
    ...     print(list(ahead))
    [0, 1, 4, 9]
    """

    def __init__(self, items: Generator[T, None, None], ahead: int = 2) -> None:
        self.reading_s = self.waiting_s = 0.0
        self._items = items
        self._queue: Queue[tuple[list[T], BaseException | None]] = Queue(ahead)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="read ahead", daemon=True)

    def __enter__(self) -> ReadAhead[T]:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()
        self._thread.join()
        while True:  # memory of what nobody will take
            try:
                self._queue.get_nowait()
            except Empty:
                return

    def __iter__(self) -> Iterator[T]:
        while True:
            start = perf_counter()
            item, error = self._queue.get()
            self.waiting_s += perf_counter() - start
            if error is not None:
                raise error
            if not item:
                return
            yield item.pop()  # which nobody else keeps alive

    def _run(self) -> None:
        try:
            ended = False
            while not (ended or self._left.is_set()):
                start = perf_counter()
                item = list(islice(self._items, 1))
                self.reading_s += perf_counter() - start
                ended = not item  # asked now: once it is in the queue, its reader empties it
                self._put(item, None)
        except BaseException as error:
            self._put([], error)
        finally:
            self._items.close()

    def _put(self, item: list[T], error: BaseException | None) -> None:
        while not self._left.is_set():
            try:
                self._queue.put((item, error), timeout=_LOOK_S)
            except Full:
                continue
            return
