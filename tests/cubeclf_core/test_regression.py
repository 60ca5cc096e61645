"""Rules learned on several brains: what tells cells from the rest, and not which brain it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from cubeclf_core.regression import balancing_weights, fit_logistic


def brain(n: int, share: float, shift: float, seed: int):
    """Labels, and ten features: cells differ in the first, brains in the second and a bit in it."""
    random = np.random.default_rng(seed)
    labels = (np.arange(n) < share * n).astype(np.int64)
    features = random.normal(size=(n, 10))
    features[:, 0] += 2 * labels + shift
    features[:, 1] += 4 * shift
    return features, labels


def joined(*parts):
    features, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    return features, labels, np.repeat(np.arange(len(parts)), [len(p[1]) for p in parts])


def test_another_share_of_cells_in_another_brain_does_not_become_a_rule() -> None:
    features, labels, brains = joined(brain(300, 0.9, 1.0, 0), brain(300, 0.1, -1.0, 1))
    test, truth = brain(500, 0.5, 0.0, 2)
    between = fit_logistic(features, labels, np.zeros_like(brains))
    within = fit_logistic(features, labels, brains)
    assert abs(within.weight[0, 1]) < 0.3 * abs(within.weight[0, 0])
    assert abs(between.weight[0, 1]) > abs(within.weight[0, 1])
    best = roc_auc_score(truth, test[:, 0])
    assert roc_auc_score(truth, within.scores(test)) > best - 0.01
    assert roc_auc_score(truth, within.scores(test)) > roc_auc_score(truth, between.scores(test))


def test_the_intercepts_are_those_of_the_brains() -> None:
    features, labels, brains = joined(brain(4000, 0.5, 1.0, 0), brain(2000, 0.5, -1.0, 1))
    found = fit_logistic(features[:, :1], labels, brains)
    assert found.intercepts.shape == (2, 1)
    assert found.intercepts[brains].mean() == pytest.approx(0, abs=1e-9)
    # Log odds are a weight times x - 1 - shift, and the mean shift of all labels is a third.
    per_weight = np.array([*found.intercepts[:, 0], *found.bias]) / found.weight[0, 0]
    assert per_weight == pytest.approx([-2 / 3, 4 / 3, -4 / 3], abs=0.1)


def test_a_brain_of_one_class_teaches_nothing_of_it() -> None:
    features, labels, brains = joined(brain(300, 0.5, 0.0, 0), brain(300, 1.0, 1.0, 1))
    found = fit_logistic(features, labels, brains)
    assert abs(found.weight[0, 1]) < 0.3 * found.weight[0, 0]


def test_one_brain_is_a_balanced_logistic_regression() -> None:
    features, labels = brain(300, 0.2, 0.0, 0)
    found = fit_logistic(features, labels, np.zeros(300, np.int64))
    strengths = (1e-4, 1e-3, 1e-2, 1e-1)
    references = [
        LogisticRegression(C=c, class_weight="balanced").fit(features, labels) for c in strengths
    ]
    assert any(np.allclose(found.weight, r.coef_, atol=1e-3) for r in references)
    assert not found.intercepts.any()


def test_copies_count_as_one_label() -> None:
    features, labels, brains = joined(brain(60, 0.5, 0.5, 0), brain(90, 0.3, 0.0, 1))
    once = fit_logistic(features, labels, brains)
    three = [np.tile(part, 3) for part in (labels, brains, np.arange(150))]
    copied = fit_logistic(np.tile(features, (3, 1)), *three[:2], copy_of=three[2])
    np.testing.assert_allclose(copied.weight, once.weight, atol=1e-4)


def test_three_classes_of_two_brains() -> None:
    random = np.random.default_rng(0)
    labels, brains = np.arange(300) % 3, np.arange(300) // 200
    features = random.normal(size=(300, 5))
    features[np.arange(300), labels] += 3
    found = fit_logistic(features, labels, brains)
    assert found.weight.shape == (3, 5)
    assert found.intercepts.shape == (2, 3)
    assert (found.scores(features).argmax(1) == labels).mean() > 0.9


@pytest.mark.parametrize("n_cells", [1, 2])
def test_as_few_cells_as_there_can_be(n_cells: int) -> None:
    features, _ = brain(20, 0.0, 0.0, 0)
    labels = (np.arange(20) < n_cells).astype(np.int64)
    features[:n_cells, 3] += 10
    found = fit_logistic(features, labels, np.arange(20) % 2)
    assert set(np.argsort(found.scores(features))[-n_cells:]) == set(range(n_cells))


@given(
    arrays.arrays(np.int64, 40, elements=st.integers(0, 2)),
    arrays.arrays(np.int64, 40, elements=st.integers(0, 3)),
)
@settings(max_examples=50)
def test_weights_are_alike_for_classes_and_as_labels_for_brains(labels, brains) -> None:
    weights = balancing_weights(labels, brains)
    assert weights.mean() == pytest.approx(1)
    for one in np.unique(brains):
        own = brains == one
        classes = [weights[own & (labels == k)].sum() for k in np.unique(labels[own])]
        assert classes == pytest.approx([classes[0]] * len(classes))
        each = {k: weights[brains == k].sum() / (brains == k).sum() for k in np.unique(brains)}
    n = {k: len(np.unique(labels[brains == k])) for k in each}
    # A brain with more classes weighs more: each of its classes counts as all its labels.
    ratios = [each[k] / n[k] for k in each]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
