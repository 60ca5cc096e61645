"""How good scores and embeddings are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor


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
