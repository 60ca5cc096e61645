"""Every cell of a comparison: a contender, a protocol, a budget, a group and a seed, done once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cubeclf_core.content import content_hash
from cubeclf_core.engine import DEVICE_KINDS, device_kind
from cubeclf_core.errors import InputError, RunFailed, TrainingDiverged
from cubeclf_core.files import replacing
from cubeclf_core.metrics import classification_metrics
from finetune.comparing.forest import LEAF, leaf
from finetune.comparing.networks import (
    USUAL,
    Network,
    Rate,
    for_protocol,
)
from finetune.comparing.plan import Contender, Plan
from finetune.comparing.pretraining import Pretrained, has_seen
from finetune.comparing.results import (
    Row,
    read_cell,
    read_divergence,
    write_cell,
    write_divergence,
)
from finetune.comparing.rules import Rules
from finetune.comparing.stock import Stock, look
from finetune.comparing.tasks import Answer, Task, make_task
from finetune.training import BEGINNING, HEADS
from finetune.trials import FLIPS

_PEAK = Path("/proc/self/status")  # of Linux


@dataclass(frozen=True)
class Job:
    """Cells of one contender and group, which one process does in turn.

    Attributes
    ----------
    contender
        Who.
    group
        That is tested.
    rows
        Protocols and budgets.
    plan
        Of the comparison.
    pretrained
        Finds backbones.
    stock, cells, features
        Folders of the labels, of what is done, and of what frozen backbones say.
    device
        Kind of the device that networks compute on.
    """

    contender: Contender
    group: str
    rows: tuple[tuple[str, int], ...]
    plan: Plan
    pretrained: Pretrained
    stock: Path
    cells: Path
    features: Path
    device: str

    def backbone(self, seed: int) -> str:
        """Name or path of the backbone, or classifier, with a seed; empty if there is none."""
        if not self.contender.backbone:
            return ""
        return self.pretrained.find(self.contender.backbone_for(self.group), seed)

    def file(self, task: Task, stock: Stock, device: str = "") -> Path:
        """Where a cell is kept: another file for another plan, other labels, other weights.

        On another `device` than the job's, its precision is another too, and so is the file.
        """
        contender = {**asdict(self.contender), "seeds": 0, "budgets": 0, "name": "", "backbone": 0}
        rates = contender.pop("rates")
        told: list[Any] = [
            contender,
            content_hash(self.backbone(task.seed)),
            stock.digest,
            version("cubeclf"),
        ]
        told += [task.protocol, task.budget, task.group, task.seed]
        told += [_digest(task.learn), _digest(task.test)]
        if self.contender.trains:  # at the rate that was chosen with the first seed
            told += [list(rates), content_hash(self.backbone(0))]
            if self.contender.chooses_rate and self._rates_budget(task.budget) != task.budget:
                told += [self.plan.rates_labels]
            own = task.protocol == "own" or self.contender.train.get("for_others") is False
            told += [FLIPS] if own else []
        if self.contender.rule == "forest" and (least := leaf(len(task.learn))) < LEAF:
            told += [least]
        if self.contender.rule is None:
            told += [device or self.device, HEADS]
            settings = self.contender.settings(self.backbone(task.seed), task.seed)
            told += [] if settings.fits_first else [BEGINNING]
            more = for_protocol(task.protocol, self.contender)
            if more and len(stock.labels.names) == 2:  # not several brains, which say it anyway
                told += [more]
        key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]
        return self.cells / f"{key}.npz"

    def found(self, task: Task, stock: Stock) -> tuple[str, Path] | None:
        """Where a cell is that is done, and on what: here, or on a device of another kind."""
        for device in dict.fromkeys((self.device, *DEVICE_KINDS)):
            if (file := self.file(task, stock, device)).exists():
                return device, file
        return None

    def diverged(self, task: Task, stock: Stock) -> str:
        """What is told of a cell whose training has diverged here; empty if it has not.

        It would again: what a cell is called by is all that it depends on.
        """
        return "" if self.found(task, stock) else read_divergence(self.file(task, stock))

    def tasks(self, stock: Stock, row: tuple[str, int]) -> list[Task]:
        """Of one row, by seed."""
        seeds = range(self.contender.seeds)
        return [make_task(self.plan, stock.labels, stock.reach, row, self.group, s) for s in seeds]

    def search(self, stock: Stock, row: tuple[str, int]) -> Task:
        """What rates are tried on for a row, with the first seed."""
        protocol, budget = row
        tried = protocol, self._rates_budget(budget)
        return make_task(self.plan, stock.labels, stock.reach, tried, self.group, 0)

    def rate_file(self, search: Task, stock: Stock, device: str = "") -> Path:
        """Where it is kept what a search has chosen."""
        return self.file(search, stock, device).with_suffix(".rate.json")

    def kept_rate(self, stock: Stock, row: tuple[str, int]) -> Rate | None:
        """The rate that a row has: of cells that are done, or of a search, on any device."""
        for task in self.tasks(stock, row):
            if done := self.found(task, stock):
                cell, _ = read_cell(done[1])
                return Rate(cell["rate"], cell["rate_by"])
        search = self.search(stock, row)
        for device in dict.fromkeys((self.device, *DEVICE_KINDS)):
            if (file := self.rate_file(search, stock, device)).exists():
                return Rate(**json.loads(file.read_text(encoding="utf-8")))
        return None

    def _rates_budget(self, budget: int) -> int:
        return budget if self.plan.rates_labels is None else self.plan.rates_labels

    def left(self, stock: Stock) -> list[tuple[tuple[str, int], Task]]:
        """Rows and tasks of cells that are not done, and have not diverged."""
        return [
            (row, task)
            for row in self.rows
            for task in self.tasks(stock, row)
            if not (self.found(task, stock) or self.diverged(task, stock))
        ]


def jobs_of(plan: Plan, groups: Sequence[str], **folders: Any) -> list[Job]:
    """Cut a comparison into jobs: of what trains long, a row each; of the others, all rows."""
    jobs = []
    for contender in plan.contenders:
        rows = plan.rows_of(contender)
        parts = [(row,) for row in rows] if contender.trains else [tuple(rows)]
        jobs += [
            Job(contender, group, part, plan, **folders)
            for part in parts
            for group in groups
            if part
        ]
    return jobs


def run_job(job: Job) -> int:
    """Do the cells of a job that are not done yet; gives how many there were to do."""
    _check_device(job)
    stock = look(job.stock)
    rules = Rules(stock)
    left = job.left(stock)
    for row, task in left:
        _forget_peak()
        file = job.file(task, stock)
        if job.contender.rule is not None:
            rate = Rate(USUAL, "none")
            answer = rules.answer(job.contender.rule, task, job.backbone(task.seed))
        else:
            network = _network(job, task.seed, stock)
            try:
                rate = _rate(job, row, stock)
                answer = _answer(network, task, rate)
            except TrainingDiverged as error:  # others go on
                write_divergence(file, error)
                continue
        write_cell(file, _row(job, task, stock, answer, rate), answer.scores)
    return len(left)


@dataclass(frozen=True)
class Embedding:
    """What a frozen backbone is to be asked about: the labels of a group."""

    job: Job
    seed: int
    group: str

    def network(self, stock: Stock) -> Network:
        """The backbone, as a contender has it."""
        return _network(self.job, self.seed, stock)


def embeddings(jobs: Sequence[Job], stock: Stock) -> list[Embedding]:
    """List what frozen backbones have not been asked yet and cells need, each once."""
    found: dict[Path, Embedding] = {}
    for job in jobs:
        if job.contender.rule is None:
            of_others = any(protocol != "own" for protocol, _ in job.rows)
            for seed in range(job.contender.seeds):
                network = _network(job, seed, stock)
                for group in stock.labels.names if of_others else [job.group]:
                    file = network.features_file(group)
                    if file is not None and not file.exists():
                        found[file] = Embedding(job, seed, group)
    return list(found.values())


def embed(item: Embedding) -> int:
    """Ask a frozen backbone and keep what it says."""
    _check_device(item.job)
    item.network(look(item.job.stock)).keep_features(item.group)
    return 1


@dataclass(frozen=True)
class Search:
    """A learning rate that is to be chosen for a row of a job, and others that share it."""

    job: Job
    row: tuple[str, int]


def searches(jobs: Sequence[Job], stock: Stock) -> list[Search]:
    """List what rates have not been chosen yet and cells need, each once."""
    found: dict[Path, Search] = {}
    for job in jobs:
        for row in job.rows if job.contender.chooses_rate else ():
            if job.kept_rate(stock, row) is None:
                file = job.rate_file(job.search(stock, row), stock)
                found.setdefault(file, Search(job, row))
    return list(found.values())


def search(item: Search) -> int:
    """Choose a rate and keep it."""
    _check_device(item.job)
    with contextlib.suppress(TrainingDiverged):  # its cells will say so
        _rate(item.job, item.row, look(item.job.stock))
    return 1


def _rate(job: Job, row: tuple[str, int], stock: Stock) -> Rate:
    """The learning rate of a row: the one that is kept, or what a search chooses."""
    if kept := job.kept_rate(stock, row):
        return kept
    task = job.search(stock, row)
    file = job.rate_file(task, stock)
    if told := read_divergence(file):
        raise TrainingDiverged(told)
    try:
        rate = _network(job, 0, stock).choose_rate(task)
    except TrainingDiverged as error:
        write_divergence(file, error)
        raise
    if job.contender.chooses_rate:
        with replacing(file) as made:
            made.write_text(json.dumps(asdict(rate)), encoding="utf-8")
    return rate


def _answer(network: Network, task: Task, rate: Rate) -> Answer:
    try:
        return network.answer(task, rate)
    except TrainingDiverged as error:  # a rate that was chosen may be too high for more labels
        raise TrainingDiverged(f"at {rate.factor:g} times the usual rate: {error}") from error


def _network(job: Job, seed: int, stock: Stock) -> Network:
    return Network(job.contender, job.backbone(seed), seed, stock, job.features)


def _check_device(job: Job) -> None:
    if job.contender.rule is None and device_kind() != job.device:
        raise RunFailed(
            f"a worker computes on {device_kind()}, the run on {job.device}: precision and times "
            "differ; take machines of one kind, or run on one kind after the other"
        )


def read_cells(jobs: Sequence[Job], stock: Stock) -> Iterator[tuple[Row, Task, npt.NDArray[Any]]]:
    """Read all cells that are done: the line, what was asked, and the scores.

    What a contender or a backbone is called now is told now: cells are kept by what they hold.
    """
    for job in jobs:
        for row in job.rows:
            for task in job.tasks(stock, row):
                if done := job.found(task, stock):
                    device, file = done
                    told, scores = read_cell(file)
                    name = job.backbone(task.seed)
                    volumes = frozenset(stock.labels.volumes[i] for i in task.test)
                    device = "cpu" if job.contender.rule is not None else device
                    shown = job.pretrained.shown(name)
                    told |= {"contender": job.contender.name, "backbone": shown, "device": device}
                    yield Row(**told, seen=has_seen(name, volumes)), task, scores


def read_divergences(jobs: Sequence[Job], stock: Stock) -> list[str]:
    """Tell which cells there are none of, as their training diverges."""
    return [
        f"{job.contender.name}, {task.name}: {told}"
        for job in jobs
        for row in job.rows
        for task in job.tasks(stock, row)
        if (told := job.diverged(task, stock))
    ]


def _row(job: Job, task: Task, stock: Stock, answer: Answer, rate: Rate) -> dict[str, Any]:
    labels = stock.labels.labels
    tested = labels[task.test]
    if not np.isfinite(answer.scores).all():
        raise InputError(f"{job.contender.name} gives scores that are no numbers for {task.name}")
    found = classification_metrics(tested, answer.scores)
    return {
        "protocol": task.protocol,
        "budget": task.budget,
        "group": task.group,
        "seed": task.seed,
        "labels": len(task.learn),
        "cells": int(labels[task.learn].sum()),
        "tested": len(tested),
        "prevalence": float(tested.mean()),
        "auc": found["auc"],
        "average_precision": found["average_precision"],
        "average_precision_less_prevalence": found["average_precision_less_prevalence"],
        "memory_gb": _peak_gb(),
        "epochs": answer.epochs,
        "train_seconds": answer.train_seconds,
        "test_seconds": answer.test_seconds,
        "rate": rate.factor,
        "rate_by": rate.how,
    }


def _digest(index: npt.NDArray[np.int64]) -> str:
    return hashlib.sha256(np.ascontiguousarray(index).tobytes()).hexdigest()


def _forget_peak() -> None:
    """Have the kernel count the most memory of this process anew."""
    with contextlib.suppress(OSError):  # not every system knows it, or allows it
        _PEAK.with_name("clear_refs").write_text("5")


def _peak_gb() -> float:
    if not _PEAK.exists():
        return float("nan")
    peak = re.search(r"VmHWM:\s*(\d+) kB", _PEAK.read_text())
    return int(peak[1]) / (1 << 20) if peak else float("nan")
