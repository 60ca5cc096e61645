from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from cubeclf_core.bootstrap import interval, resampled_weights, spatial_blocks
from cubeclf_core.cells import read_cells
from cubeclf_core.curves import score_curve
from cubeclf_core.ranking import rank
from finetune.evaluation import evaluate, evaluate_scores
from finetune.label_errors import label_errors, write_label_errors

GRID = np.linspace(0, 1, 11).tolist()  # few values, so that there are ties
both_classes = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from(GRID), st.integers(1, 3)), min_size=2, max_size=40
).filter(lambda rows: len({row[0] for row in rows}) == 2)


def columns(rows: list[tuple[int, float, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, scores, weights = zip(*rows, strict=True)
    return np.array(labels, np.int64), np.array(scores), np.array([weights], np.int32)


def two(cell: np.ndarray) -> np.ndarray:
    return np.stack([1 - cell, cell], axis=1)


def somewhere(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 3)) * (1000, 400, 400)


@given(both_classes)
def test_weighted_ranking_is_scikit_learns(rows: list[tuple[int, float, int]]) -> None:
    labels, scores, weights = columns(rows)
    ranking, w = rank(labels, scores, weights), {"sample_weight": weights[0]}
    assert ranking.auc()[0] == pytest.approx(roc_auc_score(labels, scores, **w))
    assert ranking.average_precision()[0] == pytest.approx(
        average_precision_score(labels, scores, **w)
    )
    precision, recall, _ = precision_recall_curve(labels, scores, **w)
    rates, recalls, _ = roc_curve(labels, scores, drop_intermediate=False, **w)
    for share in (0.3, 0.9, 0.95):
        expected = recall[precision >= share - 1e-12].max()
        assert ranking.recall_at_precision(share)[0] == pytest.approx(expected)
        expected = rates[recalls >= share - 1e-12].min()
        assert ranking.false_positive_rate_at_recall(share)[0] == pytest.approx(expected)


@given(both_classes, st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_evaluation_is_scikit_learns(rows: list[tuple[int, float, int]], threshold: float) -> None:
    labels, cell, _ = columns(rows)
    n = len(labels)
    found = evaluate(labels, two(cell), somewhere(n), ["a"] * n, threshold, n_resamples=2)["pooled"]
    called = cell >= threshold
    assert (found["n"], found["cells"]) == (n, labels.sum())
    assert found["auc"] == pytest.approx(roc_auc_score(labels, cell))
    assert found["average_precision_less_prevalence"] == pytest.approx(
        average_precision_score(labels, cell) - labels.mean()
    )
    assert found["f1"] == pytest.approx(f1_score(labels, called))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, called))
    assert found["confusion"] == confusion_matrix(labels, called, labels=[0, 1]).tolist()
    assert found["brier"] == pytest.approx(brier_score_loss(labels, cell))
    assert found["calibration"]["after"]["brier"] == pytest.approx(found["brier"])
    assert found["calibration"]["before"] is None
    assert (found["precision"] is None) == (not called.any())


def sample(n: int, seed: int, brains: int = 2) -> tuple[np.ndarray, np.ndarray, list[str]]:
    random = np.random.default_rng(seed)
    labels = (random.random(n) < 0.4).astype(np.int64)
    cell = 1 / (1 + np.exp(-random.normal(size=n) - 2 * labels + 1))
    return labels, cell, [f"brain {i % brains}" for i in range(n)]


@given(st.integers(0, 2**31))
@settings(max_examples=10)
def test_an_evaluation_depends_on_its_seed_only_and_holds_the_value(seed: int) -> None:
    labels, cell, brains = sample(300, seed)
    places = somewhere(300, seed)
    first, again = (
        evaluate(labels, two(cell), places, brains, 0.5, n_resamples=200, seed=3) for _ in range(2)
    )
    assert first == again
    for result in (first["pooled"], *first["brains"].values()):
        for name in ("auc", "average_precision", "f1", "brier", "prevalence"):
            low, high = result["intervals"][name]
            assert low <= result[name] <= high


def test_each_brain_is_as_if_alone() -> None:
    labels, cell, brains = sample(300, 0)
    places = somewhere(300)
    both = evaluate(labels, two(cell), places, brains, 0.5, n_resamples=5)
    own = np.arange(0, 300, 2)
    alone = evaluate(
        labels[own], two(cell[own]), places[own], ["brain 0"] * 150, 0.5, n_resamples=5
    )
    with_both, without = both["brains"]["brain 0"], alone["pooled"]
    intervals = (with_both.pop("intervals"), without.pop("intervals"))
    assert with_both == without
    assert intervals[0].keys() == intervals[1].keys()


def test_the_worst_brain_is_the_one_that_gains_least_over_guessing() -> None:
    labels, cell, brains = sample(400, 1, brains=4)
    poor = np.array(brains) == "brain 2"
    cell[poor] = np.random.default_rng(0).random(poor.sum())
    result = evaluate(labels, two(cell), somewhere(400), brains, 0.5, n_resamples=5)
    assert result["worst_brain"] == "brain 2"
    alone = evaluate(labels, two(cell), somewhere(400), ["a"] * 400, 0.5, n_resamples=5)
    assert alone["worst_brain"] is None


@pytest.mark.parametrize("kind", [0, 1])
def test_a_brain_of_one_class_is_none_and_noted_and_the_json_is_strict(kind: int) -> None:
    labels, cell, brains = sample(100, 2)
    labels[::2] = kind  # all of brain 0
    places = somewhere(100)
    scores = {"classifier": cell, "odd": np.where(labels, np.nan, 0.5)}
    result = evaluate(labels, two(cell), places, brains, 0.5, n_resamples=20)
    beside = evaluate_scores(labels, scores, places, brains, reference="classifier", n_resamples=20)
    json.dumps([result, beside], allow_nan=False)
    one = result["brains"]["brain 0"]
    undefined = ("auc", "average_precision", "recall", "f1", "false_positive_rate_at_recall_0.99")
    assert [one[name] for name in undefined] == [None] * 5
    assert [one["intervals"][name] for name in undefined] == [None] * 5
    assert one["brier"] > 0
    assert result["pooled"]["auc"] > 0.5
    assert result["worst_brain"] is None
    assert any("brain 0" in note and "left out" in note for note in result["notes"])
    assert beside["odd"]["pooled"]["auc"] is None


def test_a_probability_that_all_have_and_a_threshold_that_none_has() -> None:
    labels, _, brains = sample(60, 3)
    result = evaluate(labels, two(np.full(60, 0.4)), somewhere(60), brains, 0.9, n_resamples=20)
    json.dumps(result, allow_nan=False)
    assert result["pooled"]["auc"] == 0.5
    assert result["pooled"]["precision"] is None
    assert result["pooled"]["recall"] == 0


def test_many_classes_are_measured_as_cells_against_the_rest() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 200)
    p = random.dirichlet((1, 1, 1), 200)
    p[np.arange(200), labels] += 0.5
    p /= p.sum(axis=1, keepdims=True)
    result = evaluate(
        labels, p, somewhere(200), ["a"] * 200, 0.6, classes=("debris", "cell", "vessel")
    )
    found = result["pooled"]
    assert found["auc"] == pytest.approx(roc_auc_score(labels == 1, p[:, 1]))
    confusion = np.array(found["confusion"])
    np.testing.assert_array_equal(confusion.sum(axis=1), np.bincount(labels))
    assert confusion[:, 1].sum() == (p[:, 1] >= 0.6).sum()
    others = np.where(p[:, 0] >= p[:, 2], 0, 2)
    assert confusion[:, 0].sum() == ((p[:, 1] < 0.6) & (others == 0)).sum()


