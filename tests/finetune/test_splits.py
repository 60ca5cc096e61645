"""Splits: what is held out is never seen, not by a voxel."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cubeclf_core.brains import Brain
from cubeclf_core.candidates import read_raw_candidates
from cubeclf_core.cells import Cells
from cubeclf_core.errors import InputError
from cubeclf_core.sources import ArraySource
from cubeclf_core.vit import Vit3dConfig
from cubeclf_core.volumes import Volume
from finetune.labels import read_labelled
from finetune.sources import Sources, reach_um
from finetune.splits import (
    Split,
    folds,
    folds_by_group,
    folds_by_space,
    split,
    split_by_group,
    split_by_space,
)

CUBOID = (100.0, 50.0, 50.0)


def check_parts(parts: Split, labels: np.ndarray) -> None:
    """All labels once, and each class in both parts."""
    together = np.concatenate([parts.train, parts.held_out, parts.guard])
    assert np.sort(together).tolist() == list(range(len(labels)))
    for part in (parts.train, parts.held_out):
        assert set(labels[part]) == set(labels)
        assert (np.diff(part) > 0).all()


def check_apart(parts: Split, positions: np.ndarray, cuboid=CUBOID) -> None:
    """No held-out cuboid overlaps with one that is learned from."""
    distance = np.abs(positions[parts.train][:, None] - positions[parts.held_out][None])
    assert (distance >= np.array(cuboid) * (1 - 1e-8)).any(axis=2).all()


def brain(n: int, seed: int, size=(600, 900, 900), cells: float = 0.3):
    random = np.random.default_rng(seed)
    labels = (random.random(n) < cells).astype(np.int64)
    labels[:4] = 0, 0, 1, 1
    return labels, random.uniform(0, size, (n, 3))


@st.composite
def anywhere(draw: st.DrawFn, classes: int = 2):
    n = draw(st.integers(2, 40))
    labels = np.array(draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)))
    coordinate = st.one_of(st.floats(-500, 500), st.integers(0, 30).map(lambda i: 12.0 * i))
    coordinate |= st.integers(0, 8).map(lambda i: 50.0 * i)
    rows = st.tuples(coordinate, coordinate, coordinate)
    return labels, np.array(draw(st.lists(rows, min_size=n, max_size=n)))


@given(anywhere(), st.sampled_from([0.2, 0.25, 0.4]))
def test_parts_in_space_share_no_voxel_wherever_labels_lie(labelled, share: float) -> None:
    labels, positions = labelled
    try:
        parts = split_by_space(labels, positions, CUBOID, share=share)
    except InputError:
        assert not any_cut_works(labels, positions)
        return
    check_parts(parts, labels)
    check_apart(parts, positions)


def any_cut_works(labels: np.ndarray, positions: np.ndarray) -> bool:
    """Try each cut in the plainest way."""
    for axis, upper in product(range(3), (True, False)):
        along = positions[:, axis]
        for place in np.unique(along):
            held = along >= place if upper else along <= place
            apart = (np.abs(positions[:, None] - positions[None, held]) >= CUBOID).any(2).all(1)
            parts = (labels[held], labels[~held & apart])
            if all(set(part) == {0, 1} for part in parts):
                return True
    return False


@given(anywhere(classes=3), st.integers(2, 4))
def test_folds_in_space_hold_out_each_label_once(labelled, k: int) -> None:
    labels, positions = labelled
    try:
        parts = folds_by_space(labels, positions, CUBOID, k=k)
    except InputError:  # what it says is looked at below
        return
    held = np.concatenate([part.held_out for part in parts])
    assert len(parts) == k
    assert np.sort(held).tolist() == list(range(len(labels)))
    for part in parts:
        check_parts(part, labels)
        check_apart(part, positions)


@pytest.mark.parametrize("seed", range(3))
def test_a_brain_is_cut_where_few_labels_are_lost(seed: int) -> None:
    labels, positions = brain(400, seed)
    edge = np.quantile(positions[:, 1], 0.75)
    positions[positions[:, 1] > edge, 1] += 60  # a gap across y, wider than a cuboid
    parts = split_by_space(labels, positions, CUBOID, name="mouse 1")
    check_parts(parts, labels)
    assert len(parts.guard) == 0
    assert 0.2 <= len(parts.held_out) / len(labels) <= 0.35
    found = re.fullmatch(r"by space: held out y > (\d+) µm of mouse 1", parts.how)
    assert found
    assert edge - 50 < int(found[1]) < edge + 110  # about there, also where labels are sparse


def test_without_a_gap_the_guard_is_counted() -> None:
    labels, positions = brain(1000, 0)
    parts = split_by_space(labels, positions, CUBOID, name="mouse 1")
    check_parts(parts, labels)
    check_apart(parts, positions)
    assert 0.2 <= len(parts.held_out) / len(labels) <= 0.3
    assert 0 < len(parts.guard) < 100
    assert parts.how.endswith(f"{len(parts.guard)} labels within one cuboid of it left out")
    five = folds_by_space(labels, positions, CUBOID, k=5)
    assert all(180 <= len(part.held_out) <= 220 for part in five)
    assert all(len(part.guard) < 200 for part in five)


def test_rare_cells_of_one_corner_are_split_still() -> None:
    labels, positions = brain(3000, 1)
    labels[:] = 0
    labels[[7, 8]] = 1
    positions[7], positions[8] = (599, 899, 3), (599, 899, 54)
    parts = split_by_space(labels, positions, CUBOID)
    check_parts(parts, labels)
    check_apart(parts, positions)


def test_labels_in_one_place_cannot_be_split() -> None:
    labels, positions = np.array([0, 1] * 20), np.random.default_rng(0).uniform(0, 49, (40, 3))
    with pytest.raises(InputError, match=r"mouse 1: no cut .* 100 × 50 × 50 µm apart \(20 of"):
        split_by_space(labels, positions, CUBOID, name="mouse 1")
    with pytest.raises(InputError, match="3 slabs across z, y or x do not leave"):
        folds_by_space(labels, positions, CUBOID, k=3)
    with pytest.raises(InputError, match="all 40 labels are of one class"):
        split_by_space(labels * 0, positions, CUBOID)


def test_unknown_places_are_split_at_random_and_the_report_says_what_that_means() -> None:
    labels, positions = brain(40, 0)
    positions[3] = np.nan
    parts = split_by_space(labels, positions, CUBOID, seed=1)
    check_parts(parts, labels)
    assert "at random" in parts.how
    assert "may share voxels" in parts.how
    assert len(parts.guard) == 0
    cells = labels.sum()
    assert labels[parts.held_out].sum() == round(cells / 4)
    same = split_by_space(labels, positions, CUBOID, seed=1)
    other = split_by_space(labels, positions, CUBOID, seed=2)
    assert same.held_out.tolist() == parts.held_out.tolist() != other.held_out.tolist()
    three = folds_by_space(labels, positions, CUBOID, k=3)
    assert np.sort(np.concatenate([part.held_out for part in three])).tolist() == list(range(40))
    for part in three:
        check_parts(part, labels)
    few = np.array([0, 0, 0, 1, 1])
    check_parts(split_by_space(few, positions[:5], CUBOID), few)
    with pytest.raises(InputError, match="2 of 5 labels are of class 1, too few for 3 parts"):
        folds_by_space(few, positions[:5], CUBOID, k=3)
    with pytest.raises(InputError, match="1 of 5 labels are of class 1"):
        split_by_space(np.array([0, 0, 0, 0, 1]), positions[:5], CUBOID)


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=2, max_size=40),
    st.integers(0, 3),
)
def test_groups_are_never_split(labelled, seed: int) -> None:
    labels = np.array([label for label, _ in labelled])
    groups = [f"mouse {group}" for _, group in labelled]
    try:
        parts = split_by_group(labels, groups, seed=seed)
    except InputError:
        assert not any_choice_works(labels, groups)
        return
    check_parts(parts, labels)
    assert len(parts.guard) == 0
    held = {groups[i] for i in parts.held_out}
    assert not held & {groups[i] for i in parts.train}
    assert parts.how == f"by brain: held out {', '.join(sorted(held))}"


def any_choice_works(labels: np.ndarray, groups: list[str]) -> bool:
    names = sorted(set(groups))
    for chosen in product((False, True), repeat=len(names)):
        held = np.isin(
            groups, [name for name, is_held in zip(names, chosen, strict=True) if is_held]
        )
        if set(labels[held]) == {0, 1} == set(labels[~held]):
            return True
    return False


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=2, max_size=40),
    st.integers(2, 4),
)
def test_folds_hold_out_each_group_once(labelled, k: int) -> None:
    labels = np.array([label for label, _ in labelled])
    groups = np.array([f"mouse {group}" for _, group in labelled])
    try:
        parts = folds_by_group(labels, groups.tolist(), k=k)
    except InputError:
        assert not any_dealing_works(labels, groups, k)
        return
    held = [set(groups[part.held_out]) for part in parts]
    assert len(parts) == k
    assert sum(map(len, held)) == len(set(groups)) == len(set.union(*held))
    for part, out in zip(parts, held, strict=True):
        check_parts(part, labels)
        assert not out & set(groups[part.train])


def any_dealing_works(labels: np.ndarray, groups: np.ndarray, k: int) -> bool:
    names, which = np.unique(groups, return_inverse=True)
    for fold in product(range(k), repeat=len(names)):
        dealt = np.array(fold)[which]
        if all(set(labels[dealt == i]) == {0, 1} for i in range(k)):
            return True
    return False


def test_many_groups_are_split_near_the_share_of_each_class() -> None:
    random = np.random.default_rng(0)
    labels = (random.random(2000) < 0.2).astype(np.int64)
    groups = [f"m{i}" for i in random.integers(0, 30, 2000)]
    parts = split_by_group(labels, groups, share=0.25)
    check_parts(parts, labels)
    for kind in (0, 1):
        share = (labels[parts.held_out] == kind).sum() / (labels == kind).sum()
        assert abs(share - 0.25) < 0.03
    five = folds_by_group(labels, groups, k=5)
    assert all(250 < len(part.held_out) < 550 for part in five)


def test_by_brain_where_there_are_several_else_by_space() -> None:
    labels, positions = brain(300, 0)
    two = ["mouse 1"] * 150 + ["mouse 2"] * 150
    parts = split(labels, two, positions, CUBOID)
    assert parts.how in ("by brain: held out mouse 1", "by brain: held out mouse 2")
    assert len(folds(labels, two, positions, CUBOID, k=5)) == 2  # as many as there are brains
    parts = split(labels, ["mouse 1"] * 300, positions, CUBOID)
    assert parts.how.startswith("by space: ")
    check_apart(parts, positions)
    five = folds(labels, ["mouse 1"] * 300, positions, CUBOID, k=5)
    assert len(five) == 5
    assert all(part.how.startswith("by space: held out ") for part in five)


def test_where_one_brain_only_has_both_classes_that_one_is_cut() -> None:
    labels, positions = brain(300, 0)
    groups = ["rich"] * 200 + ["cells only"] * 100
    labels[200:] = 1
    for parts in (
        split(labels, groups, positions, CUBOID),
        *folds(labels, groups, positions, CUBOID, k=3),
    ):
        check_parts(parts, labels)
        assert set(range(200, 300)) <= set(parts.train.tolist())
        inside = Split(parts.train[parts.train < 200], parts.held_out, parts.guard, "")
        check_apart(inside, positions)
        assert "of rich" in parts.how
        assert parts.how.endswith("the other brains learned from")
    with pytest.raises(InputError, match="occurs in 1 of 2 brains"):
        split_by_group(labels, groups)


def numbered(shape, um) -> Volume:
    """Each voxel holds its own number."""
    voxels = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return Volume("numbered", (ArraySource(voxels),), um)


@pytest.mark.parametrize(
    ("shape", "um"), [((60, 150, 90), (5.0, 1.0, 1.0)), ((60, 120, 60), (6.0, 1.62, 1.62))]
)
@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), whole=st.booleans())
def test_cuboids_as_they_are_read_share_no_voxel(shape, um, seed: int, whole: bool) -> None:
    """Fractions that are rounded and borders that are mirrored included."""
    random = np.random.default_rng(seed)
    positions = random.uniform(0, np.array(shape) - 1, (24, 3))
    positions[:4, 1] = 0, 0, 50, 52  # at the border, where mirroring reaches farthest
    positions = np.rint(positions) if whole else positions
    cells = Cells(positions, np.array([1, 2] * 12))
    mouse = Brain("mouse", numbered(shape, um), cells, ())
    network = Vit3dConfig(size="nano", channels=1)
    reach = reach_um(Sources((mouse,), (), ()), network)
    data = read_labelled(mouse, network)
    try:
        parts = split(data.labels, data.brains, data.positions_um, reach)
    except InputError:
        return
    check_apart(parts, data.positions_um, reach)
    voxels = [set() for _ in positions]  # as they are before resampling mixes them
    for part in read_raw_candidates(
        mouse.volume,
        positions,
        shape=network.cuboid_shape,
        voxel_size_um=network.voxel_size_um,
        n_channels=1,
    ):
        for i, cuboid in zip(part.index.tolist(), part.cuboids, strict=True):
            voxels[i] = set(cuboid.ravel().tolist())
    seen = set().union(*(voxels[i] for i in parts.train))
    assert seen
    assert not seen & set().union(*(voxels[i] for i in parts.held_out))
