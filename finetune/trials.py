"""All trainings of a run: on parts of the labels, looked at on the others, then once on all.

What the parts held out says when to stop, what the temperature is, and where the threshold lies;
the classifier is the one that has seen all labels.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn

from cubeclf_core.checkpoint import load_checkpoint
from cubeclf_core.console import progress
from cubeclf_core.errors import Stopped
from cubeclf_core.network_configs import n_projected, one_vector
from cubeclf_core.signals import StopRequest, stop_on_signals
from cubeclf_core.trained import Classifier
from finetune.adapt import (
    choose_trained,
    merge_low_rank,
    parameter_groups,
    settle_statistics,
    train_mode,
    trained_norms,
)
from finetune.batches import Batches
from finetune.config import FinetuneConfig
from finetune.examples import Cuboids, Examples, Features, in_parts, keep_features
from finetune.labels import Labelled
from finetune.parts import Split
from finetune.training import Training, Trial, fit_head, prior_logits

ALL = "all labels"

FLIPS = 1
"""Of how copies of one brain's labels are flipped: what was kept of one is no other's."""

_FLIPPED = 10  # labels


@dataclass(frozen=True)
class Outcome:
    """What came of all trainings.

    Attributes
    ----------
    classifier
        Trained on all labels; on the CPU, in evaluation mode, with the weights of one network.
    held_out
        Number of each label that was held out once.
    logits
        Of these, each by a network that has not seen it; shape (len(held_out), class).
    epochs
        That the classifier was trained for; 0 where a head was fitted at once.
    features
        Of the network before it was trained, its trained normalisations settled; shape (n,
        feature).
    """

    classifier: Classifier
    held_out: npt.NDArray[np.int64]
    logits: Float[Tensor, "m klass"]
    epochs: int
    features: Float[Tensor, "n feature"]


@dataclass(kw_only=True)
class Trials:
    """The trainings of a run, under way.

    Attributes
    ----------
    config
        What is trained, and how long.
    base
        The network that each of them starts from.
    data
        All labels.
    splits
        What each but the last holds out.
    fabric
        Device and precision.
    log
        Takes what there is to tell of an epoch.
    trim
        Forgets what was told of this epoch, counted over all trainings, and those after it.
    tell
        Says a line to the user.
    checkpoint
        File to go on from; None if nobody will.
    known
        What a network whose normalisations are not trained says of all labels before it is
        trained, if that is known already.
    """

    config: FinetuneConfig
    base: Classifier
    data: Labelled
    splits: Sequence[Split]
    fabric: Fabric
    log: Callable[[Mapping[str, Any]], None]
    trim: Callable[[int], None]
    tell: Callable[[str], None]
    checkpoint: Path | None
    known: Features | None = None
    done: list[dict[str, Any]] = field(default_factory=list)
    """Of each training that is over: its best epoch, and the logits of what it held out."""

    def __post_init__(self) -> None:
        self.brains = self.data.brain_numbers

    def run(self, resume: bool) -> Outcome:
        """Take all trainings that are left.

        Raises
        ------
        Stopped
            If a signal asked for it; what was trained up to the last epoch is kept.
        KeyboardInterrupt
            Likewise, with Ctrl-C.
        """
        told: dict[str, Any] = {}
        if resume and self.checkpoint:
            told = load_checkpoint(self.checkpoint, "training")[0].training
        self.done = list(told.get("done", self.done))
        if told:
            self.trim(self._epochs_before() + told["training"]["epoch"])
        with stop_on_signals() as stop:
            self._hold_out(stop, resume=bool(told) and len(self.done) < len(self.splits))
            trial = self._trial(len(self.splits))
            going_on = bool(told) and len(told["done"]) == len(self.splits)
            classifier, _, before = self._train(trial, stop, resume=going_on)
        merge_low_rank(classifier)
        held_out = [split.held_out for split in self.splits]
        logits = [torch.tensor(done["logits"]) for done in self.done]
        return Outcome(
            classifier.cpu().eval(),
            np.concatenate(held_out) if held_out else np.zeros(0, np.int64),
            torch.cat(logits) if logits else torch.zeros(0, len(self.base.head.config.classes)),
            0 if self.config.fits_at_once else trial.epochs,
            before,
        )

    def hold_out(self) -> Float[Tensor, "m klass"]:
        """Take the trainings that hold something out, and give the logits of that, in turn."""
        with stop_on_signals() as stop:
            self._hold_out(stop, resume=False)
        return torch.cat([torch.tensor(done["logits"]) for done in self.done])

    def _hold_out(self, stop: StopRequest, *, resume: bool) -> None:
        for number in range(len(self.done), len(self.splits)):
            trial = self._trial(number)
            classifier, epochs, _ = self._train(trial, stop, resume=resume)
            resume = False
            said = self._ask(classifier, trial.held_out)
            self.done.append({**epochs, "logits": said.tolist()})
            if stop:
                self._leave(stop, trial)

    @functools.cached_property
    def _features(self) -> Features:
        """What the network says of all labels before it is trained."""
        return self.known or self._keep_features(self.base, self.data.cuboids)

    def _features_before(self, classifier: Classifier, trial: Trial) -> Features:
        """What a network says of a trial's labels before it is trained on them.

        A normalisation that is trained goes by each batch, not by what it kept: a head that was
        fitted on what a network says by strange statistics, or by none, misleads its training. So
        they are settled; the classifier is on the CPU afterwards.
        """
        own, norms = trial.train, trained_norms(classifier)
        if not norms:
            return Features(self._features.copies[:, torch.from_numpy(own)])
        device = self.fabric.device
        classifier.to(device).eval()
        batches = Batches(
            own, self.data.labels, self.brains, size=self.config.batch_size, seed=trial.seed
        )
        drawn = map(torch.from_numpy, batches)
        settle_statistics(classifier, norms, (self.data.cuboids[i].to(device) for i in drawn))
        return self._keep_features(classifier, self.data.cuboids[torch.from_numpy(own)])

    def _keep_features(
        self, classifier: Classifier, cuboids: Float[Tensor, "n c z y x"]
    ) -> Features:
        copies = self.config.copies if self.config.frozen or self.config.fits_first else 1
        features = keep_features(classifier, cuboids, copies=copies, device=self.fabric.device)
        classifier.cpu()  # where heads are fitted, and what is added to a network is made
        return features

    @property
    def _for_others(self) -> bool:
        """Of all trainings alike: one that holds a brain out learns from fewer brains than all."""
        given = self.config.for_others
        return len(np.unique(self.brains)) > 1 if given is None else given

    def _trial(self, number: int) -> Trial:
        """Describe a training; the last is that on all labels, for as long as the others took."""
        seed = (self.config.seed * 1_000 + number) % (1 << 32)
        if number < len(self.splits):
            split = self.splits[number]
            name = f"part {number + 1} of {len(self.splits)}"
            epochs = self.config.epochs
            return Trial(
                name=name, train=split.train, held_out=split.held_out, epochs=epochs, seed=seed
            )
        best = [done["best_epoch"] for done in self.done]
        epochs = round(float(np.mean(best))) if best else self.config.epochs
        everything = np.arange(len(self.data))
        return Trial(name=ALL, train=everything, held_out=None, epochs=epochs, seed=seed)

    def _train(
        self, trial: Trial, stop: StopRequest, *, resume: bool
    ) -> tuple[Classifier, dict[str, int], Float[Tensor, "n feature"]]:
        """Take one training to its end.

        Returns
        -------
        tuple
            The classifier, its epochs and the best of them, and what the network said of what it
            learns from before it was trained.
        """
        classifier = copy.deepcopy(self.base)
        self._choose(classifier)
        features = self._features_before(classifier, trial)
        labels, brains = self.data.labels[trial.train], self.brains[trial.train]
        head, n_classes = classifier.head, len(self.base.head.config.classes)
        if self.config.fits_first:
            intercepts = fit_head(
                head,
                features,
                labels,
                brains,
                trial.seed,
                n_projected=n_projected(classifier.backbone.config),
                for_others=self._for_others,
            )
        else:
            intercepts = torch.zeros(brains.max() + 1, n_classes)
            if not self.config.from_nothing:
                head.fit_scale(features.copies)
            with torch.no_grad():
                head.last.bias.copy_(prior_logits(labels, n_classes))
        before = one_vector(features.copies[0], classifier.backbone.config).clone()
        del features  # of many tokens, perhaps
        if self.config.fits_at_once:
            return classifier.eval(), {"epochs": 0, "best_epoch": 0}, before
        classifier.to(self.fabric.device)
        training = self._training(trial, classifier, intercepts)
        if resume and self.checkpoint:
            training.restore(self.checkpoint)
        backbone = dataclasses.asdict(self.base.backbone.config)
        with progress(
            f"training, {trial.name}", trial.epochs, unit="epochs", done=training.epoch
        ) as advance:
            for told in training.run():
                fold = {} if trial.held_out is None else {"fold": len(self.done)}
                self.log({"step": self._epochs_before() + told["epoch"], **fold, **told})
                if self.checkpoint:
                    training.save(self.checkpoint, {"done": self.done}, backbone)
                advance(note=_note(told))
                if stop:
                    self._leave(stop, trial)
        training.take_best()
        epochs = {"epochs": training.epoch, "best_epoch": training.best_epoch}
        return classifier, epochs, before

    def _epochs_before(self) -> int:
        return sum(done["epochs"] for done in self.done)

    def _choose(self, classifier: Classifier) -> None:
        config = self.config
        choose_trained(
            classifier,
            freeze=config.frozen,
            last=config.unfreeze_last,
            rank=config.lora_rank,
            seed=config.seed,
        )

    def _training(
        self,
        trial: Trial,
        classifier: Classifier,
        intercepts: Float[Tensor, "brain klass"],
    ) -> Training:
        config = self.config
        network: nn.Module = classifier.head if config.frozen else classifier
        voxel_size_um = classifier.backbone.config.voxel_size_um
        along_z = share_flipped(len(trial.train), for_others=self._for_others)
        examples: Examples = (
            dataclasses.replace(self._features, along_z=along_z)
            if config.frozen
            else Cuboids(self.data.cuboids, voxel_size_um, along_z)
        )
        groups = parameter_groups(
            classifier,
            rate=config.peak_rate,
            head_rate=config.head_rate,
            layer_decay=config.falling,
            weight_decay=config.weight_decay,
        )
        later = [p for p in classifier.backbone.parameters() if p.requires_grad]
        return Training(
            config=config,
            trial=trial,
            network=network,
            groups=groups,
            thawed_later=later,
            train_mode=lambda: train_mode(classifier),
            examples=examples,
            labels=self.data.labels,
            brains=self.brains,
            intercepts=intercepts,
            n_classes=len(classifier.head.config.classes),
            fabric=self.fabric,
            tell=self.tell,
        )

    def _ask(
        self, classifier: Classifier, index: npt.NDArray[np.int64] | None
    ) -> Float[Tensor, "n klass"]:
        """Logits of what a training held out."""
        assert index is not None
        device = self.fabric.device
        classifier.to(device).eval()
        if self.config.frozen:
            network: nn.Module = classifier.head
            source: Examples = self._features
        else:
            network = classifier
            source = Cuboids(self.data.cuboids, classifier.backbone.config.voxel_size_um)
        return in_parts(
            network, lambda part: source.plain(part).to(device), torch.from_numpy(index)
        ).float()

    def _leave(self, stop: StopRequest, trial: Trial) -> None:
        how = f"in {trial.name}; the same command with --resume goes on after its last epoch"
        if stop.signal == "SIGINT":
            self.tell(f"stopped   {how}")
            raise KeyboardInterrupt
        raise Stopped(f"stopped by {stop.signal} {how}")


def share_flipped(n: int, *, for_others: bool) -> float:
    """Say how many of the cuboids that a training sees are to be flipped along z.

    In a brain z has a direction (artefacts may lie along one side of the tissue, say), which many
    labels tell, and flips hide; of few labels, flips make more. So ten labels' worth are flipped.
    Another brain need not have that direction.

    Parameters
    ----------
    n
        Labels that are learned from.
    for_others
        Whether it is for other brains than those of the labels.

    Returns
    -------
    float
        A probability, ½ at most.
    """
    return 0.5 if for_others else min(0.5, _FLIPPED / n)


def _note(told: Mapping[str, Any]) -> str:
    note = f"loss {told['train_loss']:.3f}"
    if "validation_average_precision" in told:
        note += f", held-out average precision {told['validation_average_precision']:.3f}"
    return note
