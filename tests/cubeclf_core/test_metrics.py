from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightly.utils.debug import std_of_l2_normalized
from sklearn.metrics import roc_auc_score

from cubeclf_core.metrics import (
    embedding_health,
    feature_deviation,
    knn_scores,
    linear_scores,
    mean_cosine,
    rank_me,
)

sizes = st.tuples(st.integers(2, 40), st.integers(1, 30))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labelled(n: int, shift: float, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Embeddings of two classes that differ in one direction, on a mean that all share."""
    labels = np.arange(n) % 2
    embeddings = normal(n, 30, seed=seed)
    embeddings[:, 0] += shift * torch.from_numpy(labels)
    return 3 + embeddings, labels


@given(sizes, st.integers(0, 9))
def test_mean_cosine_is_that_of_all_pairs(size: tuple[int, int], seed: int) -> None:
    embeddings = normal(*size, seed=seed)
    embeddings[0] *= 1000  # lengths do not matter
    rows = torch.nn.functional.normalize(embeddings, dim=1)
    cosines = [float(a @ b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
    assert mean_cosine(embeddings) == pytest.approx(np.mean(cosines), abs=1e-5)


@given(sizes, st.integers(0, 9))
def test_feature_deviation_is_lightlys_in_units_of_random_directions(
    size: tuple[int, int], seed: int
) -> None:
    embeddings = normal(*size, seed=seed)
    expected = float(std_of_l2_normalized(embeddings)) * size[1] ** 0.5
    assert feature_deviation(embeddings) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_health_of_spread_and_of_collapsed_embeddings() -> None:
    spread = embedding_health(normal(500, 40))
    assert spread["feature_deviation"] == pytest.approx(1, abs=0.05)
    assert spread["mean_cosine"] == pytest.approx(0, abs=0.01)
    assert 36 < spread["rank_me"] <= 40.1
    point = embedding_health(normal(1, 40) + 1e-4 * normal(500, 40, seed=1))
    assert point["feature_deviation"] < 1e-3
    assert point["mean_cosine"] > 0.9999
    assert point["rank_me"] < 1.1
    line = embedding_health(normal(500, 1) * normal(1, 40, seed=1))  # only the rank gives it away
    assert line["feature_deviation"] > 0.5
    assert line["mean_cosine"] < 0.1
    assert line["rank_me"] == pytest.approx(1, abs=0.01) == rank_me(normal(1, 40))


def test_knn_votes_are_those_of_a_naive_loop() -> None:
    bank, labels = labelled(50, 2.0)
    test, _ = labelled(20, 2.0, seed=1)
    found = knn_scores(bank, labels, test, k=7)
    for score, x in zip(found, test, strict=True):
        cosines = [float(torch.cosine_similarity(x, b, dim=0)) for b in bank]
        assert score == pytest.approx(labels[np.argsort(cosines)[-7:]].mean())


def test_more_neighbours_than_there_are() -> None:
    bank, labels = labelled(10, 2.0)
    assert (knn_scores(bank, labels, bank, k=200) == 0.5).all()


@pytest.mark.parametrize("scores", [knn_scores, linear_scores])
def test_scores_find_what_tells_classes_apart_and_nothing_else(scores) -> None:
    test, truth = labelled(400, 3.0, seed=1)
    assert roc_auc_score(truth, scores(*labelled(200, 3.0), test)) > 0.9
    same, truth = labelled(400, 0.0, seed=1)
    assert abs(roc_auc_score(truth, scores(*labelled(200, 0.0), same)) - 0.5) < 0.08


def test_linear_scores_do_not_depend_on_units_and_are_the_same_again() -> None:
    train, labels = labelled(60, 1.0)
    test, _ = labelled(50, 1.0, seed=1)
    units = 10 ** torch.linspace(-3, 3, 30)
    scores = linear_scores(train, labels, test)
    assert np.array_equal(scores, linear_scores(train, labels, test))
    np.testing.assert_allclose(
        linear_scores(train * units + 5, labels, test * units + 5), scores, atol=1e-3
    )


def test_linear_scores_of_a_single_cell() -> None:
    train, _ = labelled(20, 0.0)
    train[3, 0] += 10
    labels = np.zeros(20, np.int64)
    labels[3] = 1
    assert linear_scores(train, labels, train).argmax() == 3
