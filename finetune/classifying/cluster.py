"""Parts of a brain on many processes: dask.distributed shares them out, and again if one dies.

Workers see the same files as this process. A task is a part and leaves its file, so it does not
matter how often it is begun, where, or in which order: what a worker that is killed was at is done
again elsewhere, and nothing else is.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from cubeclf_core.brains import VolumeAt
from cubeclf_core.console import say
from cubeclf_core.errors import CubeclfError, InputError, RunFailed
from cubeclf_core.volumes import Volume
from finetune.classifying.job import computing
from finetune.classifying.parts import Part, save_part, unfinished
from finetune.classifying.scoring import Scorer, load_scorer, score_parts

_PATIENCE_S = 15  # for a scheduler to answer
_THREADS = 2  # of a worker that decode; others run beside it
_LOADING = Lock()
_LOOK_S = 0.5  # how often to look whether somebody wants to stop


@dataclass(frozen=True)
class Task:
    """What a worker needs to know of a brain; the same for all of its parts.

    Attributes
    ----------
    job
        Digest of all that scores depend on: what a worker has loaded serves this job alone.
    at
        The volume.
    classifiers
        Paths.
    exact, flips
        See `load_scorer`.
    computing
        In which precision and on what kind of device, see `finetune.classifying.job.computing`.
    folder
        Where the parts' files go.
    """

    job: str
    at: VolumeAt
    classifiers: tuple[Path, ...]
    exact: bool
    flips: bool
    computing: str
    folder: Path


def run_part(task: Task, part: Part) -> int:
    """Score one part and write its file, unless it is there; gives its number of candidates."""
    here = computing(exact=task.exact)
    if here != task.computing:
        raise RunFailed(
            f"a worker computes in {here}, the run in {task.computing}: results would be mixed; "
            "begin anew with --exact, or with machines of one kind"
        )
    if unfinished(task.folder, [part], task.job):
        with _LOADING:  # a worker may have several threads
            scorer, volume = _loaded(task)
        for done, scores in score_parts(scorer, volume, [part], threads=_THREADS):
            save_part(task.folder, done, task.job, scores)
    return len(part)


@lru_cache(maxsize=1)
def _loaded(task: Task) -> tuple[Scorer, Volume]:
    scorer = load_scorer(task.classifiers, exact=task.exact, flips=task.flips, embeddings=False)
    return scorer, task.at.open()


class Cluster:
    """Workers that parts are shared out to.

    Parameters
    ----------
    client
        Of dask.distributed.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def run(self, task: Task, parts: Sequence[Part], advance: Callable[[int], None]) -> None:
        """Have parts scored; all of them leave their files.

        Parameters
        ----------
        task
            What all have in common.
        parts
            In the order in which they are begun.
        advance
            Told how many candidates are done, twice a second at least; what it raises ends the
            work.

        Raises
        ------
        RunFailed
            If a worker fails, or too many die of one part.
        """
        from distributed import KilledWorker, wait

        if not self._client.scheduler_info()["workers"]:
            say("note        the cluster has no workers yet; waiting for some")
        pending = {self._client.submit(run_part, task, part, pure=False) for part in parts}
        try:
            while pending:
                done: set[Any] = set()
                try:
                    done, pending = wait(pending, _LOOK_S, return_when="FIRST_COMPLETED")
                except TimeoutError:
                    advance(0)
                for future in done:
                    advance(future.result())
        except CubeclfError:
            raise
        except KilledWorker as error:
            raise RunFailed(
                f"workers died of a part, again and again ({error}); give each of them more "
                "memory, 4 GB at least, and go on with --resume"
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
