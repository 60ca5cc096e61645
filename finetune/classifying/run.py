"""The run of `cubeclf-classify`: candidates of brains in, cells with probabilities out.

Candidates are scored part by part, each part is a file, and what is written of a brain is made of
these files in the end: so a killed run goes on, on one process or many, to the same result.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cubeclf_core import zoo
from cubeclf_core.axes import Shape3
from cubeclf_core.brains import Brain
from cubeclf_core.cells import Cells
from cubeclf_core.console import progress, say
from cubeclf_core.errors import RunFailed, Stopped
from cubeclf_core.files import check_output, remove
from cubeclf_core.geometry import source_shape
from cubeclf_core.runs import RunFolder, check_same_settings
from cubeclf_core.signals import StopRequest, stop_on_signals
from finetune.classifying.cohort import check_folders, write_cohort
from finetune.classifying.job import Job, check_job, computing, describe, digest, write_job
from finetune.classifying.outputs import SUMMARY, put_together, write_outputs
from finetune.classifying.parts import (
    Part,
    Scores,
    load_part,
    make_parts,
    part_file,
    save_part,
    unfinished,
)
from finetune.classifying.scoring import Scorer, load_scorer, score_parts
from finetune.classifying.task import Task, run_part
from finetune.cluster import Cluster, open_cluster
from finetune.config import ClassifyConfig
from finetune.drift import compare, read_reference, sampled
from finetune.opening import open_with_candidates

_MAY_CHANGE = ("out", "resume", "overwrite", "cluster")
_PARTS = "parts"


@dataclass(frozen=True)
class Work:
    """What there is to do for one brain.

    Attributes
    ----------
    brain
        With its candidates.
    folder
        Where its results go.
    job
        What its results depend on.
    cuboid
        What the classifier takes, in voxels of the brain.
    """

    brain: Brain
    folder: Path
    job: Job
    cuboid: Shape3

    @property
    def cells(self) -> Cells:
        """The candidates."""
        assert self.brain.cells is not None
        return self.brain.cells

    @property
    def parts(self) -> Path:
        """Where the files of its parts are, until all are done."""
        return self.folder / _PARTS


def classify(config: ClassifyConfig) -> None:
    """Score all candidates and write points, tables and pictures.

    Raises
    ------
    InputError
        If a brain, a classifier or candidates cannot be used; nothing has been written then.
    Stopped
        If a signal asked for it.
    RunFailed
        If, though all else is done, some candidates could not be read.
    """
    brains = open_with_candidates(
        config.brain, config.background, config.voxel_size_um, config.cells
    )
    scorer = load_scorer(
        config.classifier, exact=config.exact, flips=config.tta, embeddings=config.embeddings
    )
    check_folders(brains)
    taken = scorer.config.cuboid_shape, scorer.config.voxel_size_um
    works = [
        Work(
            brain,
            config.out if len(brains) == 1 else config.out / brain.name,
            job,
            source_shape(*taken, brain.volume),
        )
        for brain, job in zip(brains, describe(config, brains), strict=True)
    ]
    resumed = config.resume and (config.out / "config.yaml").exists()
    _check_folder(config, works, resumed=resumed)
    with open_cluster(config.cluster) as cluster, stop_on_signals() as stop:
        RunFolder(config.out, config, resume=resumed)
        _remark(works, scorer)
        try:
            summaries = [_classify(config, scorer, work, cluster, stop) for work in works]
            if len(works) > 1:
                write_cohort(config.out, summaries)
        except OSError as error:
            raise RunFailed(f"stopped: {error}; make room and go on with --resume") from error
    _conclude(config, summaries)


def _check_folder(config: ClassifyConfig, works: Sequence[Work], *, resumed: bool) -> None:
    """Raise unless OUT can be made anew, or is the run that is to go on."""
    inputs = [*config.classifier, config.cells]
    inputs += [path for work in works for path in work.brain.paths]
    check_output(config.out, overwrite=config.overwrite or resumed, inputs=inputs)
    if not resumed:
        return
    check_same_settings(config.out, config, _MAY_CHANGE)
    for work in works:
        begun = (work.folder / SUMMARY).exists() or any(work.parts.glob("part_*"))
        check_job(work.folder, work.job, work.brain.name, begun=begun)


def _remark(works: Sequence[Work], scorer: Scorer) -> None:
    """Say what a user may not expect."""
    lacking = [w.brain.name for w in works if w.brain.volume.n_channels < scorer.channels]
    if lacking:
        say(
            f"note        no background in {', '.join(lacking)}: the classifier takes one, and "
            "sees zeros instead, as in a part of its training"
        )


def _classify(
    config: ClassifyConfig,
    scorer: Scorer,
    work: Work,
    cluster: Cluster | None,
    stop: StopRequest,
) -> dict[str, Any]:
    """Score what is left to score of a brain, and write what there is to tell of it."""
    before = _finished(work)
    if before is not None:
        say(f"{work.brain.name} is done already: {work.folder}")
        remove(work.parts)  # which a kill may have left
        return before
    work.parts.mkdir(parents=True, exist_ok=True)
    write_job(work.folder, work.job)
    job = digest(work.job)
    parts, which = _plan(config, scorer, work)
    total = sum(map(len, parts))
    if total < len(which):
        twice = len(which) - total
        say(f"note        {work.brain.name}: {twice} candidates are at the place of another")
    left = unfinished(work.parts, parts, job)
    done = total - sum(map(len, left))
    with progress(f"classifying {work.brain.name}", total, unit="candidates", done=done) as show:

        def advance(n: int) -> None:
            show(n)
            if stop:
                _leave(config, stop)

        if cluster is None:
            for part, scores in score_parts(scorer, work.brain.volume, left, advance):
                save_part(work.parts, part, job, scores)
        else:
            scoring = partial(run_part, _task(config, work, job))
            cluster.run(scoring, left, lambda n: advance(n or 0))
    found = put_together(
        work.brain.name,
        work.cells,
        which,
        ((part, _kept(work.parts, part, job)) for part in parts),
        scorer.threshold if config.threshold is None else config.threshold,
        embeddings=config.embeddings,
    )
    drift = compare(
        read_reference(scorer.classifiers[0].training),
        found.probability if len(scorer.classifiers) == 1 else None,
        found.sample,
    )
    write_outputs(work.folder, found, work.brain.volume, {"drift": drift})
    if not found.unread.any():
        remove(work.parts)
    summary = {**found.summary(), "drift": drift}
    _tell(work.folder, summary)
    return summary


def _plan(config: ClassifyConfig, scorer: Scorer, work: Work) -> tuple[list[Part], np.ndarray]:
    """Cut the places of candidates into parts; this depends on nothing but the job.

    Returns
    -------
    parts : list of Part
        Of places.
    which : numpy.ndarray
        Shape (n,), the place of each candidate; several may share one.
    """
    places, which = np.unique(work.cells.positions, axis=0, return_inverse=True)
    embedded = np.full(len(places), config.embeddings)
    if scorer.embedder is not None and read_reference(scorer.classifiers[0].training):
        embedded |= sampled(len(places))
    parts = make_parts(places, work.brain.volume.chunk_shape, work.cuboid, embedded, config.part)
    return parts, which.reshape(-1)


def _finished(work: Work) -> dict[str, Any] | None:
    """Read the summary of a brain that is done, all of it."""
    try:
        summary = json.loads((work.folder / SUMMARY).read_text(encoding="utf-8"))
        done = summary["unread"] == 0 and summary["brain"] == work.brain.name
    except (OSError, ValueError, KeyError):
        return None
    return summary if done else None


def _kept(folder: Path, part: Part, job: str) -> Scores:
    scores = load_part(folder, part, job)
    if scores is None:
        raise RunFailed(
            f"{part_file(folder, part.number)} is gone, or another run's; go on with --resume"
        )
    return scores


def _task(config: ClassifyConfig, work: Work, job: str) -> Task:
    """Say what a worker needs to know; it may run elsewhere, but sees the same files."""
    assert work.brain.at is not None
    return Task(
        job,
        work.brain.at.from_anywhere(),
        tuple(zoo.find(path, "classifier") or path.absolute() for path in config.classifier),
        exact=config.exact,
        flips=config.tta,
        computing=computing(exact=config.exact),
        folder=work.parts.absolute(),
    )


def _leave(config: ClassifyConfig, stop: StopRequest) -> None:
    how = f"; the same command with --resume goes on after the last part in {config.out}"
    if stop.signal == "SIGINT":
        say(f"stopped{how}")
        raise KeyboardInterrupt
    raise Stopped(f"stopped by {stop.signal}{how}")


def _tell(folder: Path, summary: dict[str, Any]) -> None:
    n, cells, border = (summary[key] for key in ("candidates", "cells", "at_border"))
    say(f"{cells} cells among {n} candidates, {border} at the border")
    say(f"points      {folder / 'points' / 'cell_classification.xml'}")
    say(f"table       {folder / 'candidates.csv'}")
    say(f"picture     {folder / 'figures' / 'classified.png'}")


def _conclude(config: ClassifyConfig, summaries: Sequence[dict[str, Any]]) -> None:
    """Warn of brains unlike those of the training, and fail if candidates were not read."""
    if any(summary["drift"] is None for summary in summaries):
        say("note        the classifier does not tell what its training brains were like")
    drifts = [summary["drift"] for summary in summaries if summary["drift"]]
    if any(drift["scores_apart"] is drift["far_share"] is None for drift in drifts):
        say(
            "note        brains could not be compared with the training: that takes a network, or "
            "a single classifier with held-out labels"
        )
    for summary in summaries:
        for warning in (summary["drift"] or {}).get("warnings", ()):
            say(f"warning     {summary['brain']}: {warning}")
    lost = {s["brain"]: s for s in summaries if s["unread"]}
    if lost:
        name, first = next(iter(lost.items()))
        n = sum(summary["unread"] for summary in lost.values())
        raise RunFailed(
            f"{n} candidates of {', '.join(lost)} could not be read and are flagged; the others "
            f"are done ({name}: {first['faults'][0]}); mend the data and run again with --resume"
        )
