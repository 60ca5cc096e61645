"""Logistic regression on features of labels, of one brain or of several.

Any feature tells which brain a cuboid is of, and brains differ in their share of cells; learned
from several, a rule asks first which of them it sees, and fails on the next. So each brain has an
intercept of its own (a fixed effect, in the language of panel data), and its classes count alike:
what is left to learn is what tells cells from the rest within a brain. A brain that was not learned
from gets the mean intercept. Brains that lack a class share an intercept with others: nothing else
would tell it from the class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # scikit-learn's C, to choose from
_USUAL = 1e-2  # where a class has too few labels for a choice
_FOLDS = 5
_FREE = 30.0  # of a brain's own feature, over √C: so large that its weight is as good as free
_LOG_FACTORS = (-4.0, 8.0)  # between which the factor of log odds is looked for

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
        """Log odds of brains not learned from; shape (n, 1), or (n, class) of more than two."""
        return features @ self.weight.T + self.bias

    def of_brains(self, brains: Integers) -> Floats:
        """What is added for brains, 0 for those not learned from; shape as of `scores`."""
        known = brains < len(self.intercepts)
        return np.where(known[:, None], self.intercepts[np.where(known, brains, 0)], 0.0)


def fit_logistic(
    features: Floats,
    labels: Integers,
    brains: Integers,
    *,
    n_classes: int = 2,
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
    n_classes
        How many classes there are; those without a label get weights of 0.
    copy_of
        Shape (n,), the number of the label that each row is a copy of: copies share one label's
        weight, and its part of a cross-validation. None if each row is a label of its own.
    seed
        Of the parts.
    """
    copy_of = np.arange(len(labels)) if copy_of is None else copy_of
    directions = _directions(features)
    data = _Labels(features @ directions, labels, brains, copy_of, n_classes)
    strength, factor = _choose(data, seed)
    rule = _fit(data, strength)
    weight = rule.weight @ directions.T
    return Logistic(*(factor * part for part in (weight, rule.bias, rule.intercepts)))


def _directions(features: Floats) -> Floats:
    """Orthonormal directions that hold all features; fewer than these where there are fewer rows.

    The penalty is the same in any direction, so a rule has no part outside of what it was fitted
    on, and is found in as many numbers as there are rows: with few labels many times as fast.
    """
    n, width = features.shape
    if n >= width:
        return np.eye(width)
    return np.asarray(np.linalg.svd(features, full_matrices=False)[2].T, np.float64)


def widened(rule: Logistic, width: int) -> Logistic:
    """Make a rule of some features one of more, of which it takes the first alone."""
    weight = np.zeros((len(rule.weight), width))
    weight[:, : rule.weight.shape[1]] = rule.weight
    return Logistic(weight, rule.bias, rule.intercepts)


def mean_of(some: Logistic, all_: Logistic) -> Logistic:
    """Average the log odds of two rules, of which one knows only the first of the features.

    Parameters
    ----------
    some
        Of the first features.
    all_
        Of all, with the same classes and brains.
    """
    some = widened(some, all_.weight.shape[1])
    return Logistic(
        (some.weight + all_.weight) / 2,
        (some.bias + all_.bias) / 2,
        (some.intercepts + all_.intercepts) / 2,
    )


def share_intercepts(labels: Integers, brains: Integers) -> Integers:
    """Group brains so that each group has all classes that occur; most are alone in theirs.

    Those that lack a class are one group; if that lacks one too, it joins the largest brain that
    has all, or all brains are one group.

    Parameters
    ----------
    labels, brains
        Shape (n,), both counted from 0.

    Returns
    -------
    numpy.ndarray
        Shape (n,), the group of each label, counted from 0.
    """
    there, brain = np.unique(brains, return_inverse=True)
    classes, label = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(there), len(classes)), np.int64)
    np.add.at(counts, (brain, label), 1)
    complete = (counts > 0).all(1)
    group = np.arange(len(there))
    if not complete.all():
        rest = counts[~complete].sum(0)
        largest = int(np.argmax(np.where(complete, counts.sum(1), -1)))
        alone = (rest > 0).all() or not complete.any()
        group[~complete] = group[~complete][0] if alone else largest
    return np.unique(group[brain], return_inverse=True)[1].astype(np.int64)


def balancing_weights(labels: Integers, groups: Integers) -> Floats:
    """Weights of mean 1 by which classes count alike in each group, and groups as their labels do.

    Parameters
    ----------
    labels
        Shape (n,), classes counted from 0.
    groups
        Shape (n,), of `share_intercepts`.
    """
    counts = np.zeros((int(groups.max()) + 1, int(labels.max()) + 1))
    np.add.at(counts, (groups, labels), 1)
    weights = counts.sum(1)[groups] / counts[groups, labels]
    return np.asarray(weights / weights.mean(), np.float64)


