"""Signals that ask a process to stop, heard now and obeyed where it is safe."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_STOPPING = ("SIGINT", "SIGTERM", "SIGUSR1")  # Ctrl-C; SLURM, before it takes a machine back


class StopRequest:
    """Whether somebody has asked the process to stop; it stops where it is safe."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn Ctrl-C, SIGTERM and SIGUSR1 into a request; a second one of a kind acts at once.

    Windows has no SIGUSR1, and sends no SIGTERM that could be caught. Only the main thread hears
    signals: in another, a worker's, nothing is ever requested.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        request.signal = signal.Signals(number).name
        signal.signal(number, before[number])

    for name in _STOPPING:
        if hasattr(signal, name):
            number = getattr(signal, name)
            before[number] = signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
