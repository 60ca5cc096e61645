"""A split: what is learned from, what is held out, and what is left out between the two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cubeclf_core.errors import InputError

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Split:
    """Labels in three parts, which together are all.

    Attributes
    ----------
    train
        Sorted indices to learn from.
    held_out
        Sorted indices to test on, or to choose by.
    guard
        Sorted indices of neither: their cuboids share voxels with what is held out.
    how
        How it was done, for a report.
    """

    train: Integers
    held_out: Integers
    guard: Integers
    how: str


def make_split(train: Flags, held_out: Flags, how: str) -> Split:
    """Make a split of what is set; what is in neither is the guard, which `how` then counts."""
    guard = ~train & ~held_out
    if n := int(guard.sum()):
        how += f", {'1 label' if n == 1 else f'{n} labels'} within one cuboid of it left out"
    return Split(np.flatnonzero(train), np.flatnonzero(held_out), np.flatnonzero(guard), how)


def complete(labels: Integers, *parts: Flags) -> bool:
    """Tell whether each class is in each part; labels are classes counted from 0."""
    n = len(np.bincount(labels))
    return all((np.bincount(labels[part], minlength=n) > 0).all() for part in parts)


def check_classes(labels: Integers, name: str = "") -> None:
    """Raise an `InputError` unless there are two classes to be had in each part."""
    if len(np.unique(labels)) < 2:
        who = name or "the labels"
        raise InputError(f"{who}: all {len(labels)} labels are of one class; a split needs two")
