from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from cubeclf_core.errors import CellsError
from cubeclf_core.rules import RULES, contrast, contrast_scores, density


def naive_scores(cuboid: npt.NDArray[Any], voxel_size_um: tuple[float, ...]) -> list[float]:
    centre = [n // 2 for n in cuboid.shape]
    near = [
        float(value)
        for index, value in np.ndenumerate(cuboid)
        if sum(((i - c) * s) ** 2 for i, c, s in zip(index, centre, voxel_size_um, strict=True))
        <= 6.5**2
    ]
    median, std = float(np.median(cuboid)), float(np.std(cuboid.astype(float)))
    above = max(near) - median
    return [max(near), above, max(near) / (median or 1), above / (std or 1)]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shape=st.tuples(st.integers(1, 7), st.integers(1, 12), st.integers(1, 12)),
    voxel_size_um=st.tuples(*[st.sampled_from([1.0, 1.62, 2.0, 5.0, 6.0])] * 3),
)
def test_contrast_is_that_of_a_naive_loop(
    seed: int, shape: tuple[int, int, int], voxel_size_um: tuple[float, float, float]
) -> None:
    cuboids = np.random.default_rng(seed).integers(1, 5000, (3, *shape), dtype=np.uint16)
    scores = contrast_scores(cuboids, voxel_size_um)
    expected = [naive_scores(cuboid, voxel_size_um) for cuboid in cuboids]
    assert tuple(scores) == RULES
    np.testing.assert_allclose(np.array(list(scores.values())).T, expected, rtol=1e-6)


def test_peak_ignores_what_is_bright_elsewhere() -> None:
    cuboids = np.full((1, 20, 50, 50), 10, np.uint16)
    cuboids[0, 10, 25, 31] = 50  # 6 µm away
    cuboids[0, 10, 25, 32] = 90  # 7 µm away
    cuboids[0, 12, 25, 25] = 90  # 10 µm away
    assert contrast_scores(cuboids)["peak"] == 50


def test_uniform_and_empty_cuboids_have_finite_scores() -> None:
    for value in (0, 7):
        scores = contrast_scores(np.full((2, 4, 8, 8), value, np.uint16))
        assert all(np.isfinite(values).all() for values in scores.values())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_contrast_is_the_best_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cuboids = rng.integers(0, 1000, (20, 4, 10, 10), dtype=np.uint16)
    labels = np.arange(20) % 2
    name, scores = contrast(cuboids, labels)
    aucs = {
        rule: roc_auc_score(labels, values) for rule, values in contrast_scores(cuboids).items()
    }
    assert aucs[name] == max(aucs.values()) == roc_auc_score(labels, scores)


@settings(max_examples=40, deadline=None)
@given(
    positions=st.lists(st.tuples(*[st.integers(0, 60)] * 3), min_size=1, max_size=25),
    radius_um=st.sampled_from([5.0, 50.0, 33.3]),
)
def test_density_is_that_of_a_naive_loop(
    positions: list[tuple[int, int, int]], radius_um: float
) -> None:
    where = np.array(positions, np.float64)
    um = where * (5, 2, 1)
    expected = [
        sum(j != i and ((um[i] - um[j]) ** 2).sum() <= radius_um**2 for j in range(len(um)))
        for i in range(len(um))
    ]
    counted = density(where, (5, 2, 1), radius_um)
    assert counted.dtype == np.float64
    assert counted.tolist() == expected


def test_density_counts_a_candidate_at_the_same_place() -> None:
    assert density(np.zeros((2, 3)), (5, 1, 1)).tolist() == [1, 1]


def test_contrast_needs_both_classes() -> None:
    with pytest.raises(CellsError, match="one class"):
        contrast(np.zeros((3, 2, 2, 2)), np.ones(3, np.int64))
