"""Whether probabilities mean what they say, and what makes them do so.

A probability is calibrated if, of all candidates that get 0.7, 70 % are cells. That holds for one
share of cells among candidates only: `shift_prevalence` tells what another share makes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from cubeclf_core.errors import require

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
_FLAT = 1e-9  # less than this gained by a temperature is none


def fit_temperature(logits: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> float:
    """Find by what to divide logits so that the softmax of them is calibrated.

    Temperature scaling (Guo et al., arXiv:1706.04599): the one number that minimises the
    cross-entropy. Ranking, and so AUC, does not change with two classes. Targets are Platt's
    (1999), a little short of 1 by how few labels a class has: without them, a small set that is
    told apart without a mistake would ask for certainty.

    Parameters
    ----------
    logits
        Shape (n, k), of candidates that the network was not trained on.
    labels
        Shape (n,), the class of each, 0 to k - 1.

    Returns
    -------
    float
        Above 1 where the network was too sure of itself. From 0.05 to 20; 1 if there is nothing
        to fit it to, as with no label or with equal logits throughout.
    """
    values = np.asarray(logits, np.float64)
    assert values.ndim == 2
    assert values.shape[1] >= 2
    assert np.isfinite(values).all()
    if len(labels) == 0:
        return 1.0
    targets = _platt_targets(labels, values.shape[1])

    def loss(log_temperature: float) -> float:
        logs = log_softmax(values / np.exp(log_temperature), axis=1)
        return -float((targets * logs).sum(axis=1).mean())

    # The loss is convex in 1 / temperature, so there is one minimum within the bounds.
    bounds = (np.log(LOWEST_TEMPERATURE), np.log(HIGHEST_TEMPERATURE))
    best = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(best.x)) if best.fun < loss(0.0) - _FLAT else 1.0


def _platt_targets(labels: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.float64]:
    """Give (n + 1) / (n + 2) to the class of a label that has n, and the rest to the others."""
    n = np.bincount(labels, minlength=k)[labels]
    own = (n + 1) / (n + 2)
    targets = np.repeat(((1 - own) / (k - 1))[:, None], k, axis=1)
    targets[np.arange(len(labels)), labels] = own
    return targets


def brier_score(labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64]) -> float:
    """Mean squared difference of the probability of a cell and what it is, 1 or 0.

    Brier (1950): 0 at best; of a constant guess of the share of cells s, s (1 - s).
    """
    return float(np.square(probabilities - labels).mean())


@dataclass(frozen=True)
class Reliability:
    """What was said and what was true, by bins of about equally many candidates.

    Attributes
    ----------
    said
        Shape (bins,), mean probability of a cell.
    true
        Shape (bins,), share of cells.
    n
        Shape (bins,), candidates.
    """

    said: npt.NDArray[np.float64]
    true: npt.NDArray[np.float64]
    n: npt.NDArray[np.int64]


def reliability(
    labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64], n_bins: int = 10
) -> Reliability:
    """Compare the probability of a cell with the share of cells, in bins of equal mass.

    Parameters
    ----------
    labels
        Shape (n,), 1 for a cell and 0 otherwise.
    probabilities
        Shape (n,), of a cell.
    n_bins
        At most; fewer where a bin would hold fewer than 10 candidates, or where many candidates
        have one probability. Those of one probability share a bin.
    """
    bins = max(1, min(n_bins, len(labels) // 10))
    inner = np.quantile(probabilities, np.arange(1, bins) / bins, method="inverted_cdf")
    which = np.searchsorted(np.unique(inner), probabilities, side="left")
    n = np.bincount(which)
    filled = n > 0
    said, true = (
        np.bincount(which, values)[filled] / n[filled] for values in (probabilities, labels)
    )
    return Reliability(said, true, n[filled])


def expected_calibration_error(
    labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64], n_bins: int = 10
) -> float:
    """Mean distance of what was said and what was true, over the bins of `reliability`.

    Expected calibration error with bins of equal mass (Nixon et al., arXiv:1904.01685). Of few
    candidates it is above 0 even where all probabilities are right.
    """
    bins = reliability(labels, probabilities, n_bins)
    return float(np.average(np.abs(bins.said - bins.true), weights=bins.n))


def shift_prevalence(
    probabilities: npt.NDArray[np.float64] | float, from_share: float, to_share: float
) -> npt.NDArray[np.float64]:
    """Give the probability of a cell in a brain with another share of cells among candidates.

    Bayes' rule with another prior (Saerens et al. 2002, doi:10.1162/089976602753284446): it holds
    if cells look alike in both brains, and other candidates too, and only their numbers differ.

    Parameters
    ----------
    probabilities
        Of a cell, calibrated where the share of cells is `from_share`.
    from_share, to_share
        Between 0 and 1, both excluded.

    Returns
    -------
    numpy.ndarray
        Of the shape of `probabilities`.

    Raises
    ------
    InputError
        If a share is not between 0 and 1.

    Examples
    --------
    >>> float(shift_prevalence(0.5, from_share=0.5, to_share=0.1).round(3))
    0.1
    """
    for name, share in (("from_share", from_share), ("to_share", to_share)):
        require(0 < share < 1, name, share, "a share between 0 and 1, both excluded")
    given = np.asarray(probabilities, np.float64)
    cell = given * (to_share / from_share)
    other = (1 - given) * ((1 - to_share) / (1 - from_share))
    return np.asarray(cell / (cell + other), np.float64)


def precision_at_prevalence(
    recall: float, false_positive_rate: float, shares: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Give the precision that a threshold has among candidates with other shares of cells.

    Parameters
    ----------
    recall, false_positive_rate
        At the threshold; both are taken to stay.
    shares
        Of cells among the candidates, any shape, above 0.

    Returns
    -------
    numpy.ndarray
        Of the shape of `shares`; NaN if nothing at all is accepted.
    """
    right, wrong = recall * shares, false_positive_rate * (1 - shares)
    accepted = right + wrong
    unknown = np.full(accepted.shape, np.nan)
    np.divide(right, accepted, where=accepted > 0, out=unknown)
    return unknown
