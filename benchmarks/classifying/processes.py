"""Commands in processes of their own: how long they take, and what of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from cubeclf_core.errors import RunFailed

_POLL_S = 0.2
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Usage:
    """What a command took, from its start to its end.

    Attributes
    ----------
    seconds
        On the clock.
    cpu_seconds
        Of all its processes.
    peak_bytes
        Of all its processes together, what they share counted once where the system tells.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def ours(command: str, *words: object) -> list[str]:
    """Command line of one of `finetune`'s commands, as installed but for this very source."""
    code = f"from finetune.commands import {command}; {command}()"
    return [sys.executable, "-c", code, *map(str, words)]


def measured(command: Sequence[str], log: Path) -> Usage:
    """Run a command with nothing beside it, and measure it.

    Raises
    ------
    RunFailed
        If it fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": str(_ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # installed programs are compiled
    before, start = _children_seconds(), time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=_ROOT
        )
        watched = _Watched(process.pid)
        code = process.wait()
    seconds = time.perf_counter() - start
    peak = watched.end()
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        raise RunFailed(
            f"{' '.join(command[:5])} … ended with exit code {code}: {(lines or [''])[-1]} "
            f"(all it said is in {log})"
        )
    return Usage(seconds, _children_seconds() - before, peak)


def _children_seconds() -> float:
    used = os.times()  # of children, those that have ended
    return used.children_user + used.children_system


class _Watched:
    """The memory of a process and all that it started, looked at again and again."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak = pid, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> int:
        """Stop watching; give the peak in bytes."""
        self._ended.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_S):
            try:
                first = psutil.Process(self._pid)
                everyone = [first, *first.children(recursive=True)]
            except psutil.Error:
                return
            self._peak = max(self._peak, sum(map(_memory, everyone)))


def _memory(process: psutil.Process) -> int:
    try:
        told = process.memory_full_info()
        return int(getattr(told, "pss", told.rss))  # forked workers share most of theirs
    except psutil.Error:  # it has ended, or is not ours to look at
        return 0