def test_the_lead_over_a_rule_is_paired() -> None:
    """Two scores that always move together differ by less than either of them moves."""
    labels, cell, brains = sample(400, 4)
    scores = {"classifier": cell, "rule": cell + np.random.default_rng(0).normal(size=400) * 0.05}
    results = evaluate_scores(labels, scores, somewhere(400), brains, reference="classifier")
    rule = results["rule"]["pooled"]
    low, high = rule["intervals"]["auc"]
    lead_low, lead_high = rule["lead"]["intervals"]["auc"]
    assert lead_high - lead_low < 0.5 * (high - low)
    own = results["classifier"]["pooled"]
    assert rule["lead"]["auc"] == pytest.approx(own["auc"] - rule["auc"])
    assert own["lead"] is None
    direct = evaluate(labels, two(cell), somewhere(400), brains, 0.5)["pooled"]
    assert direct["intervals"]["auc"] == own["intervals"]["auc"]


@given(st.integers(1, 60), st.integers(1, 3), st.floats(1, 500), st.integers(0, 99))
def test_resamples_draw_whole_blocks_of_each_brain(
    n: int, n_brains: int, block_um: float, seed: int
) -> None:
    brains = [f"b{i % n_brains}" for i in range(n)]
    places = somewhere(n, seed)
    places[::5] = np.nan
    blocks = spatial_blocks(places, brains, block_um)
    (weights,) = resampled_weights(blocks, 7, seed)
    (more,) = resampled_weights(blocks, 9, seed)
    np.testing.assert_array_equal(weights, more[:7])
    for block in range(len(blocks.size)):
        own = np.flatnonzero(blocks.block == block)
        assert len({brains[i] for i in own}) == 1
        assert (weights[:, own] == weights[:, own[:1]]).all()
        known = np.isfinite(places[own]).all()
        assert known or len(own) == 1
        assert len(own) == 1 or (np.ptp(places[own], axis=0) <= block_um).all()
    for name in set(brains):
        own = np.array([brain == name for brain in brains])
        _, one_of_each = np.unique(blocks.block[own], return_index=True)
        drawn = weights[:, own][:, one_of_each].sum(axis=1)
        assert (drawn == len(one_of_each)).all()


