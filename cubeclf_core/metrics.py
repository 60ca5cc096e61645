"""How good scores and embeddings are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from cubeclf_core.regression import fit_logistic


def classification_metrics(
    labels: npt.NDArray[np.int64], scores: npt.NDArray[np.float64]
) -> dict[str, float]:
    """Measure how well scores rank cells above the rest.

    Parameters
    ----------
    labels
        Shape (n,), 1 for a cell and 0 otherwise; both occur.
    scores
        Shape (n,), higher for more likely cells.

    Returns
    -------
    dict
        ``auc``; ``average_precision``; ``prevalence``, the share of cells, where average precision
        starts; ``average_precision_less_prevalence``.
    """
    precision = float(average_precision_score(labels, scores))
    prevalence = float(labels.mean())
    return {
        "auc": float(roc_auc_score(labels, scores)),
        "average_precision": precision,
        "prevalence": prevalence,
        "average_precision_less_prevalence": precision - prevalence,
    }


def rank_me(embeddings: Float[Tensor, "n feature"]) -> float:
    """Effective rank of embeddings: the exponential of the entropy of their singular values.

    RankMe (Garrido et al., arXiv:2210.02885): 1 if all lie on a line, the number of features if
    they fill all directions alike.
    """
    values = torch.linalg.svdvals(embeddings.double())
    share = values / values.sum().clamp_min(1e-12) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def feature_deviation(embeddings: Float[Tensor, "n feature"]) -> float:
    """Deviation of a feature among embeddings of length 1, against that of directions at random.

    Chen and He (arXiv:2011.10566), times the root of the number of features: about 1 if embeddings
    point everywhere alike, 0 if all point the same way.
    """
    n_features = embeddings.shape[1]
    directions = F.normalize(embeddings.double(), dim=1)
    return float(directions.std(dim=0).mean()) * math.sqrt(n_features)


def mean_cosine(embeddings: Float[Tensor, "n feature"]) -> float:
    """Mean cosine of two different embeddings: 1 if all point the same way, about 0 at random.

    The length of the sum of all directions tells it, without a matrix of pairs.
    """
    directions = F.normalize(embeddings.double(), dim=1)
    n = len(directions)
    with_themselves = directions.square().sum()  # n, unless an embedding is zero
    return float((directions.sum(dim=0).square().sum() - with_themselves) / (n * (n - 1)))


def embedding_health(embeddings: Float[Tensor, "n feature"]) -> dict[str, float]:
    """Measure whether embeddings of different cuboids differ.

    Parameters
    ----------
    embeddings
        At least two.

    Returns
    -------
    dict
        ``rank_me``, ``feature_deviation`` and ``mean_cosine``, as the functions of these names.
    """
    return {
        "rank_me": rank_me(embeddings),
        "feature_deviation": feature_deviation(embeddings),
        "mean_cosine": mean_cosine(embeddings),
    }


def knn_scores(
    train: Float[Tensor, "n feature"],
    labels: npt.NDArray[np.int64],
    test: Float[Tensor, "m feature"],
    k: int = 20,
) -> npt.NDArray[np.float64]:
    """Score embeddings by the share of cells among their nearest neighbours by cosine.

    Parameters
    ----------
    train
        Embeddings whose class is known.
    labels
        Shape (n,), 1 for a cell and 0 otherwise.
    test
        Embeddings to score.
    k
        Neighbours, each with one vote; all, if there are no more.

    Returns
    -------
    numpy.ndarray
        Shape (m,), in [0, 1].
    """
    search = NearestNeighbors(n_neighbors=min(k, len(train)), metric="cosine")
    nearest = search.fit(_array(train)).kneighbors(_array(test), return_distance=False)
    return np.asarray(labels[nearest].mean(axis=1), np.float64)


def linear_scores(
    train: Float[Tensor, "n feature"],
    labels: npt.NDArray[np.int64],
    test: Float[Tensor, "m feature"],
    *,
    brains: npt.NDArray[np.int64] | None = None,
    seed: int = 0,
) -> npt.NDArray[np.float64]:
    """Score embeddings by logistic regression on standardised features; see `fit_logistic`.

    Parameters
    ----------
    train
        Embeddings whose class is known.
    labels
        Shape (n,), 1 for a cell and 0 otherwise; both occur.
    test
        Embeddings to score.
    brains
        Shape (n,), number of the brain of each that is learned from; one brain if not given.
    seed
        Of the parts by which the penalty is chosen.

    Returns
    -------
    numpy.ndarray
        Shape (m,), log odds.
    """
    scale = StandardScaler()
    x = scale.fit_transform(_array(train))
    one = np.zeros(len(labels), np.int64)
    rule = fit_logistic(x, labels, one if brains is None else brains, seed=seed)
    return rule.scores(scale.transform(_array(test)))[:, 0]


def linear_probe(strength: float = 1e-2) -> Any:
    """Make an unfitted logistic regression (scikit-learn's C) on standardised features."""
    regression = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)
    return make_pipeline(StandardScaler(), regression)


def _array(embeddings: Float[Tensor, "n feature"]) -> npt.NDArray[np.float64]:
    return embeddings.detach().cpu().double().numpy()