@dataclass(frozen=True)
class _Labels:
    """What a rule is fitted on; see `fit_logistic`."""

    features: Floats
    classes: Integers
    brains: Integers
    copy_of: Integers
    n_classes: int

    def __getitem__(self, index: Integers) -> _Labels:
        classes, brains, copy_of = (p[index] for p in (self.classes, self.brains, self.copy_of))
        return _Labels(self.features[index], classes, brains, copy_of, self.n_classes)


def _fit(data: _Labels, strength: float) -> Logistic:
    groups = share_intercepts(data.classes, data.brains)
    free = _FREE / np.sqrt(strength)
    several = groups.max() > 0
    own = free * np.eye(groups.max() + 1)[groups]
    x = np.hstack([data.features, own]) if several else data.features
    n_labels = len(np.unique(data.copy_of))
    weights = balancing_weights(data.classes, groups) * n_labels / len(data.copy_of)
    model = LogisticRegression(C=strength, solver="newton-cholesky").fit(
        x, data.classes, sample_weight=weights
    )
    rows = 1 if data.n_classes == 2 else data.n_classes
    weight, bias = np.zeros((rows, x.shape[1])), np.zeros(rows)
    if len(model.coef_) == 1 and rows > 1:  # two of several classes occur: opposite log odds
        weight[model.classes_] = [-model.coef_[0] / 2, model.coef_[0] / 2]
        bias[model.classes_] = [-model.intercept_[0] / 2, model.intercept_[0] / 2]
    else:
        at = slice(None) if rows == 1 else model.classes_
        weight[at], bias[at] = model.coef_, model.intercept_
    n = data.features.shape[1]
    intercepts = np.zeros((int(data.brains.max()) + 1, rows))
    if several:
        of_labels = free * weight[:, n:].T[groups]
        mean = of_labels.mean(0)
        intercepts[data.brains] = of_labels - mean
        bias = bias + mean
    return Logistic(weight[:, :n], bias, intercepts)


def _choose(data: _Labels, seed: int) -> tuple[float, float]:
    """Choose the strength by how well labels held out are ranked within their brains.

    With it comes a factor for the log odds: the strength that ranks best may leave them too small,
    or too large, for probabilities.
    """
    _, first = np.unique(data.copy_of, return_index=True)
    n_folds = min(_FOLDS, int(np.unique(data.classes[first], return_counts=True)[1].min()))
    if n_folds < 2:
        return _USUAL, 1.0
    dealt = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    folds = list(dealt.split(data.features, data.classes, data.copy_of))
    found = []
    for strength in _STRENGTHS:
        sums, held_out = np.zeros(2), []
        for train, test in folds:
            if len(np.unique(data.classes[train])) > 1:
                rule, part = _fit(data[train], strength), data[test]
                scores = rule.scores(part.features)
                sums += _ranked(scores, part)
                held_out.append((scores + rule.of_brains(part.brains), test))
        found.append((sums[0] / max(sums[1], 1.0), strength, held_out))
    best = int(np.argmax([ranked for ranked, *_ in found]))
    _, strength, held_out = found[best]
    scores, index = (np.concatenate(each) for each in zip(*held_out, strict=True))
    return strength, _factor(scores, data[index])


def _factor(scores: Floats, data: _Labels) -> float:
    """Find what log odds are to be multiplied with to be right on balanced classes.

    That all held out are right is no proof that all others will be: as Platt (1999) does, one label
    more is counted on the other side.
    """
    if scores.shape[1] == 1:
        scores = np.concatenate([-scores / 2, scores / 2], 1)
    present, label = np.unique(data.classes, return_inverse=True)
    scores = scores[:, present]
    weights = balancing_weights(data.classes, share_intercepts(data.classes, data.brains))
    counts = np.array([len(np.unique(data.copy_of[label == k])) for k in range(len(present))])
    other = (1 / (counts + 2))[label]

    def loss(log_factor: float) -> float:
        odds = np.exp(log_factor) * scores
        own = odds[np.arange(len(odds)), label]
        rest = (odds.sum(1) - own) / (odds.shape[1] - 1)
        return float(weights @ (logsumexp(odds, 1) - (1 - other) * own - other * rest))

    found = minimize_scalar(loss, bounds=_LOG_FACTORS, method="bounded")
    return float(np.exp(found.x))


def _ranked(scores: Floats, data: _Labels) -> npt.NDArray[np.float64]:
    """Pairs within a brain, of a class and of the rest, that are in order; and all such pairs."""
    sums = np.zeros(2)
    columns = {1: scores[:, 0]} if scores.shape[1] == 1 else dict(enumerate(scores.T))
    for brain in np.unique(data.brains):
        own = data.brains == brain
        for label, column in columns.items():
            of_class = data.classes[own] == label
            pairs = of_class.sum() * (~of_class).sum()
            if pairs:
                sums += pairs * np.array([roc_auc_score(of_class, column[own]), 1.0])
    return sums
