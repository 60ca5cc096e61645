"""Code that runs in a process of its own, to be killed or told to stop."""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

_LOADED_ONCE = ["pretrain.run", "finetune.run"]


def _run(code: str, words: list[str], told: Path) -> None:
    """Be `python -W error -c code words`, but for what has been loaded already."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    with told.open("wb") as file, Path(os.devnull).open("wb") as nowhere:
        os.dup2(file.fileno(), 2)
        os.dup2(nowhere.fileno(), 1)
    sys.argv = ["-c", *words]
    warnings.simplefilter("error")
    exec(code, {"__name__": "__main__"})


class Started:
    """A process with as much of `subprocess.Popen` as tests ask of it.

    It is forked from one that has loaded torch and all else, which takes longer than most of what
    is tested here. What happens as Python ends is not seen so; the test of Ctrl-C starts Python
    afresh.

    Parameters
    ----------
    told
        File for what it writes to standard error.
    """

    def __init__(self, code: str, words: list[str], told: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_LOADED_ONCE)
        told.touch()
        self._told = told
        # A daemon ends with the tests, if one of them fails and leaves it running.
        self._process = context.Process(target=_run, args=(code, words, told), daemon=True)
        self._process.start()
        self.kill = self._process.kill

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def told(self) -> str:
        """What it has written to standard error by now."""
        return self._told.read_text(encoding="utf-8")

    def finish(self, seconds: float = 240) -> tuple[int, list[str]]:
        """Wait for the end; gives the exit code and the lines of standard error."""
        self._process.join(seconds)
        code = self._process.exitcode
        assert code is not None, f"still running after {seconds} s: {self.told()}"
        return code, self.told().splitlines()
