"""Processes of this machine that items are shared out to, with one thread each on a CPU."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, parent_process
from types import TracebackType
from typing import Any, TypeVar

import torch

from cubeclf_core.console import console
from cubeclf_core.errors import CubeclfError, RunFailed

Item = TypeVar("Item")
Result = TypeVar("Result")

_LOOK_S = 0.5  # how often to look whether somebody wants to stop
_LEAVE_S = 5.0  # in which a process that is asked to has to end
_ALONE = threading.Lock()
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # a scheduler of jobs may have given it some only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def alone(function: Callable[[Item], Result], item: Item) -> Result:
    """Do one item in a worker: nothing beside it, silently, and with one thread on a CPU.

    So results depend neither on the number of workers nor on threads that they have; torch's
    generator is one for the whole process.
    """
    with _ALONE:
        console.quiet = True  # one process speaks
        if not torch.cuda.is_available():
            torch.set_num_threads(1)
        return function(item)


class Processes:
    """Some processes, which are started when there is work for them and end with the context.

    Parameters
    ----------
    n
        At a time.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._context = multiprocessing.get_context("spawn")  # torch has threads
        self._all: dict[Connection, BaseProcess] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._all.values():
            process.terminate()
        for process in self._all.values():
            process.join(_LEAVE_S)
            process.kill()
            process.join()

    def run(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        advance: Callable[[Result | None], None],
    ) -> None:
        """Do something with each item.

        Parameters
        ----------
        function
            Of a module, so that another process finds it; leaves what it makes in files.
        items
            In the order in which they are begun.
        advance
            Told each result as it comes, and None twice a second at least; what it raises ends the
            work.

        Raises
        ------
        RunFailed
            If one fails or a process dies.
        """
        waiting, busy = deque(items), set[Connection]()
        while waiting or busy:
            while waiting and len(busy) < self._n:
                connection = next((c for c in self._all if c not in busy), None) or self._start()
                with self._alive(connection, advance):
                    connection.send((function, waiting.popleft()))
                busy.add(connection)
            for ready in wait(list(busy), _LOOK_S):
                assert isinstance(ready, Connection)
                busy.remove(ready)
                with self._alive(ready, advance):
                    done, told = ready.recv()
                if not done:
                    raise told
                advance(told)
            advance(None)

    def _start(self) -> Connection:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs,))
        with _one_thread():
            process.start()
        theirs.close()
        self._all[ours] = process
        return ours

    @contextlib.contextmanager
    def _alive(self, connection: Connection, advance: Callable[[Any], None]) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            advance(None)  # whoever asked this process to stop may have ended the other
            process = self._all[connection]
            process.join(_LEAVE_S)
            raise RunFailed(
                f"a process died (exit code {process.exitcode}), perhaps for want of memory; try "
                "fewer --workers, and go on with --resume"
            ) from error


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let libraries that processes load have one thread, where a GPU does not do the work."""
    names = [] if torch.cuda.is_available() else _THREADS
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection) -> None:
    """Do items' work, and leave at once if asked to, or if who asked for it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends this process
    threading.Thread(target=_follow_parent, daemon=True).start()
    with contextlib.suppress(EOFError):
        while True:
            # In a thread, so that no training catches the signal that ends this process.
            worker = threading.Thread(target=_do, args=(connection, *connection.recv()))
            worker.start()
            worker.join()


def _do(connection: Connection, function: Callable[[Item], Result], item: Item) -> None:
    try:
        connection.send((True, function(item)))
    except CubeclfError as error:
        connection.send((False, error))
    except Exception as error:
        connection.send((False, RunFailed(f"{type(error).__name__}: {error}")))


def _follow_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
