"""Rules learned on several brains: what tells cells from the rest, and not which brain it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from cubeclf_core.regression import balancing_weights, fit_logistic, mean_of, share_intercepts


def brain(n: int, share: float, shift: float, seed: int):
    """Labels, and ten features: cells differ in the first, brains in the second and a bit in it."""
    random = np.random.default_rng(seed)
    labels = (np.arange(n) < share * n).astype(np.int64)
    features = random.normal(size=(n, 10))
    features[:, 0] += 2 * labels + 3 * shift
    features[:, 1] += 4 * shift
    return features, labels


def joined(*parts):
    features, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    return features, labels, np.repeat(np.arange(len(parts)), [len(p[1]) for p in parts])


@pytest.mark.parametrize("n", [30, 300])
def test_which_brain_it_is_does_not_become_a_rule(n: int) -> None:
    """Cells are brighter within each brain, but the brain with more of them is darker."""
    features, labels, brains = joined(brain(n, 0.9, -1.0, 0), brain(n, 0.1, 1.0, 1))
    test, truth = brain(500, 0.5, 0.0, 2)
    between = fit_logistic(features, labels, np.zeros_like(brains))
    within = fit_logistic(features, labels, brains)
    assert between.weight[0, 1] < 0 < within.weight[0, 0]
    assert abs(within.weight[0, 1]) < 0.5 * within.weight[0, 0]
    ranked = [roc_auc_score(truth, rule.scores(test)[:, 0]) for rule in (between, within)]
    assert ranked[0] + 0.05 < ranked[1] > 0.85


def test_the_intercepts_are_those_of_the_brains() -> None:
    features, labels, brains = joined(brain(4000, 0.5, 1.0, 0), brain(2000, 0.5, -1.0, 1))
    found = fit_logistic(features[:, :1], labels, brains)
    assert found.intercepts.shape == (2, 1)
    assert found.intercepts[brains].mean() == pytest.approx(0, abs=1e-9)
    # Log odds are a weight times x - 1 - 3 shift, and the mean shift of all labels is a third.
    per_weight = np.array([*found.intercepts[:, 0], *found.bias]) / found.weight[0, 0]
    assert per_weight == pytest.approx([-2, 4, -2], abs=0.1)


def test_a_brain_that_lacks_a_class_shares_the_intercept_of_another() -> None:
    features, labels, brains = joined(brain(100, 0.5, 0.0, 0), brain(100, 1.0, 0.0, 1))
    found = fit_logistic(features, labels, brains)
    one = fit_logistic(features, labels, np.zeros_like(brains))
    np.testing.assert_allclose(found.weight, one.weight)
    assert not found.intercepts.any()
    chance = 1 / (1 + np.exp(-found.scores(features)))
    assert chance[labels == 1].mean() + chance[labels == 0].mean() == pytest.approx(1, abs=0.1)


def test_cells_of_one_brain_and_artefacts_of_another_are_told_apart() -> None:
    features, labels, brains = joined(brain(50, 1.0, 0.0, 0), brain(50, 0.0, 0.0, 1))
    test, truth = brain(500, 0.5, 0.0, 2)
    assert roc_auc_score(truth, fit_logistic(features, labels, brains).scores(test)[:, 0]) > 0.85


@given(
    arrays.arrays(np.int64, 30, elements=st.integers(0, 2)),
    arrays.arrays(np.int64, 30, elements=st.integers(0, 5)),
)
@settings(max_examples=100)
def test_brains_that_share_an_intercept_have_all_classes_together(labels, brains) -> None:
    groups = share_intercepts(labels, brains)
    assert set(groups) == set(range(groups.max() + 1))
    classes = set(labels)
    for group in set(groups):
        assert set(labels[groups == group]) == classes
    for one in set(brains):
        assert len(set(groups[brains == one])) == 1
    complete = [b for b in set(brains) if set(labels[brains == b]) == classes]
    assert len({groups[brains == b][0] for b in complete}) == len(complete)


def test_one_brain_is_a_balanced_logistic_regression() -> None:
    features, labels = brain(300, 0.2, 0.0, 0)
    found = fit_logistic(features, labels, np.zeros(300, np.int64))
    strengths = (1e-4, 1e-3, 1e-2, 1e-1)
    references = [
        LogisticRegression(C=c, class_weight="balanced").fit(features, labels) for c in strengths
    ]
    directions = [r.coef_ / np.linalg.norm(r.coef_) for r in references]
    own = found.weight / np.linalg.norm(found.weight)
    assert any(np.allclose(own, direction, atol=1e-3) for direction in directions)
    assert not found.intercepts.any()


def test_probabilities_are_right_on_balanced_classes_however_it_ranks() -> None:
    features, labels = brain(400, 0.3, 0.0, 0)
    test, truth = brain(4000, 0.5, 0.0, 1)
    found = fit_logistic(features, labels, np.zeros(400, np.int64))
    said = 1 / (1 + np.exp(-found.scores(test)[:, 0]))
    for low in (0.1, 0.3, 0.5, 0.7):
        some = (said > low) & (said < low + 0.2)
        assert truth[some].mean() == pytest.approx(said[some].mean(), abs=0.08)


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
    found = fit_logistic(features, labels, brains, n_classes=3)
    assert found.weight.shape == (3, 5)
    assert found.intercepts.shape == (2, 3)
    assert (found.scores(features).argmax(1) == labels).mean() > 0.9


def test_a_class_without_labels_gets_no_weight() -> None:
    features, labels = brain(60, 0.5, 0.0, 0)
    two = fit_logistic(features, labels, np.zeros(60, np.int64))
    three = fit_logistic(features, labels + 1, np.zeros(60, np.int64), n_classes=3)
    assert not three.weight[0].any()
    np.testing.assert_allclose(three.weight[2] - three.weight[1], two.weight[0], rtol=1e-3)
    np.testing.assert_allclose(three.bias[2] - three.bias[1], two.bias[0], rtol=1e-3)


@pytest.mark.parametrize("n_cells", [1, 2])
def test_as_few_cells_as_there_can_be(n_cells: int) -> None:
    features, _ = brain(20, 0.0, 0.0, 0)
    labels = (np.arange(20) < n_cells).astype(np.int64)
    features[:n_cells, 3] += 10
    found = fit_logistic(features, labels, np.arange(20) % 2)
    assert set(np.argsort(found.scores(features)[:, 0])[-n_cells:]) == set(range(n_cells))


@given(
    arrays.arrays(np.int64, 40, elements=st.integers(0, 2)),
    arrays.arrays(np.int64, 40, elements=st.integers(0, 3)),
)
@settings(max_examples=50)
def test_weights_are_alike_for_classes_and_as_labels_for_brains(labels, brains) -> None:
    groups = share_intercepts(labels, brains)
    weights = balancing_weights(labels, groups)
    assert weights.mean() == pytest.approx(1)
    for one in np.unique(groups):
        own = groups == one
        assert weights[own].sum() == pytest.approx(own.sum())
        classes = [weights[own & (labels == k)].sum() for k in np.unique(labels)]
        assert classes == pytest.approx([classes[0]] * len(classes))


def test_more_features_than_labels_give_the_rule_of_all_features() -> None:
    """It is sought in fewer directions, and is the one that scikit-learn finds in all of them."""
    random = np.random.default_rng(0)
    features = random.normal(size=(6, 40))
    labels = np.array([0, 0, 0, 0, 0, 1])  # a class of one label: the penalty is the usual one
    found = fit_logistic(features, labels, np.zeros(6, np.int64))
    plain = LogisticRegression(C=1e-2, class_weight="balanced", tol=1e-10).fit(features, labels)
    np.testing.assert_allclose(found.weight, plain.coef_, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(found.bias, plain.intercept_, rtol=1e-4, atol=1e-7)


def test_the_mean_of_two_rules_says_the_mean_of_what_they_say() -> None:
    features, labels, brains = joined(brain(200, 0.5, 0.5, 0), brain(100, 0.3, -0.5, 1))
    some, whole = (fit_logistic(features[:, :n], labels, brains) for n in (4, 10))
    found = mean_of(some, whole)
    expected = (some.scores(features[:, :4]) + whole.scores(features)) / 2
    np.testing.assert_allclose(found.scores(features), expected)
    own = (some.of_brains(brains) + whole.of_brains(brains)) / 2
    np.testing.assert_allclose(found.of_brains(brains), own)
    assert abs(found.weight - whole.weight / 2).sum() > 0  # neither was changed
