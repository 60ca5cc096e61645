"""Parts of a brain as tasks of a cluster: what a worker needs to know, and what it does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock

from cubeclf_core.brains import VolumeAt
from cubeclf_core.errors import RunFailed
from cubeclf_core.volumes import Volume
from finetune.classifying.job import computing
from finetune.classifying.parts import Part, save_part, unfinished
from finetune.classifying.scoring import Scorer, load_scorer, score_parts

_THREADS = 2  # of a worker that decode; others run beside it
_LOADING = Lock()


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
