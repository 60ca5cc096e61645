"""How a classifier learns from labels: the head alone, or after it the whole network.

The head is fitted on frozen features first, in both cases: with few labels, a network that starts
from a random head unlearns what its backbone knew (Kumar et al., arXiv:2202.10054).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightly.utils.scheduler import cosine_warmup_schedule
from lightning_fabric import Fabric
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from torch import Tensor

from cubeclf_core.augment import bend, drop_background, flip_and_rotate, photon_noise
from cubeclf_core.axes import Size3
from cubeclf_core.classifier import Classifier
from cubeclf_core.config import AugmentConfig
from cubeclf_core.console import progress
from cubeclf_core.draws import Draws
from finetune.config import FinetuneConfig
from finetune.labels import Labelled

_GAMMA, _NOISE = AugmentConfig.gamma, AugmentConfig.noise  # contrast tells what a cell is
_COPIES = 4  # flipped and rotated, of each cuboid, for the head
_INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0)  # C of the logistic regression, to choose from


def fit_head(classifier: Classifier, data: Labelled, seed: int) -> None:
    """Fit the linear head on the features of the backbone as it is.

    The penalty is chosen by cross-validation within the labels. Classes count alike; the bias is
    then moved so that probabilities are those of brains with the training labels' share of cells.
    """
    voxel_size_um = classifier.backbone.config.voxel_size_um
    copies = [embed(classifier, data.cuboids)]
    while len(copies) < _COPIES:
        draws = Draws(seed, len(copies), range(len(data.cuboids)))
        moved = flip_and_rotate(data.cuboids, draws, voxel_size_um=voxel_size_um)
        copies.append(embed(classifier, moved))
    features = torch.cat(copies)
    labels = np.tile(data.labels, _COPIES)
    classifier.feature_mean.copy_(features.mean(0))
    classifier.feature_std.copy_(features.std(0).clamp_min(1e-6))
    x = ((features - classifier.feature_mean) / classifier.feature_std).double().numpy()
    regression = _regression(_choose_penalty(x, labels, seed)).fit(x, labels)
    weight = torch.from_numpy(regression.coef_[0]).float()
    bias = float(regression.intercept_[0]) + prior_log_odds(data.labels)
    with torch.no_grad():  # as two classes with opposite logits, for a softmax
        classifier.head.weight.copy_(torch.stack([-weight / 2, weight / 2]))
        classifier.head.bias.copy_(torch.tensor([-bias / 2, bias / 2]))


def _choose_penalty(x: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], seed: int) -> float:
    """Choose C by AUC in five folds of the training labels; a label's copies share a fold."""
    label = np.arange(len(labels)) % (len(labels) // _COPIES)
    n_folds = min(5, int(np.bincount(labels).min()) // _COPIES)
    if n_folds < 2:
        return _INVERSE_PENALTIES[0]
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    scores = [
        cross_val_score(_regression(c), x, labels, groups=label, scoring="roc_auc", cv=folds).mean()
        for c in _INVERSE_PENALTIES
    ]
    return _INVERSE_PENALTIES[int(np.argmax(scores))]


def _regression(c: float) -> LogisticRegression:
    return LogisticRegression(C=c, class_weight="balanced", max_iter=2000)


def prior_log_odds(labels: npt.NDArray[np.int64]) -> float:
    """Logit of the share of cells: what training on balanced classes leaves out."""
    share = float(labels.mean())
    return float(np.log(share / (1 - share)))


@torch.no_grad()
def embed(
    classifier: Classifier, cuboids: Float[Tensor, "n c z y x"], batch_size: int = 64
) -> Float[Tensor, "n feature"]:
    """Pooled features of raw cuboids, in evaluation mode."""
    classifier.eval()
    return torch.cat([classifier.features(part) for part in cuboids.split(batch_size)])


@torch.no_grad()
def predict(
    classifier: Classifier, cuboids: Float[Tensor, "n c z y x"], batch_size: int = 64
) -> npt.NDArray[np.float64]:
    """Probability of a cell, shape (n,)."""
    classifier.eval()
    logits = torch.cat([classifier(part) for part in cuboids.split(batch_size)])
    probability: npt.NDArray[np.float64] = logits.double().softmax(1)[:, 1].numpy()
    return probability


def finetune_network(
    classifier: Classifier, data: Labelled, config: FinetuneConfig
) -> Iterator[dict[str, float]]:
    """Train backbone and head together, from a head that `fit_head` has fitted.

    Yields
    ------
    dict
        ``step`` and ``loss`` of every step, as they are taken. The classifier is back on the CPU
        and in evaluation mode after the last.
    """
    fabric = Fabric(accelerator="auto", devices=1)
    optimizer = torch.optim.AdamW(
        [p for p in classifier.parameters() if p.requires_grad], lr=0.0, weight_decay=0.05
    )
    model, optimizer = fabric.setup(classifier, optimizer)
    model.train()
    # The head's bias holds the training prevalence; batches are balanced, so it is taken out here.
    balance = torch.tensor([0.5, -0.5], device=fabric.device) * prior_log_odds(data.labels)
    with progress("fine-tuning", config.steps, unit="steps") as advance:
        for step in range(config.steps):
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(config, step)
            index = _balanced_batch(data.labels, config.batch_size, config.seed, step)
            labels = torch.from_numpy(data.labels[index]).to(fabric.device)
            draws = Draws(config.seed, step, range(len(index)), fabric.device)
            cuboids = data.cuboids[torch.from_numpy(index)].to(fabric.device)
            cuboids = _augment(cuboids, draws, classifier.backbone.config.voxel_size_um)
            loss = F.cross_entropy(model(cuboids) + balance, labels, label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            advance(note=f"loss {float(loss.detach()):.4f}")
            yield {"step": step, "loss": float(loss.detach())}
    classifier.cpu().eval()


def _augment(
    cuboids: Float[Tensor, "b c z y x"], draws: Draws, voxel_size_um: Size3
) -> Float[Tensor, "b c z y x"]:
    """Change what tells nothing of a cell: where it points, how it was photographed."""
    cuboids = flip_and_rotate(cuboids, draws.fork(0), voxel_size_um=voxel_size_um)
    cuboids = bend(cuboids, draws.fork(1), gamma=_GAMMA)
    cuboids = photon_noise(cuboids, draws.fork(2), noise=_NOISE)
    return drop_background(cuboids, draws.fork(3), probability=0.1)


def _balanced_batch(
    labels: npt.NDArray[np.int64], size: int, seed: int, step: int
) -> npt.NDArray[np.int64]:
    random = np.random.default_rng((seed, step))
    half = [
        random.choice(np.flatnonzero(labels == kind), n)
        for kind, n in ((1, size // 2), (0, size - size // 2))
    ]
    return np.concatenate(half)


def _learning_rate(config: FinetuneConfig, step: int) -> float:
    warm_up = max(1, config.steps // 10)
    rate: float = cosine_warmup_schedule(
        step=step,
        max_steps=config.steps + 1,
        start_value=config.learning_rate,
        end_value=config.learning_rate / 100,
        warmup_steps=warm_up,
        warmup_start_value=config.learning_rate / warm_up,
    )
    return rate
