"""Work on many processes: dask.distributed shares it out, and again if one dies.

Workers see the same files as this process. A task leaves its file, so it does not matter how often
it is begun, where, or in which order: what a worker that is killed was at is done again elsewhere,
and nothing else is.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from cubeclf_core.console import say
from cubeclf_core.errors import CubeclfError, InputError, RunFailed

_PATIENCE_S = 15  # for a scheduler to answer
_LOOK_S = 0.5  # how often to look whether somebody wants to stop

Item = TypeVar("Item")
Result = TypeVar("Result")


class Cluster:
    """Workers that items are shared out to.

    Parameters
    ----------
    client
        Of dask.distributed.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def run(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        advance: Callable[[Result | None], None],
    ) -> None:
        """Do something with each item, on the workers.

        Parameters
        ----------
        function
            Leaves what it makes in files, and can be begun again.
        items
            In the order in which they are begun.
        advance
            Told each result as it comes, and None twice a second at least; what it raises ends the
            work.

        Raises
        ------
        RunFailed
            If a worker fails, or too many die of one item.
        """
        from distributed import KilledWorker, wait

        if not self._client.scheduler_info()["workers"]:
            say("note        the cluster has no workers yet; waiting for some")
        pending = {self._client.submit(function, item, pure=False) for item in items}
        try:
            while pending:
                done: set[Any] = set()
                try:
                    done, pending = wait(pending, _LOOK_S, return_when="FIRST_COMPLETED")
                except TimeoutError:
                    advance(None)
                for future in done:
                    advance(future.result())
        except CubeclfError:
            raise
        except KilledWorker as error:
            raise RunFailed(
                f"workers died of one part of the work, again and again ({error}); give each of "
                "them more memory, 4 GB at least, and go on with --resume"
            ) from error
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise RunFailed(f"the cluster failed ({what}); go on with --resume") from error
        finally:
            self._client.cancel(list(pending))


@contextmanager
def open_cluster(where: str | None) -> Iterator[Cluster | None]:
    """Connect to a scheduler, or start processes on this machine.

    Parameters
    ----------
    where
        ``local``, ``local:4``, an address, a scheduler's file; None for no cluster.

    Raises
    ------
    InputError
        If dask.distributed is not installed, or no scheduler answers.
    """
    if where is None:
        yield None
        return
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise InputError(
            "--cluster needs dask.distributed: pip install 'cubeclf[cluster]'"
        ) from error
    if local := re.fullmatch(r"local(?::(\d+))?", where):
        n = int(local[1] or 2)
        with (
            # Memory is bounded by what reads, not by ending processes.
            LocalCluster(
                n_workers=n,
                threads_per_worker=1,
                memory_limit=0,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster) as client,
        ):
            yield Cluster(client)
        return
    named = {"address": where}
    if where.endswith(".json"):
        if not Path(where).is_file():
            raise InputError(
                f"there is no {where}; start a scheduler with --scheduler-file {where} before"
            )
        named = {"scheduler_file": where}
    try:
        client = Client(**named, timeout=_PATIENCE_S)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(
            f"no scheduler of dask answers at {where} ({error}); start one, or try --cluster local"
        ) from error
    with client:
        yield Cluster(client)
