"""How a classifier learns from labels: one trial, from a fresh network to its best epoch.

A linear head is fitted on frozen features first, whatever is trained after it but random weights:
with few labels, a network that starts from a random head unlearns what its backbone knew (Kumar et
al., arXiv:2202.10054). Normalisations that are trained, of residual networks, are settled before.
Batches are balanced (`finetune.batches`); what the classes' shares say is put into the logits, so
that probabilities are those of brains with the training labels' share of cells.
While it is learned from, each brain has an intercept of its own (`cubeclf_core.regression`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightly.utils.scheduler import cosine_warmup_schedule
from lightning_fabric import Fabric
from sklearn.metrics import average_precision_score
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from cubeclf_core.draws import Draws
from cubeclf_core.engine import load_state, save_state
from cubeclf_core.errors import TrainingDiverged
from cubeclf_core.heads import CELL_CLASS, Head
from cubeclf_core.regression import Logistic, fit_logistic, mean_of, share_intercepts, widened
from finetune.adapt import settle_statistics, trained_norms
from finetune.batches import Batches, Index
from finetune.config import FinetuneConfig
from finetune.examples import Examples, Features, in_parts

HEADS = 4
"""Of the way to fit heads: what was kept of one is not taken up by another."""

BEGINNING = 1
"""Likewise, of how training begins where no head is fitted first."""

_EMA = 0.99  # towards which the share of the old rises
_LABEL_SMOOTHING = 0.1
_WARM_UP = 0.1  # share of the steps
_INTERCEPT_RATE = 0.03  # of brains, whose logits differ by some units, at the peak

Labels = npt.NDArray[np.int64]


def fit_head(
    head: Head,
    features: Features,
    labels: Labels,
    brains: Labels,
    seed: int,
    *,
    n_projected: int = 0,
    for_others: bool = False,
) -> Float[Tensor, "brain klass"]:
    """Fit a linear head on features of labels.

    It is the mean of two rules, or the first of them. One learns from all copies, so
    that neither end of z is told from the other, and where there is a projection from that alone:
    with few labels it is hard to beat. The other learns from copies in the plane, as z may have a
    direction (where artefacts lie along the tissue's surface, say), and from all features, as
    surroundings may tell what the projection was taught to leave out. Few labels do not say which
    is better; the mean is seldom worse than either. But what lies around cells, and on which side,
    is a matter of the brain, and says little of others.

    Each brain has an intercept of its own while it is learned from, and its classes count alike
    (`cubeclf_core.regression`); the bias is then moved so that probabilities are those of brains
    with the shares of the classes that all labels together have.

    Parameters
    ----------
    head
        A linear one.
    features
        Of the labels.
    labels, brains
        Shape (n,): class, and number of the brain, of each.
    seed
        Of the cross-validation that chooses the penalty.
    n_projected
        How many features, the first, are a projection of the others; 0 if none are.
    for_others
        Whether it is for other brains than those of the labels: the first rule alone.

    Returns
    -------
    Tensor
        Shape (brain, class): what the logits of each brain have beside those of the head.
    """
    head.fit_scale(features.copies)
    x = ((features.copies - head.mean) / head.deviation).double().numpy()
    n_classes = len(head.config.classes)

    def fit(copies: npt.NDArray[np.float64]) -> Logistic:
        n = len(copies)
        return fit_logistic(
            copies.reshape(-1, copies.shape[2]),
            np.tile(labels, n),
            np.tile(brains, n),
            n_classes=n_classes,
            copy_of=np.tile(np.arange(len(labels)), n),
            seed=seed,
        )

    rule = fit(x[:, :, : n_projected or None])
    rule = widened(rule, x.shape[2]) if for_others else mean_of(rule, fit(x[: features.n_in_plane]))
    weight, bias, intercepts = map(_of_each_class, (rule.weight.T, rule.bias, rule.intercepts))
    with torch.no_grad():
        head.last.weight.copy_(weight.T)
        head.last.bias.copy_(bias.float() + prior_logits(labels, len(bias)))
    return intercepts.float()


def _of_each_class(values: npt.NDArray[np.float64]) -> Tensor:
    """Take classes to be last; of two, log odds become opposite logits, for a softmax."""
    logits = torch.from_numpy(values)
    return torch.cat([-logits / 2, logits / 2], -1) if logits.shape[-1] == 1 else logits


def prior_logits(labels: Labels, n_classes: int) -> Float[Tensor, " klass"]:
    """Logarithms of the classes' shares, of mean 0: what training on balanced classes leaves out.

    A class without a label counts as half a label.
    """
    counts = np.bincount(labels, minlength=n_classes).clip(0.5)
    logits = torch.from_numpy(np.log(counts / counts.sum())).float()
    return logits - logits.mean()


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training: on some labels, looked at on others.

    Attributes
    ----------
    name
        For people.
    train
        Which labels are learned from.
    held_out
        Which decide when it was best; if None, the last epoch is.
    epochs
        How many to take.
    seed
        Of everything random.
    """

    name: str
    train: Index
    held_out: Index | None
    epochs: int
    seed: int


@dataclass(kw_only=True)
class Training:
    """A trial under way.

    Attributes
    ----------
    config
        Rates, sizes and patience.
    trial
        What is trained on what.
    network
        From what `examples` gives to logits; some of its parameters are trained. It is on the
        fabric's device.
    groups
        Makes AdamW's parameter groups, each with its `scale` of the learning rate.
    thawed_later
        Parameters that stay as they are for the first `unfreeze_epoch` epochs.
    train_mode
        Puts the network into training mode.
    examples
        What is learned from.
    labels, brains
        Class of each, and the number of its brain.
    intercepts
        What the logits of each brain have beside the network's, to begin with.
    n_classes
        How many classes there are, whether or not they have labels.
    fabric
        Device and precision.
    tell
        Says a line to the user.
    """

    config: FinetuneConfig
    trial: Trial
    network: nn.Module
    groups: list[dict[str, Any]]
    thawed_later: Sequence[nn.Parameter]
    train_mode: Callable[[], Any]
    examples: Examples
    labels: Labels
    brains: Labels
    intercepts: Float[Tensor, "brain klass"]
    n_classes: int
    fabric: Fabric
    tell: Callable[[str], None]
    epoch: int = 0
    best_epoch: int = 0
    best: dict[str, float] = field(default_factory=dict)
    fitted: float | None = None  # average precision before the first epoch
    parts: int = 1  # into which a batch is cut, for want of memory

    def __post_init__(self) -> None:
        own = self.trial.train
        groups = share_intercepts(self.labels[own], self.brains[own])
        self.batches = Batches(
            own, self.labels, self.brains, size=self.config.batch_size, seed=self.trial.seed
        )
        # Of each label; brains that are not learned from have none.
        self.groups_of = np.full(len(self.labels), -1)
        self.groups_of[own] = groups
        begin = torch.zeros(groups.max() + 1, self.n_classes)
        begin[torch.from_numpy(groups)] = self.intercepts[torch.from_numpy(self.brains[own])]
        self.of_brains = nn.ParameterList([begin.to(self.fabric.device)])
        rates = {"lr": 0.0, "scale": _INTERCEPT_RATE / self.config.peak_rate, "weight_decay": 0.0}
        ours = [{"params": list(self.of_brains), **rates}] if groups.max() else []
        self.optimizer = torch.optim.AdamW([*self.groups, *ours])
        self.averaged = ModelEmaV3(self.network, decay=_EMA, use_warmup=True, warmup_gamma=1.0)
        self.kept = copy.deepcopy(self.network)  # the averaged weights of the best epoch
        # Batches are balanced, and what the head holds of the classes' shares is taken out there.
        self.balance = -prior_logits(self.labels[own], self.n_classes).to(self.fabric.device)
        self.steps = len(self.batches)

    def run(self) -> Iterator[dict[str, Any]]:
        """Train until the epochs are over, or the held-out labels have not improved for long.

        Yields
        ------
        dict
            After each epoch, what there is to tell of it. The state may be saved then.
        """
        if not self.epoch and self.config.fits_first:
            self.best = self._look()  # what was fitted at once may be the best there is
            self.fitted = self.best.get("validation_average_precision")
        while self.epoch < self.trial.epochs and not self._tired():
            losses = [self._step(self.epoch * self.steps + i) for i in range(self.steps)]
            self._settle()
            told: dict[str, Any] = {
                "trial": self.trial.name,
                "epoch": self.epoch,
                "train_loss": float(np.mean(losses)),
            }
            told |= {"learning_rate": self._rate((self.epoch + 1) * self.steps - 1)}
            told |= {} if self.fitted is None else {"fitted_average_precision": self.fitted}
            looked = self._look()
            self.epoch += 1
            if self.trial.held_out is None or self._better(looked):
                self.best, self.best_epoch = looked, self.epoch
                self.kept.load_state_dict(self.averaged.module.state_dict())
            yield told | looked

    def take_best(self) -> None:
        """Put the best epoch's averaged weights into the network, in evaluation mode."""
        self.network.load_state_dict(self.kept.state_dict())
        self.network.eval()

    def _tired(self) -> bool:
        held_out = self.trial.held_out is not None
        return held_out and self.epoch - self.best_epoch >= self.config.patience

    def _better(self, looked: dict[str, float]) -> bool:
        """Whether an epoch ranks held-out labels better, or as well but with a lower loss."""

        def key(values: dict[str, float]) -> tuple[float, float]:
            return values["validation_average_precision"], -values["validation_loss"]

        return not self.best or key(looked) > key(self.best)

    def _look(self) -> dict[str, float]:
        if self.trial.held_out is None:
            return {}
        logits = self._ask(self.averaged.module, self.trial.held_out).float()
        if not logits.isfinite().all():  # the last step of an epoch may spoil a network unseen
            raise TrainingDiverged(
                f"{self.trial.name}: what it says of labels that are held out is no number after "
                f"epoch {self.epoch + 1}; try a lower learning_rate"
            )
        labels = torch.from_numpy(self.labels[self.trial.held_out])
        score = logits.softmax(1)[:, CELL_CLASS].double().numpy()
        precision = average_precision_score(labels.numpy() == CELL_CLASS, score)
        return {
            "validation_loss": float(F.cross_entropy(logits, labels)),
            "validation_average_precision": float(precision),
        }

    def _settle(self) -> None:
        """Give the averaged network the statistics of its own weights on what it learns from.

        What nobody asks before the last epoch waits until then.
        """
        if self.trial.held_out is None and self.epoch + 1 < self.trial.epochs:
            return
        network, device = self.averaged.module.eval(), self.fabric.device
        drawn = map(torch.from_numpy, self.batches)
        batches = (self.examples.plain(index).to(device) for index in drawn)
        settle_statistics(network, trained_norms(self.network), batches)

    def _ask(self, network: nn.Module, index: Index) -> Float[Tensor, "n klass"]:
        network.eval()
        device = self.fabric.device
        return in_parts(
            network, lambda part: self.examples.plain(part).to(device), torch.from_numpy(index)
        )

    def _step(self, step: int) -> float:
        """Learn from one batch; with less at a time from now on if there is too little memory."""
        thawed = step >= self.config.unfreeze_epoch * self.steps
        for parameter in self.thawed_later:
            parameter.requires_grad_(thawed)
        rate = self._rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        index = self.batches.draw(step)
        while True:
            try:
                loss = self._gradient(index, step)
                break
            except (torch.OutOfMemoryError, RuntimeError) as error:
                self.optimizer.zero_grad(set_to_none=True)
                if not _lacks_memory(error) or self.parts >= len(index):
                    raise
                self.parts = min(2 * self.parts, len(index))
                at_a_time = -(-len(index) // self.parts)
                self.tell(f"too little memory: going on with {at_a_time} cuboids at a time")
        norm = nn.utils.clip_grad_norm_((p for g in self.groups for p in g["params"]), 1.0)
        if not math.isfinite(loss) or not norm.isfinite():
            raise TrainingDiverged(
                f"{self.trial.name}: loss {loss:.3g} and gradient {norm:.3g} in epoch "
                f"{self.epoch + 1}; try a lower learning_rate than {rate:.2g}, or precision 32-true"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.averaged.update(self.network, step=step)
        return loss

    def _gradient(self, index: Index, step: int) -> float:
        """Add up the gradient of a batch, part by part; returns the loss."""
        torch.manual_seed(self.trial.seed * 1_009 + step)  # for drop path
        self.train_mode()
        total = 0.0
        items = np.arange(len(index))
        for part in (items[i :: self.parts] for i in range(self.parts)):  # of all classes each
            draws = Draws(self.trial.seed, step, part.tolist(), self.fabric.device)
            labels = torch.from_numpy(self.labels[index[part]]).to(self.fabric.device)
            inputs = self.examples.training(torch.from_numpy(index[part]), draws)
            with self.fabric.autocast():
                logits = self.network(inputs).float()
            logits = logits + self.balance + self._of_brain(index[part])
            loss = F.cross_entropy(logits, labels, label_smoothing=_LABEL_SMOOTHING)
            loss = loss * (len(part) / len(index))
            loss.backward()
            total += float(loss.detach())
        return total

    def _of_brain(self, index: Index) -> Float[Tensor, "n klass"]:
        """What a label's brain adds to its logits, less the mean over labels."""
        intercepts: Tensor = self.of_brains[0]
        groups = torch.from_numpy(self.groups_of).to(intercepts.device)
        mean = intercepts[groups[torch.from_numpy(self.trial.train)]].mean(0)
        return intercepts[groups[torch.from_numpy(index)]] - mean

    def _rate(self, step: int) -> float:
        """Learning rate of a step; the schedule is that of all epochs, taken or not."""
        steps = self.config.epochs * self.steps
        warm_up = max(1, round(_WARM_UP * steps))
        peak = self.config.peak_rate
        rate: float = cosine_warmup_schedule(
            step=step,
            max_steps=steps + 1,
            start_value=peak,
            end_value=peak / 100,
            warmup_steps=warm_up,
            warmup_start_value=peak / warm_up,
        )
        return rate

    def save(self, path: Path, told: Mapping[str, Any], backbone: Mapping[str, Any]) -> None:
        """Write all that is needed to go on after this epoch, and what else the run has to tell."""
        mine: dict[str, Any] = {"epoch": self.epoch, "best_epoch": self.best_epoch}
        mine |= {"best": self.best, "fitted": self.fitted, "parts": self.parts}
        state = {**told, "training": mine}
        save_state(path, self._all(), self.optimizer, state, backbone)

    def restore(self, path: Path) -> None:
        """Go on after the epoch that was saved last."""
        mine = load_state(path, self._all(), self.optimizer)["training"]
        self.epoch, self.best_epoch = mine["epoch"], mine["best_epoch"]
        self.best, self.fitted, self.parts = mine["best"], mine["fitted"], mine["parts"]

    def _all(self) -> nn.ModuleDict:
        weights = {"network": self.network, "averaged": self.averaged.module, "kept": self.kept}
        return nn.ModuleDict({**weights, "of_brains": self.of_brains})


def _lacks_memory(error: Exception) -> bool:
    """Whether a device, or the machine, had too little memory; on a CPU only the text tells."""
    told = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "can't allocate memory" in told
        or "out of memory" in told
    )