def clustered(seed: int, n_blocks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ten candidates in each block; in some blocks cells are harder to tell than in others."""
    random = np.random.default_rng(seed)
    block = np.repeat(np.arange(n_blocks), 10)
    labels = (random.random(len(block)) < 0.4).astype(np.int64)
    ease = random.normal(size=n_blocks)[block]
    scores = random.normal(size=len(block)) + labels * (1.2 + ease)
    places = random.random((len(block), 3)) * 100
    places[:, 0] += block * 150
    return labels, scores, places


def test_intervals_hold_the_truth_as_often_as_they_say_only_with_blocks() -> None:
    labels, scores, _ = clustered(10**6, 100_000)
    truth = rank(labels, scores).auc()[0]
    held = {"blocks": 0, "single": 0}
    for seed in range(200):
        labels, scores, places = clustered(seed, 40)
        for kind, where in (("blocks", places), ("single", np.full_like(places, np.nan))):
            blocks = spatial_blocks(where, ["a"] * len(labels))
            (weights,) = resampled_weights(blocks, 200, seed)
            low, high = interval(rank(labels, scores, weights).auc())
            held[kind] += low <= truth <= high
    assert held["blocks"] >= 0.89 * 200  # 186 expected of a bootstrap that small
    assert held["single"] <= 0.87 * 200


def test_few_blocks_are_noted_and_too_few_give_no_interval() -> None:
    labels, cell, _ = sample(40, 5)
    places = np.zeros((40, 3))
    one = evaluate(labels, two(cell), places, ["a"] * 40, 0.5, n_resamples=20)
    assert one["pooled"]["blocks"] == 1
    assert set(one["pooled"]["intervals"].values()) == {None}
    assert "1 block of" in one["notes"][0]
    places[:, 1] = np.arange(40) % 8 * 150
    few = evaluate(labels, two(cell), places, ["a"] * 40, 0.5, n_resamples=20)
    assert few["pooled"]["intervals"]["auc"]
    assert "8 blocks only" in few["notes"][0]
    unknown = evaluate(labels, two(cell), places * np.nan, ["a"] * 40, 0.5, n_resamples=20)
    assert "40 of 40" in unknown["notes"][-1]


@given(both_classes)
def test_curves_end_where_all_is_accepted_and_bands_are_in_order(
    rows: list[tuple[int, float, int]],
) -> None:
    labels, scores, _ = columns(rows)
    blocks = spatial_blocks(somewhere(len(labels)), ["a"] * len(labels))
    curve = score_curve(labels, scores, blocks, n_resamples=20)
    assert curve.recall[-1] == curve.false_positive_rate[-1] == 1
    assert curve.precision[-1] == pytest.approx(labels.mean())
    for low, high in (curve.precision_band, curve.recall_band):
        known = ~np.isnan(low)
        assert (low[known] <= high[known]).all()
        assert ((low[known] >= 0) & (high[known] <= 1)).all()
    assert (np.diff(curve.recall_band, axis=1) >= -1e-12).all() or np.isnan(curve.recall_band).any()


def flipped(n: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of which some are wrong, and the right probabilities of what is shown."""
    random = np.random.default_rng(seed)
    true = (random.random(n) < share).astype(np.int64)
    shown = random.normal(size=n) + 3 * true
    cell = 1 / (1 + np.exp(-(3 * shown - 4.5 + np.log(share / (1 - share)))))
    wrong = random.random(n) < 0.05
    return np.where(wrong, 1 - true, true), two(cell), wrong


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_wrong_labels_are_found_first(share: float) -> None:
    given_labels, p, wrong = flipped(2000, share, 0)
    index, probability = label_errors(given_labels, p)
    assert (np.diff(probability) >= 0).all()
    np.testing.assert_array_equal(probability, p[index, given_labels[index]])
    assert wrong[index[:30]].mean() > 0.9
    assert wrong[index].sum() > 0.7 * wrong.sum()
    assert len(index) < 2 * wrong.sum()


@given(st.integers(0, 30), st.integers(2, 4), st.integers(0, 99))
def test_no_label_is_suspected_twice_or_where_the_classifier_agrees(
    n: int, k: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    p = random.dirichlet(np.ones(k), n)
    labels = random.integers(0, k, n)
    index, _ = label_errors(labels, p)
    assert len(set(index.tolist())) == len(index)
    sure = np.eye(k)[labels] * 0.9 + 0.1 / k
    assert len(label_errors(labels, sure)[0]) == 0


def test_suspected_labels_open_as_cells_with_a_csv_beside(tmp_path: Path) -> None:
    given_labels, p, _ = flipped(200, 0.4, 1)
    index, probability = label_errors(given_labels, p)
    places = np.rint(somewhere(200))
    places[1::2, 2] += 1000  # brain 1 lies elsewhere, so that places are its own
    brains = [("a/b", "mouse 1")[i % 2] for i in range(200)]
    files = write_label_errors(tmp_path, index, probability, given_labels, places, brains)
    assert [file.name for file in files] == ["a_b_0.xml", "mouse 1.xml"]
    ranks = []
    for number, file in enumerate(files):
        own = index[index % 2 == number]
        cells = read_cells(file)
        labelled = sorted((*map(float, places[i]), 1 + given_labels[i]) for i in own)
        written = zip(cells.positions.tolist(), cells.types.tolist(), strict=True)
        assert sorted((*place, kind) for place, kind in written) == labelled
        with file.with_suffix(".csv").open() as text:
            rows = list(csv.DictReader(text))
        assert [int(row["given_label"]) for row in rows] == given_labels[own].tolist()
        assert [float(row["z"]) for row in rows] == places[own, 0].tolist()
        ranks += [int(row["rank"]) for row in rows]
    assert sorted(ranks) == list(range(1, len(index) + 1))
    unknown = write_label_errors(
        tmp_path / "cubes", index, probability, given_labels, places * np.nan, brains
    )
    assert [file.suffix for file in unknown] == [".csv", ".csv"]
