"""The run of `cubeclf-classify`: candidates of brains in, cells with probabilities out.

Candidates are scored part by part, each part is a file, and what is written of a brain is made of
these files in the end: so a killed run goes on, on one process or many, to the same result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cubeclf_core.brains import Brain
from cubeclf_core.cells import Cells
from cubeclf_core.console import progress, say
from cubeclf_core.errors import InputError, RunFailed, Stopped
from cubeclf_core.files import check_output, remove
from cubeclf_core.geometry import source_shape
from cubeclf_core.runs import RunFolder, check_same_settings
from cubeclf_core.signals import StopRequest, stop_on_signals
from finetune.classify_cluster import Cluster, Job, open_cluster
from finetune.classify_cohort import write_cohort
from finetune.classify_outputs import SUMMARY, put_together, write_outputs
from finetune.classify_parts import (
    Part,
    Scores,
    load_part,
    make_parts,
    part_file,
    save_part,
    unfinished,
)
from finetune.classify_scoring import Scorer, load_scorer, score_parts
from finetune.config import ClassifyConfig
from finetune.drift import SAMPLE, compare, read_reference
from finetune.opening import open_with_candidates

_MAY_CHANGE = ("out", "resume", "overwrite", "cluster")
_JOB = "job.json"  # what the parts are parts of
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
    parts
        Of the places of its candidates.
    which
        Shape (n,), the place of each candidate; several may share one.
    """

    brain: Brain
    folder: Path
    parts: list[Part]
    which: np.ndarray

    @property
    def cells(self) -> Cells:
        """The candidates."""
        assert self.brain.cells is not None
        return self.brain.cells


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
    works = [_work(config, scorer, brain, alone=len(brains) == 1) for brain in brains]
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


def _work(config: ClassifyConfig, scorer: Scorer, brain: Brain, *, alone: bool) -> Work:
    """Plan what is to be done for a brain; the plan depends on nothing but the input."""
    volume, cells = brain.volume, brain.cells
    assert cells is not None
    cuboid = source_shape(scorer.config.cuboid_shape, scorer.config.voxel_size_um, volume)
    places, which = np.unique(cells.positions, axis=0, return_inverse=True)
    embedded = np.full(len(places), config.embeddings)
    if scorer.embedder is not None and read_reference(scorer.classifiers[0].training):
        embedded[np.linspace(0, len(places) - 1, SAMPLE).astype(int)] = True
    parts = make_parts(places, volume.chunk_shape, cuboid, embedded, config.part)
    folder = config.out if alone else config.out / brain.name
    return Work(brain, folder, parts, which.reshape(-1))


def _check_folder(config: ClassifyConfig, works: Sequence[Work], *, resumed: bool) -> None:
    """Raise unless OUT can be made anew, or is the run that is to go on."""
    inputs = [*config.classifier, config.cells]
    inputs += [path for work in works for path in work.brain.paths]
    check_output(config.out, overwrite=config.overwrite or resumed, inputs=inputs)
    if not resumed:
        return
    check_same_settings(config.out, config, _MAY_CHANGE)
    for work in works:
        try:
            before = json.loads((work.folder / _JOB).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # it had not begun
        for what, value in _job(config, work).items():
            if value != before.get(what):
                raise InputError(
                    f"the {what} of {work.brain.name} is not what the run in {config.out} began "
                    "with; begin anew with --overwrite, or choose another --out"
                )


def _job(config: ClassifyConfig, work: Work) -> dict[str, Any]:
    """Say what results of parts depend on, so that none are mixed."""
    volume = work.brain.volume
    return {
        "list of candidates": hashlib.sha256(work.cells.positions.tobytes()).hexdigest(),
        "classifier": [_digest(path) for path in config.classifier],
        "volume": [list(volume.shape), volume.dtype.name, list(volume.voxel_size_um)],
    }


def _digest(classifier: Path) -> str:
    """Hash a classifier's file, or those of its folder."""
    trained = classifier / "exported" / "classifier.safetensors"
    files = [trained] if trained.is_file() else sorted(classifier.rglob("*"))
    digest = hashlib.sha256()
    for file in [classifier] if classifier.is_file() else files:
        if file.is_file():
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _remark(works: Sequence[Work], scorer: Scorer) -> None:
    """Say what a user may not expect."""
    for work in works:
        if twice := len(work.which) - sum(map(len, work.parts)):
            say(f"note        {work.brain.name}: {twice} candidates are at the place of another")
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
    before = _finished(work.folder)
    if before is not None:
        say(f"{work.brain.name} is done already: {work.folder}")
        return before
    folder, n_classifiers = work.folder / _PARTS, len(scorer.classifiers)
    folder.mkdir(parents=True, exist_ok=True)
    (work.folder / _JOB).write_text(json.dumps(_job(config, work)), encoding="utf-8")
    left = unfinished(folder, work.parts, n_classifiers)
    total = sum(map(len, work.parts))
    done = total - sum(map(len, left))
    with progress(f"classifying {work.brain.name}", total, unit="candidates", done=done) as show:

        def advance(n: int) -> None:
            show(n)
            if stop:
                _leave(config, stop)

        if cluster is None:
            for part, scores in score_parts(scorer, work.brain.volume, left, advance):
                save_part(folder, part, scores)
        else:
            cluster.run(_sent(config, work, folder), left, advance)
    found = put_together(
        work.brain.name,
        work.cells,
        work.which,
        ((part, _kept(folder, part, n_classifiers)) for part in work.parts),
        scorer.threshold if config.threshold is None else config.threshold,
        embeddings=config.embeddings,
    )
    drift = compare(
        read_reference(scorer.classifiers[0].training),
        found.probability if n_classifiers == 1 else None,
        found.sample,
    )
    write_outputs(work.folder, found, work.brain.volume, {"drift": drift})
    if not found.unread.any():
        remove(folder)
    summary = {**found.summary(), "drift": drift}
    _tell(work.folder, summary)
    return summary


def _finished(folder: Path) -> dict[str, Any] | None:
    """Read the summary of a brain that is done, all of it."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        return summary if summary["unread"] == 0 else None
    except (OSError, ValueError, KeyError):
        return None


def _kept(folder: Path, part: Part, n_classifiers: int) -> Scores:
    scores = load_part(folder, part, n_classifiers)
    if scores is None:
        raise RunFailed(f"{part_file(folder, part.number)} is gone; go on with --resume")
    return scores


def _sent(config: ClassifyConfig, work: Work, folder: Path) -> Job:
    """Say what a worker needs to know; it may run elsewhere, but sees the same files."""
    assert work.brain.at is not None
    return Job(
        work.brain.at.from_anywhere(),
        tuple(path.absolute() for path in config.classifier),
        exact=config.exact,
        flips=config.tta,
        folder=folder.absolute(),
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
