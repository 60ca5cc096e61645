from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cubeclf_core.cells import read_cells
from finetune.memory import load_memory
from finetune.suggest import choose


@pytest.fixture(scope="module")
def run(simulated, tmp_path_factory, request) -> Path:
    """A classifier with thirty labels of the first brain."""
    out = tmp_path_factory.mktemp("suggest") / "run"
    from finetune.config import FinetuneConfig
    from finetune.run import finetune

    file = simulated(0).brains_file
    finetune(FinetuneConfig(backbone="scratch:vit-nano", out=out, brains=(file,), labels=30))
    return out


def test_suggestions_are_candidates_without_a_label(
    run: Path, simulated, tmp_path: Path, command
) -> None:
    brain, out = simulated(0), tmp_path / "next.xml"
    words = ("cubeclf-suggest", brain.volume, "--classifier", run, "--cells", brain.cells)
    outcome = command(*words, "--budget", 12, "--out", out)
    assert outcome.code == 0, outcome.err
    suggested, every = read_cells(out), read_cells(brain.cells)
    assert len(suggested) == 12
    places = {tuple(p) for p in suggested.positions.tolist()}
    assert len(places) == 12
    assert places <= {tuple(p) for p in every.positions.tolist()}
    memory = load_memory(run / "exported" / "labelled.safetensors")
    known = memory.positions_um.numpy()
    assert len(known) == 30
    suggested_um = suggested.positions * np.array([5.0, 1.0, 1.0])
    away = np.abs(suggested_um[:, None] - known[None]).max(-1)
    assert away.min() >= 1
    with out.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["rank"]) for row in rows] == list(range(1, 13))
    again = tmp_path / "again.xml"
    assert command(*words, "--budget", 12, "--out", again).code == 0
    assert again.read_bytes() == out.read_bytes()
    for there in (out, tmp_path / "table.xml"):  # one is there itself, of one its table
        (tmp_path / "table.csv").write_text("mine")
        assert command(*words, "--budget", 12, "--out", there).code == 2
    assert (tmp_path / "table.csv").read_text() == "mine"
    most = len(every) - 30
    many = command(*words, "--budget", most + 1, "--out", tmp_path / "many.xml")
    assert many.code == 2
    assert f"{most} of {len(every)} candidates are not labelled yet" in many.lines[-1]
    assert command(*words, "--budget", most, "--out", tmp_path / "all.xml").code == 0


def test_an_exported_program_cannot_suggest(run: Path, simulated, tmp_path, command) -> None:
    brain = simulated(0)
    lost = tmp_path / "classifier.safetensors"
    lost.write_bytes((run / "exported" / "classifier.safetensors").read_bytes())
    words = ("cubeclf-suggest", brain.volume, "--classifier", lost, "--cells", brain.cells)
    outcome = command(*words, "--out", tmp_path / "next.xml")
    assert outcome.code == 2
    assert "which labels the classifier has seen" in outcome.lines[-1]


@given(st.integers(2, 30), st.integers(0, 3), st.data())
@settings(max_examples=40)
def test_what_is_chosen_is_chosen_once(n: int, seed: int, data) -> None:
    random = np.random.default_rng(seed)
    budget = data.draw(st.integers(1, n))
    features, known = random.normal(size=(n, 5)), random.normal(size=(4, 5))
    probability = random.choice([0.0, 0.2, 0.5, 1.0], n)
    chosen = choose(features, probability, known, budget, seed)
    assert len(chosen) == len(set(chosen.tolist())) == budget


def test_unsure_and_different_candidates_are_preferred() -> None:
    """Ten kinds of which the classifier is unsure, a crowd of one kind, and many it is sure of."""
    random = np.random.default_rng(0)
    kinds = 10 * np.eye(10)
    crowd = np.tile(kinds[0], (200, 1))
    sure = random.normal(size=(300, 10)) * 10
    features = np.concatenate([kinds, crowd, sure]) + random.normal(size=(510, 10)) * 0.01
    probability = np.concatenate([np.full(210, 0.5), np.full(300, 0.999)])
    known = np.zeros((0, 10))
    chosen = choose(features, probability, known, 10, 0)
    kind = np.where(chosen < 10, chosen, np.where(chosen < 210, 0, -1))
    assert (kind >= 0).mean() >= 0.9
    assert len(set(kind.tolist())) >= 8
    labelled = choose(features, probability, kinds[:5], 5, 0)
    kind = np.where(labelled < 10, labelled, np.where(labelled < 210, 0, -1))
    assert np.isin(kind, range(5, 10)).sum() >= 4
