from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score

from cubeclf_core.errors import InputError
from finetune.thresholds import ThresholdRule, choose_threshold, parse_threshold

sets = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from(np.linspace(0, 1, 21).tolist())), min_size=2
).filter(lambda rows: len({label for label, _ in rows}) == 2)


def split(rows: list[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([r[0] for r in rows], np.int64), np.array([r[1] for r in rows], np.float64)


@pytest.mark.parametrize("text", ["f1", "recall=0.99", "precision=0.9", "0.42", "0", "1"])
def test_rules_are_read_and_written_alike(text: str) -> None:
    assert str(parse_threshold(text)) == text
    assert parse_threshold(f" {text} ") == parse_threshold(text)


WRONG = "F1 f1=0.5 recall recall= recall=0 recall=1.2 precision=nan precision=-1 fixed=0.3 =0.3 1.5"


@pytest.mark.parametrize("text", [*WRONG.split(), "", "-0.1", "nan", "half", "recall=0.9=0.9"])
def test_what_is_no_rule_is_told_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match="--threshold is ") as error:
        parse_threshold(text)
    assert "\n" not in str(error.value)
    assert repr(text) in str(error.value)


def test_rules_are_read_without_torch() -> None:
    code = "import sys, finetune.thresholds; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@given(sets)
def test_f1_is_the_best_of_all_thresholds(rows: list[tuple[int, float]]) -> None:
    labels, p = split(rows)
    chosen = choose_threshold(ThresholdRule("f1"), labels, p)
    best = max(f1_score(labels, p >= t) for t in np.unique(p))
    assert f1_score(labels, p >= chosen.threshold) == pytest.approx(best)
    assert not chosen.remark


@given(sets, st.floats(0.01, 1))
def test_recall_is_reached_by_the_highest_threshold(
    rows: list[tuple[int, float]], recall: float
) -> None:
    labels, p = split(rows)
    chosen = choose_threshold(ThresholdRule("recall", recall), labels, p).threshold
    assert recall_score(labels, p >= chosen) >= recall - 1e-9
    higher = [t for t in np.unique(p) if t > p[p >= chosen].min()]
    assert all(recall_score(labels, p >= t) < recall for t in higher)


@given(sets, st.floats(0.01, 1))
def test_precision_is_reached_with_the_most_cells_or_told(
    rows: list[tuple[int, float]], precision: float
) -> None:
    labels, p = split(rows)
    chosen = choose_threshold(ThresholdRule("precision", precision), labels, p)
    found = precision_score(labels, p >= chosen.threshold)
    all_of_them = {t: precision_score(labels, p >= t) for t in np.unique(p)}
    if chosen.remark:
        assert f"{precision:g}" in chosen.remark
        assert max(all_of_them.values()) < precision
        assert found == pytest.approx(max(all_of_them.values()))
        return
    assert found >= precision - 1e-9
    lower = [t for t in all_of_them if t < p[p >= chosen.threshold].min()]
    assert all(all_of_them[t] < precision for t in lower)


@pytest.mark.parametrize("labels", [[], [1, 1], [0, 0]])
@pytest.mark.parametrize("rule", ["f1", "recall=0.9", "precision=0.9"])
def test_one_class_leaves_one_half_and_says_so(labels: list[int], rule: str) -> None:
    p = np.full(len(labels), 0.3)
    chosen = choose_threshold(parse_threshold(rule), np.array(labels, np.int64), p)
    assert chosen.threshold == 0.5
    assert "needs both" in chosen.remark
    assert choose_threshold(ThresholdRule("fixed", 0.42), np.array([], np.int64), p[:0]).threshold


def test_the_last_digit_of_a_probability_decides_nothing() -> None:
    labels, p = np.array([0, 1, 1], np.int64), np.array([0.2, 0.6, 0.9])
    assert choose_threshold(ThresholdRule("recall", 1.0), labels, p).threshold == pytest.approx(0.4)
