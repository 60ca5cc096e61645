from __future__ import annotations

import json

import numpy as np
import pytest

from finetune.drift import Reference, compare, make_reference, read_reference

WIDTH = 12


def embeddings(random: np.random.Generator, is_cell: np.ndarray, offset: float) -> np.ndarray:
    """Two classes apart along the first feature, of a brain that lies at an offset."""
    features = random.normal(size=(len(is_cell), WIDTH)) + offset
    features[:, 0] += np.where(is_cell, 2.0, -2.0)
    return features


def scores(random: np.random.Generator, is_cell: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-random.normal(np.where(is_cell, 2.0, -2.0), 1.5)))


@pytest.fixture(scope="module")
def reference() -> Reference:
    """Two brains with an offset each; most labels are no cells."""
    random = np.random.default_rng(0)
    labels = (random.random(300) < 0.2).astype(np.int64)
    brains = np.arange(300) % 2
    features = embeddings(random, labels == 1, 0.0) + 3.0 * brains[:, None]
    made = make_reference(labels, scores(random, labels == 1), labels, brains, features)
    return read_reference({"reference": json.loads(json.dumps(made.to_dict()))})


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_another_share_of_cells_is_no_drift(reference: Reference, share, offset) -> None:
    random = np.random.default_rng(1)
    is_cell = random.random(2000) < share
    found = compare(reference, scores(random, is_cell), embeddings(random, is_cell, offset)[:128])
    assert found["warnings"] == []
    assert found["scores_apart"] < 0.15
    assert found["far_share"] < 0.12


def test_a_brain_between_two_others_or_beyond_them_is_told_by_its_embeddings(reference) -> None:
    random = np.random.default_rng(2)
    is_cell = random.random(128) < 0.5
    for offset in (1.5, 6.0):
        found = compare(reference, None, embeddings(random, is_cell, offset))
        assert found["scores_apart"] is None
        assert found["far_share"] > 0.3
        assert "look like few of the training brains'" in found["warnings"][0]


def test_scores_that_no_mixture_of_classes_gives_are_told(reference: Reference) -> None:
    undecided = np.random.default_rng(3).uniform(0.4, 0.6, 2000)
    found = compare(reference, undecided, np.zeros((0, 0), np.float32))
    assert found["far_share"] is None
    assert "scores lie away" in found["warnings"][0]


def test_what_is_not_known_is_not_compared(reference: Reference) -> None:
    assert compare(None, np.zeros(3), np.zeros((3, WIDTH))) is None
    assert read_reference({}) is None
    assert read_reference({"reference": {"mean": 1}}) is None
    nothing = compare(reference, np.full(4, np.nan), np.zeros((4, WIDTH + 1)))
    assert nothing == {"scores_apart": None, "far_share": None, "warnings": []}
    random = np.random.default_rng(4)
    labels = np.arange(40) % 2
    alone = make_reference(
        labels[:0], np.zeros(0), labels, np.arange(40), random.normal(size=(40, WIDTH))
    )
    assert len(alone.means) == 1  # brains of a label each are one
    assert compare(alone, np.full(9, 0.5), np.zeros((0, 0)))["scores_apart"] is None
