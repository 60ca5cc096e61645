"""Splits in space: parts of one brain that share no voxel.

Two cuboids share no voxel if, along any axis, their centres are at least one cuboid apart. A plane
cuts the brain: what lies behind it is held out, and labels before it whose cuboids reach into a
held-out cuboid are left out of both, as a guard.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from cubeclf_core.axes import Size3
from cubeclf_core.errors import InputError
from finetune.parts import Flags, Integers, Split, check_classes, complete, make_split
from finetune.subsets import deal_labels, draw_share

Points = npt.NDArray[np.float64]

_SLACK = 0.05  # by which a held-out share may differ from the wanted one for nothing
_PLACES = 400  # cuts tried along an axis, at most about twice as many
_LESS_THAN_ONE = 1 - 1e-9  # cuboid: so that rounding of exactly one does not count as less


def split_by_space(
    labels: Integers,
    positions_um: Points,
    cuboid_um: Size3,
    *,
    share: float = 0.25,
    seed: int = 0,
    name: str = "",
) -> Split:
    """Hold out what lies on one side of a plane across an axis.

    Of the planes that leave each class in both parts, the one is taken that costs least: the share
    of labels that go into the guard, and what the held-out share is off the wanted by over 0.05.

    Parameters
    ----------
    labels
        Shape (n,), classes.
    positions_um
        Shape (n, 3), z y x. If one is NaN, parts are drawn at random, and `how` says so.
    cuboid_um
        z y x: how far apart centres must be to share no voxel.
    share
        To hold out, about.
    seed
        Of parts drawn at random.
    name
        Of the brain, for `how`.

    Raises
    ------
    InputError
        If no plane leaves each class in both parts.
    """
    kinds, rarest = _by_number(labels, name)
    if not np.isfinite(positions_um).all():
        held_out = draw_share(kinds, share, np.random.default_rng((seed, 0x2A4D)))
        if not complete(kinds, held_out, ~held_out):
            raise InputError(_why_not_random(labels, name, 2))
        return make_split(~held_out, held_out, _at_random("held out", name))
    points = positions_um / np.array(cuboid_um)
    best, best_cost = None, np.inf
    for off, axis, place, above in _cuts(points, rarest, share):
        if off >= best_cost:
            break
        held_out = (points[:, axis] > place) == above
        if not complete(kinds, held_out, ~held_out):
            continue
        train = _clear_of(points, held_out)
        cost = off + float(np.mean(~train & ~held_out))
        if cost < best_cost and complete(kinds, train):
            best, best_cost = (train, held_out, axis, place, above), cost
    if best is None:
        raise InputError(_why_not_space(labels, cuboid_um, name))
    train, held_out, axis, place, above = best
    beyond = f"{'zyx'[axis]} {'>' if above else '<'} {place * cuboid_um[axis]:.0f} µm"
    return make_split(train, held_out, f"by space: held out {beyond}{_of(name)}")


def folds_by_space(
    labels: Integers,
    positions_um: Points,
    cuboid_um: Size3,
    *,
    k: int = 5,
    seed: int = 0,
    name: str = "",
) -> list[Split]:
    """Hold out slab after slab across the axis where the guards cost the fewest labels.

    Slabs have about equally many labels, or, where one would lack a class then, equally many of
    the rarest class. Parameters are those of `split_by_space`.

    Raises
    ------
    InputError
        If along no axis each fold has each class in both parts.
    """
    if k < 2:
        raise InputError(f"{k} folds; expected at least 2")
    kinds, rarest = _by_number(labels, name)
    if not np.isfinite(positions_um).all():
        fold = deal_labels(kinds, k, np.random.default_rng((seed, 0x2A4D)))
        if fold is None:
            raise InputError(_why_not_random(labels, name, k))
        hows = [_at_random(f"fold {i + 1} of {k} held out", name) for i in range(k)]
        return [make_split(fold != i, fold == i, how) for i, how in enumerate(hows)]
    points = positions_um / np.array(cuboid_um)
    choices = []
    for those in (np.ones(len(labels), bool), rarest):
        for axis in range(3):
            slabs = np.quantile(points[those, axis], np.arange(1, k) / k)
            slab = np.searchsorted(slabs, points[:, axis])
            held = [slab == i for i in range(k)]
            train = [_clear_of(points, part) for part in held]
            if complete(kinds, *train, *held):
                choices.append((sum(map(np.sum, train)), axis, train, held))
        if choices:
            break
    if not choices:
        raise InputError(_why_not_space(labels, cuboid_um, name, k))
    _, axis, train, held = max(choices, key=lambda choice: choice[0])
    across = [points[part, axis] * cuboid_um[axis] for part in held]
    return [
        make_split(
            *parts,
            f"by space: held out {'zyx'[axis]} {slab.min():.0f} to {slab.max():.0f} µm{_of(name)}",
        )
        for parts, slab in zip(zip(train, held, strict=True), across, strict=True)
    ]


def _cuts(points: Points, rarest: Flags, share: float) -> list[tuple[float, int, float, bool]]:
    """Planes that could be tried, best first: how far off the share, axis, place, which side."""
    cuts = []
    for axis in range(3):
        along = np.unique(points[:, axis])
        between = (along[1:] + along[:-1]) / 2
        if len(between) > _PLACES:
            of_rarest = np.unique(points[rarest, axis])
            near = np.searchsorted(between, of_rarest[_evenly(len(of_rarest))])
            chosen = np.concatenate([_evenly(len(between)), np.minimum(near, len(between) - 1)])
            between = between[np.unique(chosen)]
        for place in between.tolist():
            beyond = float(np.mean(points[:, axis] > place))
            for above, part in ((True, beyond), (False, 1 - beyond)):
                cuts.append((max(0.0, abs(part - share) - _SLACK), axis, place, above))
    return sorted(cuts, key=lambda cut: cut[0])


def _evenly(n: int) -> Integers:
    return np.unique(np.linspace(0, n - 1, _PLACES).astype(np.int64))


def _clear_of(points: Points, held_out: Flags) -> Flags:
    """Which of the others share no voxel with what is held out; points are in cuboids."""
    train = ~held_out
    if held_out.any() and train.any():
        nearest, _ = cKDTree(points[held_out]).query(
            points[train], p=np.inf, distance_upper_bound=_LESS_THAN_ONE
        )
        train[train] = ~np.isfinite(nearest)
    return train


def _by_number(labels: Integers, name: str) -> tuple[Integers, Flags]:
    """Count the classes that there are from 0, and tell which labels are of the rarest."""
    check_classes(labels, name)
    _, kinds, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return kinds, kinds == np.argmin(counts)


def _at_random(what: str, name: str) -> str:
    return (
        f"{what} at random{_of(name)}, as places of labels are not known: held-out cuboids may "
        "share voxels with those learned from, and scores may be too good"
    )


def _of(name: str) -> str:
    return f" of {name}" if name else ""


def _why_not_space(labels: Integers, cuboid_um: Size3, name: str, k: int = 0) -> str:
    classes, counts = np.unique(labels, return_counts=True)
    who = name or "the labels"
    what = f"{k} slabs" if k else "no cut"
    size = " × ".join(f"{n:.0f}" for n in cuboid_um)
    found = ", ".join(f"{n} of class {c}" for c, n in zip(classes, counts, strict=True))
    return (
        f"{who}: {what} across z, y or x {'do not leave' if k else 'leaves'} each class on both "
        f"sides with cuboids of {size} µm apart ({found}); label more, or farther apart, or give "
        "labels of another brain"
    )


def _why_not_random(labels: Integers, name: str, k: int) -> str:
    classes, counts = np.unique(labels, return_counts=True)
    who = name or "the labels"
    rarest = int(np.argmin(counts))
    return (
        f"{who}: {counts[rarest]} of {len(labels)} labels are of class {classes[rarest]}, too few "
        f"for {k} parts with each class; label more"
    )
