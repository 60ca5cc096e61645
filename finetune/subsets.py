"""Which groups, or labels, go together so that classes are dealt out evenly."""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt

_ALL_CHOICES = 12  # groups up to which every choice is looked at
_TRIES = 1000  # choices of groups where they are more
_DEALS = 100


def least_uneven(
    counts: npt.NDArray[np.int64], share: float, random: np.random.Generator
) -> npt.NDArray[np.int64] | None:
    """Choose groups that hold about a share of each class, and leave some of each.

    Parameters
    ----------
    counts
        Shape (group, class), labels.
    share
        Of each class, wanted.
    random
        Decides between equally good choices; where groups are many, only some choices are tried.

    Returns
    -------
    numpy.ndarray or None
        Sorted groups; none if no choice is possible.
    """
    n, total = len(counts), counts.sum(axis=0)
    if n <= _ALL_CHOICES:
        choices = np.array(list(product((False, True), repeat=n)), bool)
        choices = random.permutation(choices)
    else:
        tries = min(_TRIES, max(20, 2_000_000 // n**2))
        order = np.array([random.permutation(n) for _ in range(tries)])
        choices = (order[:, None, :] < np.arange(1, n)[:, None]).reshape(-1, n)
    held = choices @ counts
    possible = ((held > 0) & (held < total)).all(axis=1)
    if not possible.any():
        return None
    off = np.abs(held / total - share).mean(axis=1)
    return np.flatnonzero(choices[np.argmin(np.where(possible, off, np.inf))])


def deal_groups(
    counts: npt.NDArray[np.int64], k: int, random: np.random.Generator
) -> npt.NDArray[np.int64] | None:
    """Deal groups into `k` folds, evenly by class and with each class in each.

    Parameters
    ----------
    counts
        Shape (group, class), labels.
    k
        Folds.
    random
        Many orders of dealing are tried, and the most even is taken.

    Returns
    -------
    numpy.ndarray or None
        Shape (group,), the fold of each; none if no possible one was found.
    """
    best, best_spread = None, np.inf
    if k < 2 or k > len(counts):
        return None
    share = counts / counts.sum(axis=0)
    for _ in range(_DEALS if len(counts) > k else 1):
        fold = _deal_once(share, k, random)
        dealt = np.array([share[fold == i].sum(axis=0) for i in range(k)])
        if (dealt > 0).all() and dealt.std(axis=0).mean() < best_spread - 1e-12:
            best, best_spread = fold, dealt.std(axis=0).mean()
    return best


def draw_share(
    labels: npt.NDArray[np.int64], share: float, random: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Draw about a share of each class at random, at least one and not all, if there are two."""
    drawn = np.zeros(len(labels), bool)
    for kind in np.unique(labels):
        index = random.permutation(np.flatnonzero(labels == kind))
        n = int(np.clip(round(share * len(index)), 1, max(1, len(index) - 1)))
        drawn[index[:n]] = True
    return drawn


def deal_labels(
    labels: npt.NDArray[np.int64], k: int, random: np.random.Generator
) -> npt.NDArray[np.int64] | None:
    """Deal labels into `k` folds at random, each class evenly.

    Returns
    -------
    numpy.ndarray or None
        Shape (n,), the fold of each; none if a class has fewer labels than there are folds.
    """
    fold = np.zeros(len(labels), np.int64)
    for kind in np.unique(labels):
        index = np.flatnonzero(labels == kind)
        if len(index) < k:
            return None
        fold[random.permutation(index)] = np.arange(len(index)) % k
    return fold


def _deal_once(
    share: npt.NDArray[np.float64], k: int, random: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Give group after group, in a random order, to the fold that lacks most of what it has."""
    fold = np.zeros(len(share), np.int64)
    dealt = np.zeros((k, share.shape[1]))
    for group in random.permutation(len(share)):
        fold[group] = np.argmin(dealt @ share[group])
        dealt[fold[group]] += share[group]
    return fold
