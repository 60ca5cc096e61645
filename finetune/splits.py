"""What is learned from and what is held out: whole brains, or parts of one apart in space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cubeclf_core.axes import Size3
from cubeclf_core.errors import InputError
from finetune.parts import Integers, Split, check_classes, make_split
from finetune.spatial import folds_by_space, split_by_space
from finetune.subsets import deal_groups, least_uneven

__all__ = [
    "Split",
    "folds",
    "folds_by_group",
    "folds_by_space",
    "split",
    "split_by_group",
    "split_by_space",
]


def split(
    labels: Integers,
    groups: Sequence[str],
    positions_um: npt.NDArray[np.float64],
    cuboid_um: Size3,
    *,
    share: float = 0.25,
    seed: int = 0,
) -> Split:
    """Hold out whole groups; where that cannot be, as there is one only, a part of one in space.

    Parameters
    ----------
    labels
        Shape (n,), classes.
    groups
        The brain, or animal, of each.
    positions_um
        Shape (n, 3), z y x; NaN where not known.
    cuboid_um
        z y x: how far apart centres must be to share no voxel (`finetune.sources.reach_um`).
    share
        To hold out, about.
    seed
        Of the choice among groups, and of labels without a place.

    Raises
    ------
    InputError
        If no split leaves each class in both parts; the message says why.
    """
    if len(set(groups)) > 1:
        try:
            return split_by_group(labels, groups, share=share, seed=seed)
        except InputError:
            pass  # the classes are not in several brains: the one that has them is cut
    name, inside, outside = _fullest(labels, groups)
    part = split_by_space(
        labels[inside], positions_um[inside], cuboid_um, share=share, seed=seed, name=name
    )
    return _within(part, inside, outside)


def folds(
    labels: Integers,
    groups: Sequence[str],
    positions_um: npt.NDArray[np.float64],
    cuboid_um: Size3,
    *,
    k: int = 5,
    seed: int = 0,
) -> list[Split]:
    """Hold out each label once: by groups, at most as many folds as there are, or in space.

    Parameters are those of `split`; `k` is the number of folds, at least 2.

    Raises
    ------
    InputError
        If some fold would lack a class; the message says why.
    """
    n_groups = len(set(groups))
    if n_groups > 1:
        try:
            return folds_by_group(labels, groups, k=min(k, n_groups), seed=seed)
        except InputError:
            pass
    name, inside, outside = _fullest(labels, groups)
    parts = folds_by_space(
        labels[inside], positions_um[inside], cuboid_um, k=k, seed=seed, name=name
    )
    return [_within(part, inside, outside) for part in parts]


def split_by_group(
    labels: Integers, groups: Sequence[str], *, share: float = 0.25, seed: int = 0
) -> Split:
    """Hold out whole groups, with each class in both parts.

    Parameters
    ----------
    labels
        Shape (n,), classes.
    groups
        The group of each.
    share
        To hold out of each class, about.
    seed
        Which of equally good choices is taken.

    Raises
    ------
    InputError
        If no choice of groups leaves each class in both parts.
    """
    check_classes(labels)
    names, which = _number(groups)
    chosen = least_uneven(_count(labels, which), share, np.random.default_rng((seed, 0x59117)))
    if chosen is None:
        raise InputError(_why_not_groups(labels, names, which, 2))
    return _hold_out_groups(chosen, names, which)


def folds_by_group(
    labels: Integers, groups: Sequence[str], *, k: int = 5, seed: int = 0
) -> list[Split]:
    """Hold out each group once, in `k` folds with each class in each.

    Raises
    ------
    InputError
        If there are fewer groups than folds, or a fold would lack a class.
    """
    check_classes(labels)
    names, which = _number(groups)
    fold = deal_groups(_count(labels, which), k, np.random.default_rng((seed, 0xF01D5)))
    if fold is None:
        raise InputError(_why_not_groups(labels, names, which, k))
    return [_hold_out_groups(np.flatnonzero(fold == i), names, which) for i in range(k)]


def _number(groups: Sequence[str]) -> tuple[list[str], Integers]:
    """Sorted names, and the number of each label's name among them."""
    names = sorted(set(groups))
    number = {name: i for i, name in enumerate(names)}
    return names, np.array([number[group] for group in groups], np.int64)


def _count(labels: Integers, which: Integers) -> npt.NDArray[np.int64]:
    """Labels of each group and class; shape (group, class)."""
    classes, kind = np.unique(labels, return_inverse=True)
    counts = np.zeros((int(which.max()) + 1, len(classes)), np.int64)
    np.add.at(counts, (which, kind), 1)
    return counts


def _hold_out_groups(chosen: Integers, names: list[str], which: Integers) -> Split:
    held_out = np.isin(which, chosen)
    return make_split(
        ~held_out, held_out, f"by brain: held out {', '.join(names[i] for i in chosen)}"
    )


def _fullest(labels: Integers, groups: Sequence[str]) -> tuple[str, Integers, Integers]:
    """Find the group with the most labels of its rarest class, its labels and the others."""
    names, which = _number(groups)
    counts = _count(labels, which)
    best = max(range(len(names)), key=lambda i: (int(counts[i].min()), int(counts[i].sum())))
    return names[best], np.flatnonzero(which == best), np.flatnonzero(which != best)


def _within(part: Split, inside: Integers, outside: Integers) -> Split:
    """Count through all labels again; those of other groups are learned from."""
    train = np.sort(np.concatenate([inside[part.train], outside]))
    how = part.how + (", the other brains learned from" if len(outside) else "")
    return Split(train, inside[part.held_out], inside[part.guard], how)


def _why_not_groups(labels: Integers, names: list[str], which: Integers, k: int) -> str:
    having = (_count(labels, which) > 0).sum(axis=0)
    classes = np.unique(labels)
    rarest = int(np.argmin(having))
    if having[rarest] < k:
        return (
            f"class {classes[rarest]} occurs in {having[rarest]} of {len(names)} brains; {k} parts "
            "by brain need it in each"
        )
    return f"found no way to deal {len(names)} brains into {k} parts with each class in each"
