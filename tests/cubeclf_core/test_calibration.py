from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax
from sklearn.metrics import brier_score_loss

from cubeclf_core.calibration import (
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    precision_at_prevalence,
    reliability,
    shift_prevalence,
)
from cubeclf_core.errors import InputError

shares = st.floats(0.01, 0.99)
probabilities = arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1))


def calibrated(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that are drawn with exactly their softmax."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(n, k)) * 2
    labels = (random.random((n, 1)) > softmax(logits, axis=1).cumsum(axis=1)).sum(axis=1)
    return logits, labels.clip(0, k - 1).astype(np.int64)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 8.0])
@pytest.mark.parametrize("k", [2, 4])
def test_a_known_temperature_is_recovered(temperature: float, k: int) -> None:
    logits, labels = calibrated(20_000, k)
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.04)


def test_scaling_mends_calibration_on_other_candidates() -> None:
    logits, labels = calibrated(4000, 2)
    wrong = logits * 3
    temperature = fit_temperature(wrong[:2000], labels[:2000])
    before, after = (
        expected_calibration_error(labels[2000:], softmax(wrong[2000:] / t, axis=1)[:, 1])
        for t in (1.0, temperature)
    )
    assert before > 0.07
    assert after < 0.03


@given(st.integers(1, 8), st.integers(2, 4), st.floats(0, 100), st.integers(0, 9))
def test_a_few_labels_told_apart_do_not_make_it_certain(
    n: int, k: int, sure: float, seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(0, k, n)
    logits = sure * np.eye(k)[labels]
    temperature = fit_temperature(logits, labels)
    assert LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE
    largest = softmax(logits / temperature, axis=1).max()
    cooled_most = softmax(logits / HIGHEST_TEMPERATURE, axis=1).max()
    assert largest <= max((n + 1) / (n + 2), cooled_most) + 1e-3


@pytest.mark.parametrize("labels", [[], [1], [0, 1, 1]])
def test_nothing_to_fit_to_leaves_logits_as_they_are(labels: list[int]) -> None:
    assert fit_temperature(np.zeros((len(labels), 2)), np.array(labels, np.int64)) == 1


@given(probabilities, st.integers(0, 99))
def test_brier_score_is_scikit_learns(p: np.ndarray, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 2, len(p))
    expected = brier_score_loss(labels, p, pos_label=1)
    assert brier_score(labels, p) == pytest.approx(expected, abs=1e-12)


@given(probabilities, st.integers(0, 99))
def test_bins_hold_all_candidates_once_whatever_their_order(p: np.ndarray, seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, len(p))
    bins = reliability(labels, p)
    assert bins.n.sum() == len(p)
    assert bins.n.min() > 0
    np.testing.assert_allclose((bins.n * bins.said).sum(), p.sum(), atol=1e-9)
    np.testing.assert_allclose((bins.n * bins.true).sum(), labels.sum(), atol=1e-9)
    error = expected_calibration_error(labels, p)
    assert 0 <= error <= 1
    mixed = random.permutation(len(p))
    assert expected_calibration_error(labels[mixed], p[mixed]) == pytest.approx(error, abs=1e-12)


def test_bins_of_different_probabilities_are_equally_full() -> None:
    p = np.random.default_rng(0).random(1000) ** 4  # most are low: bins of equal width would differ
    bins = reliability(np.zeros(1000, np.int64), p, n_bins=8)
    assert bins.n.tolist() == [125] * 8
    assert expected_calibration_error(np.zeros(1000, np.int64), p) == pytest.approx(p.mean())


@given(probabilities, shares, shares)
def test_another_prevalence_and_back_is_where_it_was(p: np.ndarray, one: float, two: float) -> None:
    there = shift_prevalence(p, one, two)
    assert ((there >= 0) & (there <= 1)).all()
    np.testing.assert_allclose(shift_prevalence(there, two, one), p, atol=1e-9)
    assert ((there - p) * np.sign(two - one) >= -1e-12).all()


def test_another_prevalence_is_what_resampled_candidates_show() -> None:
    """Throw away nine of ten cells: what is left is calibrated by the shifted probability."""
    logits, labels = calibrated(200_000, 2)
    p = softmax(logits, axis=1)[:, 1]
    kept = (labels == 0) | (np.random.default_rng(1).random(len(p)) < 0.1)
    share = labels[kept].mean()
    moved = shift_prevalence(p[kept], float(labels.mean()), float(share))
    assert expected_calibration_error(labels[kept], moved) < 0.005
    assert expected_calibration_error(labels[kept], p[kept]) > 0.1


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_prevalence_of_all_or_nothing_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="both excluded"):
        shift_prevalence(np.array([0.5]), 0.3, share)


@given(shares, shares, shares)
def test_precision_at_a_prevalence_is_bayes_rule(recall: float, rate: float, share: float) -> None:
    n = 1e6
    right, wrong = n * share * recall, n * (1 - share) * rate
    found = precision_at_prevalence(recall, rate, np.array([share]))
    assert found[0] == pytest.approx(right / (right + wrong))
    assert np.isnan(precision_at_prevalence(0.0, 0.0, np.array([share]))).all()
