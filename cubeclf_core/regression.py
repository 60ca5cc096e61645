"""Logistic regression on features of labels, of one brain or of several.

Any feature tells which brain a cuboid is of, and brains differ in their share of cells; learned from
several, a rule asks first which of them it sees, and fails on the next. So each brain has an
intercept of its own, as fixed effects of panels have, and its classes count alike: what is left to
learn is what tells cells from the rest within a brain. A brain not learned from gets the mean
intercept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # scikit-learn's C, to choose from
_USUAL = 1e-2  # where a class has too few labels for a choice
_FOLDS = 5
_INTERCEPT = 30.0  # value of a brain's own feature: so large that its weight is as good as free

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Logistic:
    """A fitted rule.

    Attributes
    ----------
    weight
        Shape (class, feature); of two classes a single row, for the second.
    bias
        Shape (class,), likewise: for classes that are equally frequent.
    intercepts
        Shape (brain, class), likewise: what each brain has beside `bias`, of mean 0 over labels.
    """

    weight: Floats
    bias: Floats
    intercepts: Floats

    def scores(self, features: Floats) -> Floats:
        """Log odds of brains not learned from; shape (n,), or (n, class) of more than two."""
        scores = features @ self.weight.T + self.bias
        return scores[:, 0] if len(self.weight) == 1 else scores


def fit_logistic(
    features: Floats,
    labels: Integers,
    brains: Integers,
    *,
    copy_of: Integers | None = None,
    seed: int = 0,
) -> Logistic:
    """Fit a rule; its penalty is chosen by cross-validation within the same labels.

    Parameters
    ----------
    features
        Shape (n, feature), standardised.
    labels
        Shape (n,), classes counted from 0; at least two occur.
    brains
        Shape (n,), the brain of each, counted from 0.
    copy_of
        Shape (n,), the number of the label that each row is a copy of: copies share one label's
        weight, and its part of a cross-validation. None if each row is a label of its own.
    seed
        Of the parts.
    """
    copy_of = np.arange(len(labels)) if copy_of is None else copy_of
    strength = _choose(features, labels, brains, copy_of, seed)
    return _fit(features, labels, brains, copy_of, strength)


def balancing_weights(labels: Integers, brains: Integers) -> Floats:
    """Weights of mean 1 by which the classes of each brain count alike, and labels in all do.

    Parameters
    ----------
    labels
        Shape (n,), classes counted from 0.
    brains
        Shape (n,), counted from 0.
    """
    counts = np.zeros((int(brains.max()) + 1, int(labels.max()) + 1))
    np.add.at(counts, (brains, labels), 1)
    weights = counts.sum(1)[brains] / counts[brains, labels]
    return np.asarray(weights / weights.mean(), np.float64)


def _fit(
    features: Floats, labels: Integers, brains: Integers, copy_of: Integers, strength: float
) -> Logistic:
    present, own = np.unique(brains, return_inverse=True)
    x = features
    if len(present) > 1:
        x = np.hstack([features, _INTERCEPT * np.eye(len(present))[own]])
    weights = balancing_weights(labels, brains) * len(np.unique(copy_of)) / len(copy_of)
    model = LogisticRegression(C=strength, max_iter=2000).fit(x, labels, sample_weight=weights)
    n = features.shape[1]
    intercepts = np.zeros((int(brains.max()) + 1, len(model.coef_)))
    bias = model.intercept_
    if len(present) > 1:
        found = _INTERCEPT * model.coef_[:, n:].T
        mean = found[own].mean(0)
        intercepts[present] = found - mean
        bias = bias + mean
    return Logistic(model.coef_[:, :n], bias, intercepts)


def _choose(
    features: Floats, labels: Integers, brains: Integers, copy_of: Integers, seed: int
) -> float:
    """Choose the strength by how well labels held out are ranked within their brains."""
    _, first = np.unique(copy_of, return_index=True)
    n_folds = min(_FOLDS, int(np.unique(labels[first], return_counts=True)[1].min()))
    if n_folds < 2:
        return _USUAL
    dealt = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    folds = list(dealt.split(features, labels, copy_of))
    found = []
    for strength in _STRENGTHS:
        values: list[float] = []
        for train, test in folds:
            if len(np.unique(labels[train])) == len(np.unique(labels)):
                part = _fit(features[train], labels[train], brains[train], copy_of[train], strength)
                values += _quality(part.scores(features[test]), labels[test], brains[test])
        found.append(float(np.mean(values)) if values else -np.inf)
    return _STRENGTHS[int(np.argmax(found))] if max(found) > -np.inf else _USUAL


def _quality(scores: Floats, labels: Integers, brains: Integers) -> list[float]:
    """AUC of each brain that has both classes; of more than two, less the loss of all at once."""
    if scores.ndim == 2:
        odds = np.exp(scores - scores.max(1, keepdims=True))
        share = odds / odds.sum(1, keepdims=True)
        return [-float(log_loss(labels, share, labels=np.arange(scores.shape[1])))]
    there = [brains == brain for brain in np.unique(brains)]
    both = [own for own in there if len(np.unique(labels[own])) == 2]
    return [float(roc_auc_score(labels[own], scores[own])) for own in both]
