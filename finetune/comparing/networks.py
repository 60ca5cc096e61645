"""Contenders with a network: trained on the labels of a task as `cubeclf-finetune` trains it."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import average_precision_score

from cubeclf_core.console import say
from cubeclf_core.content import content_hash
from cubeclf_core.engine import device_kind, make_fabric
from cubeclf_core.errors import InputError, TrainingDiverged
from cubeclf_core.files import replacing
from cubeclf_core.heads import CELL_CLASS
from finetune.comparing.plan import Contender
from finetune.comparing.stock import Stock
from finetune.comparing.tasks import Answer, Index, Task
from finetune.config import FinetuneConfig
from finetune.examples import Features, in_parts, keep_features
from finetune.parts import Split
from finetune.splits import split
from finetune.starting import load_start, untrained_classifier
from finetune.training import HEADS
from finetune.trials import Trials

USUAL = 1.0


@dataclass(frozen=True)
class Rate:
    """A learning rate that was chosen.

    Attributes
    ----------
    factor
        Of the contender's usual one.
    how
        By what it was chosen.
    """

    factor: float
    how: str


@dataclass(frozen=True)
class Network:
    """A contender's network with the weights it has for one group and seed.

    Attributes
    ----------
    contender
        How it is trained.
    backbone
        Name or path.
    seed
        Of everything random.
    stock
        All labels.
    folder
        Where features of frozen backbones are kept.
    """

    contender: Contender
    backbone: str
    seed: int
    stock: Stock
    folder: Path

    def config(self, rate: Rate | None = None, *, protocol: str = "") -> FinetuneConfig:
        """Settings of a training, by a rate and for a protocol if these matter."""
        factor = USUAL if rate is None else rate.factor
        more = for_protocol(protocol, self.contender)
        return self.contender.settings(self.backbone, self.seed, rate_factor=factor, **more)

    def choose_rate(self, task: Task) -> Rate:
        """Try the contender's learning rates on a part of what a task of the first seed teaches."""
        factors = self.contender.rates
        if self.config().fits_at_once:
            return Rate(USUAL, "none: a head is fitted at once")
        if len(factors) == 1:
            return Rate(factors[0], "given")
        parts = self._held_out(task)
        if not parts:
            return Rate(USUAL, "the usual one: too few labels to hold any out")
        kinds = self.stock.labels.labels[task.learn][parts[0].held_out] == CELL_CLASS
        found: dict[float, float] = {}
        failed: dict[float, str] = {}
        for factor in factors:
            try:
                said = self._tried(task, Rate(factor, ""), parts[0])
            except TrainingDiverged as error:
                failed[factor] = str(error)
                continue
            found[factor] = float(average_precision_score(kinds, said))
        if not found:
            lowest = min(factors)
            raise TrainingDiverged(
                f"with {task.name} it diverges at each of the rates {_list(factors)}; give it "
                f"lower ones (at {lowest:g}: {failed[lowest]})"
            )
        # Of equals, which few held-out labels often make, the one nearest to the usual.
        best = max(found, key=lambda factor: (found[factor], -abs(math.log(factor))))
        tried = ", ".join(
            f"{factor:g}: {found[factor]:.3f}" if factor in found else f"{factor:g}: diverged"
            for factor in factors
        )
        return Rate(best, f"average precision {tried}; of {len(task.learn)} labels, {parts[0].how}")

    def answer(self, task: Task, rate: Rate) -> Answer:
        """Train on what a task gives to learn from, and score what it tests."""
        start = time.monotonic()
        # Where none is held out, or can be, it is trained for as long as the settings say.
        parts = self._held_out(task) if self.config().parts_held_out else []
        outcome = self._trials(task, rate, parts).run(resume=False)
        trained = time.monotonic()
        tested = self._known(task.test)
        everything = torch.arange(len(task.test))
        if tested is not None:
            logits = in_parts(outcome.classifier.head, tested.plain, everything)
        else:
            cuboids, index = self.stock.labels.cuboids, torch.from_numpy(task.test)
            device = make_fabric(self.config().precision, alone=True).device
            outcome.classifier.to(device)
            logits = in_parts(
                outcome.classifier, lambda part: cuboids[index[part]].to(device), everything
            )
        scores = self._of_cells(logits)
        return Answer(scores, outcome.epochs, trained - start, time.monotonic() - trained)

    def _tried(self, task: Task, rate: Rate, part: Split) -> npt.NDArray[np.float64]:
        """Train on a part of what a task teaches, and score the rest: at its best, or at last."""
        if self.config().parts_held_out:
            said = self._trials(task, rate, [part]).hold_out()
            return self._of_cells(said)
        inner = replace(task, learn=task.learn[part.train], test=task.learn[part.held_out])
        return self.answer(inner, rate).scores

    def _of_cells(self, logits: torch.Tensor) -> npt.NDArray[np.float64]:
        """Give probabilities of the class of cells; the last step of a training may spoil them."""
        scores: npt.NDArray[np.float64] = logits.double().softmax(1)[:, CELL_CLASS].numpy()
        if not self.config().fits_at_once and not np.isfinite(scores).all():
            raise TrainingDiverged("what it says in the end is no number")
        return scores

    def _held_out(self, task: Task) -> list[Split]:
        """A part of what a task learns from, to choose by; none where a head is fitted at once."""
        if self.config().fits_at_once:
            return []
        labels, index = self.stock.labels, task.learn
        brains = [labels.brains[i] for i in index]
        where = labels.labels[index], brains, labels.positions_um[index], self.stock.reach
        try:
            return [split(*where, seed=self.seed)]
        except InputError:  # too few labels
            return []

    def _trials(self, task: Task, rate: Rate, splits: Sequence[Split]) -> Trials:
        config = self.config(rate, protocol=task.protocol)
        start = load_start(self.backbone, channels=config.channels, seed=self.seed)
        return Trials(
            config=config,
            base=untrained_classifier(start, config),
            data=self.stock.labels.subset(task.learn),
            splits=splits,
            fabric=make_fabric(config.precision, alone=True),
            log=lambda told: None,
            trim=lambda step: None,
            tell=say,
            checkpoint=None,
            known=self._known(task.learn),
        )

    def features_file(self, group: str) -> Path | None:
        """Where it is kept what a frozen backbone says of a group's labels.

        Returns
        -------
        Path or None
            Of an array, shape (copies, n, feature), in the order of the group's labels; None for a
            network that is trained, or a head that takes tokens.
        """
        config = self.config()
        if not config.embeds_once:
            return None
        weights = content_hash(self.backbone)
        told: list[Any] = [weights, version("cubeclf"), device_kind(), self.stock.digest]
        told += [group, config.copies, self.seed, config.head, HEADS]
        return self.folder / f"{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]}.npy"

    def keep_features(self, group: str) -> Path | None:
        """Compute what a frozen backbone says of a group's labels, unless that is known."""
        file, config = self.features_file(group), self.config()
        if file is not None and not file.exists():
            start = load_start(self.backbone, channels=config.channels, seed=self.seed)
            kept = keep_features(
                untrained_classifier(start, config),
                self.stock.labels.cuboids[torch.from_numpy(self._of(group))],
                copies=config.copies,
                device=make_fabric(config.precision, alone=True).device,
            )
            with replacing(file) as made, made.open("wb") as opened:
                np.save(opened, kept.copies.numpy())
        return file

    def _known(self, index: Index) -> Features | None:
        """Features of some labels, which may be of several groups."""
        parts: list[tuple[Index, npt.NDArray[np.float32]]] = []
        for group in sorted({self.stock.labels.brains[i] for i in index}):
            file = self.keep_features(group)
            if file is None:
                return None
            of_group = self._of(group)
            wanted = np.isin(of_group, index)
            parts.append((of_group[wanted], np.load(file, mmap_mode="r")[:, wanted]))
        order = np.argsort(np.concatenate([of_group for of_group, _ in parts]))
        copies = np.concatenate([copies for _, copies in parts], axis=1)
        return Features(torch.from_numpy(copies[:, order]))

    def _of(self, group: str) -> Index:
        return np.flatnonzero([brain == group for brain in self.stock.labels.brains])


def for_protocol(protocol: str, contender: Contender) -> dict[str, bool]:
    """Settings that a protocol asks for: labels of one other brain are for another, too."""
    given = protocol != "transfer" or "for_others" in contender.train
    return {} if given else {"for_others": True}


def _list(factors: Sequence[float]) -> str:
    return ", ".join(f"{factor:g}" for factor in factors)
