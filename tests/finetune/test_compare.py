"""`cubeclf-compare`: one plan, the same labels for all, files that say what they depend on."""

from __future__ import annotations

import csv
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from sklearn.metrics import average_precision_score, roc_auc_score

from cubeclf_core import load_classifier
from cubeclf_core.backbones import build_backbone, save_backbone
from cubeclf_core.cells import Cells, read_cells, write_cells
from cubeclf_core.engine import DEVICE_KINDS, device_kind
from cubeclf_core.errors import InputError
from cubeclf_core.rules import density
from cubeclf_core.trained import save_classifier
from cubeclf_core.vit import Vit3dConfig
from finetune.comparing import grid
from finetune.comparing.cost import measure_cost
from finetune.comparing.effects import effects
from finetune.comparing.forest import forest_scores
from finetune.comparing.grid import jobs_of, run_job, search, searches
from finetune.comparing.networks import Network, Rate
from finetune.comparing.page import draw, render
from finetune.comparing.plan import ALL, Contender, Own, read_plan
from finetune.comparing.pretraining import Pretrained, has_ended, has_seen
from finetune.comparing.results import Cost, Row
from finetune.comparing.rules import crowding
from finetune.comparing.stock import fill, look, signature
from finetune.comparing.table import to_markdown
from finetune.comparing.tasks import make_task
from finetune.labels import Labelled
from finetune.sources import find_labels

SMALL: dict[str, Any] = {
    "data": {"brains": ["brains.yaml"]},
    "channels": 2,
    "seeds": 1,
    "transfer": {"labels": [20]},
    "contenders": {
        "contrast": {"rule": "contrast"},
        "untrained": {"backbone": "scratch:vit-nano"},
    },
}


def write_plan(folder: Path, **changes: Any) -> Path:
    file = folder / "plan.yaml"
    file.write_text(yaml.safe_dump({**SMALL, **changes}, sort_keys=False))
    return file


@pytest.fixture
def two(simulated, tmp_path: Path) -> Path:
    """A folder with a brains file of two brains."""
    entries = [
        {"name": name, "signal": str(brain.volume), "cells": str(brain.cells)}
        for name, brain in (("a", simulated(0)), ("b", simulated(1)))
    ]
    (tmp_path / "brains.yaml").write_text(yaml.safe_dump(entries))
    return tmp_path


def rows(out: Path, name: str = "results.csv") -> list[dict[str, str]]:
    with (out / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


FOREST = {"forest": {"rule": "forest"}}
WRONG = {
    "not a mapping": ("[1, 2]", "the file is [1, 2], expected a mapping"),
    "a key that is not known": ({"colour": 1}, "'colour'"),
    "no data": ({"data": {}}, "brains files or training YAMLs"),
    "neither protocol": ({"transfer": None}, "own and transfer is missing"),
    "seeds": ({"seeds": 0}, "seeds is 0, expected a whole number, at least 1"),
    "both alone": ({"both": {"labels": [20]}}, "own is missing, expected what `both` is tested"),
    "budgets": ({"transfer": {"labels": [2]}}, "numbers from 4 on, or all"),
    "parts": ({"own": {"labels": [20], "learn_below": 0.7}}, "learn_below < test_above < 1"),
    "axis": ({"own": {"labels": [20], "along": "t"}}, "own.along is t, expected z, y or x"),
    "reference": ({"reference": "nobody"}, "one of contrast, untrained"),
    "rates": ({"rates": [0]}, "numbers above 0"),
    "labels of rates": (
        {"rates_labels": 2},
        "rates_labels is 2, expected a number from 4 on, or all",
    ),
    "labels of rates that nobody tries": (
        {"rates_labels": 40, "rates": [1, 3]},
        "rates_labels is given, expected nothing: no contender that is trained has several rates",
    ),
    "against nobody": ({"against": {"nobody": 20}}, "against is nobody, expected one that learns"),
    "against a rule": ({"against": {"contrast": 20}}, "against is contrast, expected one that"),
    "against too few": (
        {"against": {"forest": 1}, "contenders": {**SMALL["contenders"], **FOREST}},
        "against.forest is 1, expected a number",
    ),
    "against others": (
        {"against": {"forest": "all"}, "contenders": {**SMALL["contenders"], **FOREST}},
        "against.forest is all, expected one of its own, 20",
    ),
    "own rates": (
        {"contenders": {"x": {"backbone": "resnet18", "rates": []}}},
        "contenders.x.rates is [], expected a list of numbers above 0",
    ),
    "rates of what is not trained": (
        {"contenders": {"x": {"backbone": "scratch:vit-nano", "rates": [1, 3]}}},
        "contenders.x.rates is given, expected nothing: a head is fitted at once",
    ),
    "settings of a rule": (
        {"contenders": {"x": {"rule": "forest", "train": {"epochs": 3}}}},
        "contenders.x.train is given, expected nothing",
    ),
    "rule": ({"contenders": {"x": {"rule": "luck"}}}, "contrast, density, forest"),
    "both": ({"contenders": {"x": {"rule": "forest", "backbone": "a"}}}, "either a rule, a"),
    "none": ({"contenders": {"x": {"seeds": 1}}}, "either a rule, a backbone or a classifier"),
    "a rule that has a key of its own": (
        {"contenders": {"x": {"rule": "classifier"}}},
        "contenders.x.rule is classifier, expected one of contrast, density, forest",
    ),
    "no name of a classifier": (
        {"contenders": {"x": {"classifier": 3}}},
        "contenders.x.classifier is 3, expected a name, or a mapping of groups to names",
    ),
    "no name at all": (
        {"contenders": {"x": {"backbone": {}}}},
        "contenders.x.backbone is {}, expected a name, or a mapping of groups to names",
    ),
    "a pretraining is no classifier": (
        {
            "pretraining": {"p": {"brains": ["b"]}},
            "contenders": {"x": {"classifier": {"a": "p", "b": "c"}}},
        },
        "contenders.x.classifier is the pretraining p, expected a classifier",
    ),
    "settings of a classifier": (
        {"contenders": {"x": {"classifier": "a", "train": {"epochs": 3}}}},
        "contenders.x.train is given, expected nothing: a classifier has none",
    ),
    "train": ({"contenders": {"x": {"backbone": "a", "train": {"speed": 1}}}}, "with speed"),
    "value": ({"contenders": {"x": {"backbone": "a", "train": {"epochs": 0}}}}, "at least 1"),
    "folds": (
        {"contenders": {"x": {"backbone": "a", "train": {"freeze": False, "folds": 3}}}},
        "contenders.x.train.folds is 3, expected 0, or nothing",
    ),
    "folds of what is not trained": (
        {"contenders": {"x": {"backbone": "a", "train": {"folds": 0}}}},
        "contenders.x.train.folds is given, expected nothing",
    ),
    "budget": (
        {"contenders": {"x": {"rule": "forest", "transfer": [30]}}},
        "contenders.x.transfer is 30, expected some of 20",
    ),
    "no budget": ({"contenders": {"x": {"rule": "forest", "transfer": []}}}, "without labels"),
    "a head that is none": (
        {"contenders": {"x": {"backbone": "a", "train": {"head": "MLP"}}}},
        "contenders.x.train.head is MLP, expected linear or mlp or attention",
    ),
    "a text for yes or no": (
        {"contenders": {"x": {"backbone": "a", "train": {"freeze": "no way"}}}},
        "contenders.x.train.freeze is no way, expected true or false",
    ),
    "half an epoch": (
        {"contenders": {"x": {"backbone": "a", "train": {"epochs": 1.5}}}},
        "contenders.x.train.epochs is 1.5, expected a whole number",
    ),
    "no epochs": (
        {"contenders": {"x": {"backbone": "a", "train": {"epochs": None}}}},
        "contenders.x.train.epochs is None, expected a whole number",
    ),
    "a rate that is no number": (
        {"contenders": {"x": {"backbone": "a", "train": {"learning_rate": "fast"}}}},
        "contenders.x.train.learning_rate is fast, expected a number or null",
    ),
    "seeds of what learns nothing": (
        {"contenders": {"x": {"rule": "contrast", "seeds": 1}}},
        "contenders.x.seeds is given, expected nothing",
    ),
    "more seeds than the plan": (
        {"seeds": 2, "contenders": {"x": {"rule": "forest", "seeds": 3}}},
        "contenders.x.seeds is 3, expected at most 2",
    ),
    "a budget twice": ({"transfer": {"labels": [20, 20]}}, "[20, 20], expected each once"),
    "a rate twice": ({"rates": [1, 1.0]}, "[1, 1.0], expected each once"),
    "a name twice": ("contenders: {x: {rule: forest}, x: {rule: forest}}", "'x' is there twice"),
    "a date that is none": ("seeds: 2026-13-45", "cannot be read as YAML"),
    "against the reference": (
        {"against": {"untrained": 20}},
        "against is untrained, expected one that learns and is not the reference",
    ),
    "against, of a rule": (
        {"against": {"untrained": 20}, "reference": "contrast"},
        "expected nothing: the reference, contrast, learns nothing",
    ),
    "a probe that is not there": (
        {"pretraining": {"p": {"brains": ["b"], "probe": "nowhere.yaml"}}},
        "pretraining.p.probe is nowhere.yaml, expected a file that is there",
    ),
    "seed": ({"pretraining": {"p": {"seed": 1, "brains": ["b"]}}}, "pretraining.p.seed"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_plan_is_one_line(case: str, tmp_path: Path, command) -> None:
    changes, told = WRONG[case]
    file = tmp_path / "plan.yaml"
    if isinstance(changes, str):
        file.write_text(changes)
    else:
        write_plan(tmp_path, **changes)
    outcome = command("cubeclf-compare", file, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert len(outcome.lines) == 1
    assert told in outcome.err
    assert not (tmp_path / "out").exists()


def test_paths_are_relative_to_the_plan(tmp_path: Path) -> None:
    (tmp_path / "runs" / "x-0").mkdir(parents=True)
    contenders = {"x": {"backbone": "runs/x-{seed}"}, "y": {"backbone": {7: "resnet18"}}}
    pretraining = {
        "on": {"brains": ["a.zarr"], "init": "runs/x-0"},
        "of images": {"brains": ["a.zarr"], "init": "timm:vit_tiny_patch16_224"},
    }
    plan = read_plan(write_plan(tmp_path, contenders=contenders, pretraining=pretraining))
    assert plan.pretraining["on"]["init"] == str(tmp_path / "runs" / "x-0")
    assert plan.pretraining["of images"]["init"] == "timm:vit_tiny_patch16_224"
    assert plan.brains == (tmp_path / "brains.yaml",)
    x, y = plan.contenders
    assert x.backbone_for("any") == str(tmp_path / "runs" / "x-{seed}")
    assert y.backbone_for("7") == "resnet18"
    with pytest.raises(InputError, match="y has no backbone for the group 8"):
        y.backbone_for("8")


def test_a_number_may_have_an_exponent(tmp_path: Path) -> None:
    """YAML makes a text of 1e-3."""
    train = {"freeze": False, "learning_rate": "1e-3", "weight_decay": 0}
    contenders = {"x": {"backbone": "resnet18", "train": train}}
    (x,) = read_plan(write_plan(tmp_path, contenders=contenders)).contenders
    assert (x.train["learning_rate"], x.train["weight_decay"]) == (0.001, 0)


def scattered(n: int, seed: int) -> Labelled:
    """Labels of two groups, places only."""
    import torch

    random = np.random.default_rng(seed)
    labels = np.array([i % 4 == 0 for i in range(n)], np.int64)
    names = [f"g{i // 4 % 2}" for i in range(n)]
    positions = random.uniform(0, (100, 400, 400), (n, 3)).round()
    voxels, cuboids = np.ones((n, 3)), torch.zeros(n, 1, 1, 1, 1)
    return Labelled(cuboids, labels, names, names, positions, voxels, [str(i) for i in range(n)])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 3), st.sampled_from(["own", "transfer"]))
def test_draws_are_nested_and_apart(data_seed: int, seed: int, protocol: str) -> None:
    data, reach = scattered(640, data_seed), (20.0, 50.0, 50.0)
    plan = read_plan_of(own=Own((8, 20), axis=1, learn_below=0.4, test_above=0.6))
    small, large = (make_task(plan, data, reach, (protocol, n), "g1", seed) for n in (8, 20))
    every = make_task(plan, data, reach, (protocol, ALL), "g1", seed)
    assert len(small.learn) == 8
    assert len(large.learn) == 20
    assert set(small.learn) <= set(large.learn) <= set(every.learn)
    for task in (small, large):
        counts = np.bincount(data.labels[task.learn], minlength=2)
        assert counts.min() >= 2
        np.testing.assert_array_equal(task.test, small.test)
    assert {data.brains[i] for i in large.test} == {"g1"}
    learned_from = {data.brains[i] for i in every.learn}
    assert learned_from == ({"g1"} if protocol == "own" else {"g0"})
    if protocol == "own":
        y = data.positions_um[:, 1]
        assert y[every.learn].max() + reach[1] <= y[every.test].min()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 3), st.sampled_from([8, 20, ALL]))
def test_both_is_what_own_draws_and_all_of_the_others(data_seed: int, seed: int, n: int) -> None:
    data, reach = scattered(640, data_seed), (20.0, 50.0, 50.0)
    plan = read_plan_of(own=Own((8, 20), axis=1, learn_below=0.4, test_above=0.6))
    own, both = (make_task(plan, data, reach, (p, n), "g1", seed) for p in ("own", "both"))
    others = np.flatnonzero([brain != "g1" for brain in data.brains])
    np.testing.assert_array_equal(both.learn, np.sort(np.concatenate([own.learn, others])))
    np.testing.assert_array_equal(both.test, own.test)


def read_plan_of(own: Own) -> Any:
    import dataclasses
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return dataclasses.replace(read_plan(write_plan(Path(folder))), own=own)


def test_parts_too_close_are_refused() -> None:
    plan = read_plan_of(own=Own((8,), axis=0))
    with pytest.raises(InputError, match="µm lie between labels to learn from and labels to test"):
        make_task(plan, scattered(100, 0), (20.0, 50.0, 50.0), ("own", 8), "g0", 0)


def test_crowding_counts_within_a_volume() -> None:
    data = scattered(60, 1)
    found = crowding(data)
    for name in data.names:
        own = np.array(data.volumes) == name
        np.testing.assert_array_equal(found[own], density(data.positions_um[own], (1, 1, 1)))


def test_a_comparison_and_what_it_takes_up_again(two: Path, command, monkeypatch) -> None:
    """Scores are what they should be; a second contender leaves the first one's cells alone."""
    monkeypatch.chdir(two)  # where what is written changes what is there
    out = two / "out"
    outcome = command("cubeclf-compare", write_plan(two), "--out", out, "--workers", 1)
    assert outcome.code == 0, outcome.err
    assert "| AUC | transfer 20 | seeds |" in outcome.out
    found = rows(out)
    assert {(r["contender"], r["group"]) for r in found} == {
        (name, group) for name in ("contrast", "untrained") for group in "ab"
    }
    for name in ("comparison.html", "table.md", "costs.json", "differences.csv"):
        assert (out / name).stat().st_size > 0
    for measure in ("AUC", "AP − share of cells"):
        shown = f"all differences in {measure}"
        assert shown in (out / "comparison.html").read_text(encoding="utf-8")
    for name in ("learning_curves", "group_curves", "groups", "cost"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 0
    effects = rows(out, "differences.csv")
    auc = {(r["contender"], r["group"]): float(r["auc"]) for r in found}
    for effect in effects:
        if effect["measure"] == "auc":
            expected = auc["untrained", effect["group"]] - auc["contrast", effect["group"]]
            assert float(effect["difference"]) == pytest.approx(expected)
            assert float(effect["low"]) <= expected <= float(effect["high"])
    assert len(effects) == 4

    before = {file: file.stat().st_mtime_ns for file in (out / "cells").iterdir()}
    contenders = {**SMALL["contenders"], "density": {"rule": "density"}}
    again = command("cubeclf-compare", write_plan(two, contenders=contenders), "--out", out)
    assert again.code == 2
    assert "go on with it by --resume" in again.err
    assert "--overwrite, which deletes" in again.err
    assert (out / "plan.yaml").read_text() == yaml.safe_dump(SMALL, sort_keys=False)
    words = ("--out", out, "--resume", "--workers", 1)
    again = command("cubeclf-compare", write_plan(two, contenders=contenders), *words)
    assert again.code == 0, again.err
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert len(list((out / "cells").iterdir())) == len(before) + 2
    assert [r for r in rows(out) if r["contender"] != "density"] == found
    assert {r["device"] for r in rows(out)} == {device_kind()}


@pytest.mark.slow
def test_labels_of_others_are_learned_from_beside_a_few_of_ones_own(two: Path, command) -> None:
    own = {"labels": [8], "along": "y", "learn_below": 0.35, "test_above": 0.65}
    contenders = {"forest": {"rule": "forest"}, "untrained": {"backbone": "scratch:vit-nano"}}
    changes = {"own": own, "both": {"labels": [8]}, "transfer": None, "contenders": contenders}
    outcome = command("cubeclf-compare", write_plan(two, **changes), "--out", two / "out")
    assert outcome.code == 0, outcome.err
    assert "| AUC | own 8 | both 8 | seeds |" in outcome.out
    found = {(r["contender"], r["protocol"], r["group"]): r for r in rows(two / "out")}
    assert len(found) == 2 * 2 * 2
    read = find_labels([two / "brains.yaml"])
    data = look(fill(two / "cache", read, 2, Vit3dConfig())).labels
    n_labels = {name: data.brains.count(name) for name in data.names}
    for name in contenders:
        for group in "ab":
            alone, beside = (found[name, protocol, group] for protocol in ("own", "both"))
            assert int(alone["labels"]) == 8
            assert int(beside["labels"]) == 8 + n_labels[{"a": "b", "b": "a"}[group]]
            assert alone["tested"] == beside["tested"]


def test_a_classifier_that_is_there_says_what_it_says(two: Path, fitted, command) -> None:
    """It learns nothing, so that one draw of labels is as good as another."""
    ours, others = two / "ours.safetensors", two / "others.safetensors"
    save_classifier(ours, fitted(2), {"threshold": 0.5})
    save_classifier(others, fitted(1), {"threshold": 0.5})  # which takes the signal alone
    named = {"a": "ours.safetensors", "b": "others.safetensors"}
    contenders = {"ours": {"classifier": named}, "density": {"rule": "density"}}
    changes = {"contenders": contenders, "seeds": 2, "transfer": {"labels": [20, 30]}}
    file, out = write_plan(two, **changes), two / "out"
    words = ("cubeclf-compare", file, "--out", out, "--workers", 1)
    outcome = command(*words)
    assert outcome.code == 0, outcome.err
    assert "has learned from whatever it was trained on" in (out / "comparison.html").read_text()
    found = [row for row in rows(out) if row["contender"] == "ours"]
    assert [(row["budget"], row["group"]) for row in found] == [
        (budget, group) for group in "ab" for budget in ("20", "30")
    ]
    plan = read_plan(file)
    stock = look(fill(two / "cache", find_labels(plan.brains), 2, Vit3dConfig()))
    for row in found:
        tested = np.flatnonzero(np.array(stock.labels.brains) == row["group"])
        classifier = load_classifier(two / named[row["group"]], exact=True)
        said = classifier.predict(stock.labels.cuboids[tested])[:, 1]
        expected = roc_auc_score(stock.labels.labels[tested], said)
        assert float(row["auc"]) == pytest.approx(expected, abs=1e-6)
        assert (row["seen"], row["seed"], row["train_seconds"]) == ("unknown", "0", "0.0")
        assert row["backbone"] == str(two / named[row["group"]])
        assert float(row["test_seconds"]) > 0
    before = {cell: cell.stat().st_mtime_ns for cell in (out / "cells").iterdir()}
    assert command(*words, "--resume").code == 0
    assert {cell: cell.stat().st_mtime_ns for cell in (out / "cells").iterdir()} == before


def test_what_a_run_has_learned_from_is_known_by_its_settings(two: Path, simulated) -> None:
    a, b = (frozenset({str(simulated(seed).volume)}) for seed in (0, 1))
    entry = {"name": "a", "signal": str(simulated(0).volume), "cells": str(simulated(0).cells)}
    (two / "a.yaml").write_text(yaml.safe_dump([entry]))
    runs: dict[str, dict[str, Any]] = {
        "pretrained": {"brains": [str(two / "a.yaml")]},
        "labelled": {"brains": [str(two / "a.yaml")], "backbone": "scratch:vit-nano"},
        "on it": {"brains": [], "cubes": ["c.yaml"], "backbone": str(two / "pretrained")},
        "of images": {"brains": [str(two / "a.yaml")], "init": "timm:vit"},
        "of cubes": {"brains": [], "cubes": ["c.yaml"], "backbone": "scratch:vit-nano"},
    }
    for name, told in runs.items():
        (two / name).mkdir()
        (two / name / "config.yaml").write_text(yaml.safe_dump(told))
    found = {name: tuple(has_seen(str(two / name), part) for part in (a, b)) for name in runs}
    assert found == {
        "pretrained": ("yes", "no"),
        "labelled": ("yes", "no"),
        "on it": ("yes", "unknown"),
        "of images": ("yes", "unknown"),
        "of cubes": ("unknown", "unknown"),
    }
    cubes = frozenset({"cubes of a"})  # which do not say of what they are
    told = {name: has_seen(str(two / name), cubes) for name in runs}
    assert set(told.values()) == {"unknown"}
    assert has_seen("vit3d-nano-v1", cubes) == "unknown"
    assert has_seen("scratch:vit-nano", cubes) == "no"


def test_a_pretraining_that_was_stopped_sooner_has_not_ended(two: Path, command) -> None:
    run = two / "run"
    assert not has_ended(run)
    words = ("--size", "nano", "--steps", 2, "--batch-size", 4, "--logger", "none", "--out", run)
    assert command("cubeclf-pretrain", two / "brains.yaml", *words).code == 0
    assert has_ended(run)
    told = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**told, "steps": 3}))
    assert not has_ended(run)  # Ctrl-C after two steps of three leaves such a folder
    (run / "config.yaml").unlink()
    with pytest.raises(InputError, match="delete the folder"):
        has_ended(run)


def test_a_pretraining_is_known_by_what_changes_its_weights(two: Path, tmp_path: Path) -> None:
    began = tmp_path / "began.safetensors"
    save_backbone(began, build_backbone(Vit3dConfig(size="nano"), seed=0), {})

    def run(**changes: Any) -> Path:
        settings = {"brains": [str(two / "brains.yaml")], "steps": 2, "init": str(began), **changes}
        return Pretrained.plan(tmp_path, {"p": settings}).run("p", 0)

    first = run()
    assert run(logger=["none"], checkpoint_every=1, monitor_every=1, log_every=1) == first
    assert run(steps=3) != first
    began.unlink()
    save_backbone(began, build_backbone(Vit3dConfig(size="nano"), seed=1), {})
    assert run() != first


def test_only_a_comparison_is_gone_on_with(two: Path, command) -> None:
    out = two / "pretrained"
    out.mkdir()
    (out / "config.yaml").write_text("brains: [a]\nout: b\n")
    outcome = command("cubeclf-compare", write_plan(two), "--out", out, "--resume")
    assert outcome.code == 2
    assert "exists already" in outcome.err
    assert "--resume" not in outcome.err
    assert (out / "config.yaml").read_text() == "brains: [a]\nout: b\n"
    assert len(list(out.iterdir())) == 1


@pytest.mark.slow
def test_what_was_done_on_a_device_of_another_kind_counts(two: Path, command, monkeypatch) -> None:
    monkeypatch.chdir(two)
    words = ["cubeclf-compare", write_plan(two), "--out", two / "out", "--workers", 1]
    assert command(*words).code == 0
    before, cells = rows(two / "out"), sorted((two / "out" / "cells").iterdir())
    other = next(kind for kind in DEVICE_KINDS if kind != device_kind())
    monkeypatch.setattr("finetune.comparing.run.device_kind", lambda: other)
    assert command(*words, "--resume").code == 0
    assert sorted((two / "out" / "cells").iterdir()) == cells
    assert rows(two / "out") == before


def test_labels_are_known_by_what_they_show_on_any_machine() -> None:
    random = np.random.default_rng(0)
    cuboids = random.uniform(100, 900, (20, 2, 4, 10, 10)).astype(np.float32)
    rounded = cuboids * (1 + np.float32(2e-7) * random.choice([-1, 1], cuboids.shape))
    assert signature(rounded.astype(np.float32)) == signature(cuboids)
    assert signature(cuboids[:, ::-1]) != signature(cuboids)
    assert signature(cuboids[::-1]) != signature(cuboids)
    assert signature(np.roll(cuboids, 1, axis=4) * 1.02) != signature(cuboids)


@pytest.mark.slow
def test_networks_learn_as_finetune_trains_them(two: Path, simulated, command) -> None:
    """The same labels in a brains file, and `cubeclf-finetune`, give the same probabilities."""
    backbone = "scratch:vit-nano+projection"
    contenders = {
        "untrained": {"backbone": backbone},
        "mlp": {"backbone": backbone, "train": {"head": "mlp", "epochs": 1}},
    }
    plan = read_plan(write_plan(two, contenders=contenders))
    stock = look(fill(two / "cache", find_labels(plan.brains), 2, Vit3dConfig()))
    task = make_task(plan, stock.labels, stock.reach, ("transfer", 20), "b", 0)
    network, other = (Network(c, backbone, 0, stock, two / "features") for c in plan.contenders)
    answer = network.answer(task, Rate(1.0, ""))
    other.answer(task, Rate(1.0, ""))  # which takes fewer features of the same backbone

    brain = simulated(0)
    learned = stock.labels.subset(task.learn)
    cells = Cells(learned.positions, np.where(learned.labels == 1, 2, 1))
    write_cells(two / "learned.xml", cells)
    entry = {"name": "a", "signal": str(brain.volume), "cells": "learned.xml"}
    (two / "learned.yaml").write_text(yaml.safe_dump([entry]))
    words = ("--backbone", backbone, "--brains", two / "learned.yaml", "--folds", 0)
    words += ("--for-others",)  # as labels of one other brain are taken to be
    outcome = command("cubeclf-finetune", *words, "--out", two / "run")
    assert outcome.code == 0, outcome.err
    assert read_cells(two / "learned.xml").labels.tolist() == learned.labels.tolist()
    tested = stock.labels.subset(task.test)
    expected = load_classifier(two / "run", exact=True).predict(tested.cuboids)[:, 1]
    np.testing.assert_allclose(answer.scores, np.asarray(expected), atol=1e-5)


@pytest.mark.slow
def test_rates_are_tried_on_what_is_learned_from(two: Path) -> None:
    """A rate of nothing learns nothing, so it is not the one that is chosen."""
    contenders = {
        "trained": {
            "backbone": "scratch:vit-nano",
            "train": {"freeze": False, "epochs": 3, "batch_size": 8, "head": "mlp"},
            "rates": [1e-9, 3.0],
        },
        "as others": {"backbone": "scratch:vit-nano", "train": {"freeze": False}},
    }
    plan = read_plan(write_plan(two, rates=[1], contenders=contenders))
    assert [contender.rates for contender in plan.contenders] == [(1e-9, 3.0), (1.0,)]
    stock = look(fill(two / "cache", find_labels(plan.brains), 2, Vit3dConfig()))
    task = make_task(plan, stock.labels, stock.reach, ("transfer", 60), "b", 0)
    network = Network(plan.contenders[0], "scratch:vit-nano", 0, stock, two / "features")
    rate = network.choose_rate(task)
    faster = network.config(rate)
    assert (faster.peak_rate, faster.head_rate) == pytest.approx((3 * 2e-4, 3 * 1e-3))
    assert rate.factor == 3.0
    assert "average precision 1e-09: " in rate.how
    assert "held out" in rate.how
    answer = network.answer(task, rate)
    labels = stock.labels.labels[task.test]
    assert roc_auc_score(labels, answer.scores) > 0.6
    assert average_precision_score(labels, answer.scores) > labels.mean() + 0.1
    assert answer.epochs >= 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pretraining": {"p": {"brains": ["brains.yaml"], "speed": 1}}}, "pretraining.p: found"),
        ({"pretraining": {"p": {"brains": ["nothing.zarr"]}}}, "nothing.zarr"),
        ({"contenders": {"x": {"backbone": {"c": "resnet18"}}}}, "backbone for the group c"),
        ({"contenders": {"x": {"backbone": {"a": "resnet18"}}}}, "no backbone for the group b"),
        ({"contenders": {"x": {"backbone": "nowhere"}}}, "nowhere"),
        ({"contenders": {"x": {"classifier": "nowhere"}}}, "no classifier at nowhere"),
        (
            {"contenders": {"x": {"classifier": {"a": "cells-tiny-v1"}}}},
            "x has no classifier for the group b",
        ),
        ({"contenders": {"x": {"backbone": "resnet18", "train": {"lora_rank": 4}}}}, "--lora-rank"),
        ({"transfer": None, "own": {"labels": [20], "along": "z"}}, "put own.learn_below and"),
        ({"data": {"brains": ["gone.yaml"]}}, "gone.yaml"),
    ],
)
def test_what_cannot_be_compared_is_one_line_before_any_work(
    two: Path, command, changes: dict[str, Any], told: str
) -> None:
    outcome = command("cubeclf-compare", write_plan(two, **changes), "--out", two / "out")
    assert outcome.code == 2
    assert told in outcome.err
    assert len(outcome.lines) == 1
    assert not (two / "out").exists()


def choose_a_rate(two: Path, rates: list[float]) -> Rate:
    train = {"freeze": False, "epochs": 1, "batch_size": 8, "weight_decay": 0.0}
    contenders = {"trained": {"backbone": "scratch:vit-nano", "train": train}}
    plan = read_plan(write_plan(two, rates=rates, contenders=contenders))
    stock = look(fill(two / "cache", find_labels(plan.brains), 2, Vit3dConfig()))
    task = make_task(plan, stock.labels, stock.reach, ("transfer", 60), "b", 0)
    network = Network(plan.contenders[0], "scratch:vit-nano", 0, stock, two / "features")
    return network.choose_rate(task)


def test_a_rate_that_diverges_is_not_taken(two: Path) -> None:
    rate = choose_a_rate(two, [1e30, 1])
    assert rate.factor == 1.0
    assert "1e+30: diverged" in rate.how


def test_a_training_that_diverges_is_left_out_and_the_others_are_not(two: Path, command) -> None:
    train = {"freeze": False, "epochs": 1, "folds": 0, "batch_size": 8}
    contenders = {
        "contrast": {"rule": "contrast"},
        "searched": {"backbone": "scratch:vit-nano", "train": train, "rates": [1e35, 1e30]},
        "given": {"backbone": "scratch:vit-nano", "train": train, "rates": [1e30]},
    }
    plan, out = write_plan(two, contenders=contenders, reference="contrast"), two / "out"
    outcome = command("cubeclf-compare", plan, "--out", out, "--workers", 1)
    assert outcome.code == 1
    assert "4 of 6 cells are left out of the tables: their training diverges" in outcome.err
    assert "given, b, transfer, 20 labels, seed 0: at 1e+30 times the usual rate: " in outcome.err
    lowest = "each of the rates 1e+35, 1e+30; give it lower ones (at 1e+30: all labels: loss "
    assert lowest in outcome.err
    assert {row["contender"] for row in rows(out)} == {"contrast"}
    for name in ("comparison.html", "table.md"):
        assert (out / name).read_text().count("Left out: ") == 4
    texts = {file: file.stat().st_mtime_ns for file in out.glob("cells/*.diverged.txt")}
    assert len(texts) == 6  # two searches too

    # Nobody begins again what diverged, and means are not of some groups alone.
    resumed = command("cubeclf-compare", plan, "--out", out, "--workers", 1, "--resume")
    assert resumed.code == 1
    assert "4 of 6 cells" in resumed.err
    alone = command("cubeclf-compare", plan, "--out", out, "--resume", "--contenders", "given")
    assert alone.code == 1
    assert "nothing can be compared on a, b: every training diverges" in alone.err
    assert {file: file.stat().st_mtime_ns for file in texts} == texts


@pytest.mark.slow
def test_labels_of_one_other_brain_are_for_another(two: Path) -> None:
    given = {"usual": {}, "said": {"for_others": True}, "own": {"for_others": False}}
    backbone = "scratch:vit-nano+projection"
    contenders = {name: {"backbone": backbone, "train": train} for name, train in given.items()}
    own = {"labels": [20], "along": "y", "learn_below": 0.35, "test_above": 0.65}
    plan = read_plan(write_plan(two, own=own, contenders=contenders))
    stock = look(fill(two / "cache", find_labels(plan.brains), 2, Vit3dConfig()))

    def scores(protocol: str, number: int) -> np.ndarray:
        task = make_task(plan, stock.labels, stock.reach, (protocol, 20), "b", 0)
        network = Network(plan.contenders[number], backbone, 0, stock, two / "features")
        return network.answer(task, network.choose_rate(task)).scores

    usual, said, as_own = (scores("transfer", number) for number in range(3))
    np.testing.assert_array_equal(usual, said)
    assert not np.array_equal(usual, as_own)
    np.testing.assert_array_equal(scores("own", 0), scores("own", 2))


@pytest.mark.slow
def test_all_epochs_are_taken_where_nothing_is_to_be_held_out(two: Path) -> None:
    """Where a part is, a rate that ruins the network leaves the head that was fitted first.

    So a rate is judged by what it ends with, or by its best epoch; of equals, the usual one is it.
    """
    ruinous = {"freeze": False, "epochs": 2, "batch_size": 4, "learning_rate": 0.3}
    backbone = str(two / "backbone.safetensors")
    save_backbone(Path(backbone), build_backbone(Vit3dConfig(size="nano"), seed=0), {})
    contenders = {
        name: {"backbone": backbone, "train": {**ruinous, **more}}
        for name, more in (("best", {}), ("last", {"folds": 0}))
    }
    plan = read_plan(write_plan(two, rates=[1e-6, 1], contenders=contenders))
    stock = look(fill(two / "cache", find_labels(plan.brains), 2, Vit3dConfig()))
    task = make_task(plan, stock.labels, stock.reach, ("transfer", 60), "b", 0)
    networks = [
        Network(contender, backbone, 0, stock, two / "features") for contender in plan.contenders
    ]
    assert [n.answer(task, Rate(1.0, "given")).epochs for n in networks] == [0, 2]
    assert [n.choose_rate(task).factor for n in networks] == [1.0, 1e-6]


def test_budgets_are_in_order_and_all_is_the_most(two: Path) -> None:
    own = {"labels": ["all", 40, 20]}
    plan = read_plan(write_plan(two, own=own, transfer={"labels": ["all", 30]}))
    assert [n for protocol, n in plan.rows if protocol == "own"] == [20, 40, ALL]
    assert [n for protocol, n in plan.rows if protocol == "transfer"] == [30, ALL]


def test_a_cell_depends_on_the_rates_that_are_tried_and_not_on_who_says_so(two: Path) -> None:
    trained = {"backbone": "scratch:vit-nano", "train": {"freeze": False}}
    contenders = {name: {**trained, "rates": rates} for name, rates in (("a", [1]), ("b", [1, 3]))}
    plan = read_plan(write_plan(two, rates=[1], contenders={"plan's": trained, **contenders}))
    stocked = fill(two / "cache", find_labels(plan.brains), 2, Vit3dConfig())
    stock = look(stocked)
    folders = {name: two / name for name in ("cells", "features")}
    pretrained = Pretrained(two, {}, {})
    jobs = jobs_of(plan, ["b"], pretrained=pretrained, stock=stocked, device="cpu", **folders)
    files = [job.file(job.tasks(stock, job.rows[0])[0], stock) for job in jobs]
    assert files[0] == files[1] != files[2]
    for labels, same in ((20, True), (60, False)):  # the row has 20
        with_labels = [replace(job, plan=replace(plan, rates_labels=labels)) for job in jobs]
        others = [job.file(job.tasks(stock, job.rows[0])[0], stock) for job in with_labels]
        assert others[:2] == files[:2]  # where there is no choice
        assert (others[2] == files[2]) is same


def test_a_cell_depends_on_how_many_labels_a_leaf_of_the_forest_has(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contenders = {"forest": {"rule": "forest"}, "contrast": {"rule": "contrast"}}
    plan = read_plan(write_plan(two, contenders=contenders, transfer={"labels": [20, 100]}))
    stocked = fill(two / "cache", find_labels(plan.brains), 2, Vit3dConfig())
    stock = look(stocked)
    folders = {name: two / name for name in ("cells", "features")}
    pretrained = Pretrained(two, {}, {})
    jobs = jobs_of(plan, ["b"], pretrained=pretrained, stock=stocked, device="cpu", **folders)

    def files() -> list[Path]:
        return [job.file(job.tasks(stock, row)[0], stock) for job in jobs for row in job.rows]

    before = files()
    monkeypatch.setattr(grid, "leaf", lambda n: 2 if n < 100 else 5)
    same = [one == other for one, other in zip(before, files(), strict=True)]
    assert same == [False, True, True, True]


@pytest.mark.slow
def test_rates_are_tried_once_for_all_budgets(two: Path, command) -> None:
    """With as many labels as the plan says; a cell done anew takes the rate that is kept."""
    train = {"freeze": False, "folds": 0, "epochs": 1, "batch_size": 8}
    contenders = {
        "trained": {"backbone": "scratch:vit-nano", "train": train},
        "fitted": {"backbone": "scratch:vit-nano"},
    }
    changes: dict[str, Any] = {"transfer": {"labels": [8, 20]}, "rates": [1e-9, 1]}
    file, out = write_plan(two, contenders=contenders, rates_labels=40, **changes), two / "out"
    words = ("cubeclf-compare", file, "--out", out, "--workers", 1)
    outcome = command(*words)
    assert outcome.code == 0, outcome.err
    assert "held out among 40, for all budgets" in (out / "comparison.html").read_text()
    found = [row for row in rows(out) if row["contender"] == "trained"]
    told = {
        group: {(r["rate"], r["rate_by"]) for r in found if r["group"] == group} for group in "ab"
    }
    assert len(found) == 4
    assert [len(each) for each in told.values()] == [1, 1]
    stock = look(fill(two / "cache", find_labels([two / "brains.yaml"]), 2, Vit3dConfig()))
    for group in "ab":
        task = make_task(read_plan(file), stock.labels, stock.reach, ("transfer", 40), group, 0)
        network = Network(
            read_plan(file).contenders[0], "scratch:vit-nano", 0, stock, two / "features"
        )
        rate = network.choose_rate(task)
        assert told[group] == {(str(rate.factor), rate.how)}
    kept = sorted((out / "cells").glob("*.rate.json"))
    assert len(kept) == 2
    for rate in kept:
        rate.write_text(json.dumps({"factor": 0.5, "how": "by hand"}))
    for cell in (out / "cells").glob("*.npz"):
        cell.unlink()
    again = command(*words, "--resume")
    assert again.code == 0, again.err
    assert sorted((out / "cells").glob("*.rate.json")) == kept
    told = {(row["rate"], row["rate_by"]) for row in rows(out) if row["contender"] == "trained"}
    assert told == {("0.5", "by hand")}


def test_rates_are_chosen_before_cells_and_not_where_cells_have_one(two: Path) -> None:
    train = {"freeze": False, "folds": 0, "epochs": 1, "batch_size": 8}
    contenders = {"trained": {"backbone": "scratch:vit-nano", "train": train}}
    file = write_plan(two, contenders=contenders, rates=[0.1, 1], transfer={"labels": [8, 20]})
    plan = read_plan(file)
    stocked = fill(two / "cache", find_labels(plan.brains), 2, Vit3dConfig())
    stock, folders = look(stocked), {name: two / name for name in ("cells", "features")}
    folders["cells"].mkdir()
    given = {"pretrained": Pretrained(two, {}, {}), "stock": stocked, "device": "cpu", **folders}
    jobs = jobs_of(plan, ["a", "b"], **given)
    assert len(searches(jobs, stock)) == 4
    once = replace(plan, rates_labels=20)
    assert len(searches(jobs_of(once, ["a", "b"], **given), stock)) == 2
    assert search(searches(jobs[-1:], stock)[0]) == 1
    (kept,) = folders["cells"].glob("*.rate.json")
    kept.write_text(json.dumps({"factor": 0.5, "how": "by hand"}))
    run_job(jobs[-1])
    ((row, _, _),) = grid.read_cells(jobs, stock)
    assert (row.rate, row.rate_by) == (0.5, "by hand")
    kept.unlink()  # as before rates were kept
    assert [item.row for item in searches(jobs, stock)] == [job.rows[0] for job in jobs[:-1]]


def test_differences_are_of_the_same_labels(two: Path) -> None:
    """A contender with one seed is compared with that seed; a rule with every seed.

    What the plan says is also compared with the reference's other budgets: of all draws.
    """
    contenders = {
        "reference": {"backbone": "scratch:vit-nano"},
        "one seed": {"backbone": "resnet18", "seeds": 1},
        "by all": {"backbone": "resnet18", "seeds": 2, "transfer": ["all"]},
        "contrast": {"rule": "contrast"},
    }
    transfer = {"labels": [20, "all"]}
    against = {"by all": "all"}
    words = {"contenders": contenders, "transfer": transfer, "against": against, "seeds": 3}
    plan = read_plan(write_plan(two, **words))
    stock = look(fill(two / "cache", find_labels(plan.brains), 2, Vit3dConfig()))
    random, cells = np.random.default_rng(0), []
    for contender in plan.contenders:
        for seed, at in itertools.product(range(contender.seeds), plan.rows_of(contender)):
            task = make_task(plan, stock.labels, stock.reach, at, "b", seed)
            scores = random.random(len(task.test))
            auc = roc_auc_score(stock.labels.labels[task.test], scores)
            words = {
                "protocol": "transfer",
                "group": "b",
                "backbone": "",
                "seen": "",
                "rate_by": "",
                "device": "",
            }
            zeros = dict.fromkeys(set(Row.__dataclass_fields__) - set(words), 0)
            known = {"contender": contender.name, "seed": seed, "auc": auc, "budget": at[1]}
            cells.append((Row(**(zeros | words | known)), task, scores))
    auc = {(row.contender, row.budget, row.seed): row.auc for row, _, _ in cells}
    all_of_them = [e for e in effects(cells, stock, plan) if e.measure == "auc"]
    found = {(e.contender, e.budget, e.contender_budget): e for e in all_of_them}
    assert list(found) == [
        *(("one seed", 20, 20), ("by all", 20, ALL), ("contrast", 20, 20)),
        *(("one seed", ALL, ALL), ("by all", ALL, ALL), ("contrast", ALL, ALL)),
    ]
    ours = {n: [auc["reference", n, seed] for seed in range(3)] for n in (20, ALL)}
    theirs = [auc["by all", ALL, seed] for seed in range(2)]
    for key, seeds, expected in (
        (("one seed", 20, 20), 1, ours[20][0] - auc["one seed", 20, 0]),
        (("contrast", 20, 20), 3, np.mean(ours[20]) - auc["contrast", 20, 0]),
        (("by all", 20, ALL), 2, np.mean(ours[20]) - np.mean(theirs)),
        (("by all", ALL, ALL), 2, np.mean(ours[ALL][:2]) - np.mean(theirs)),
    ):
        assert found[key].seeds == seeds
        assert found[key].difference == pytest.approx(expected)
        assert found[key].low < found[key].difference < found[key].high
    page = render(plan, [row for row, _, _ in cells], list(found.values()), [], [])
    assert "by all, all labels" in page
    # What a rule says is the same at each budget.
    ruled = effects(cells, stock, replace(plan, reference="contrast"))
    assert all(e.contender_budget == e.budget for e in ruled)


def test_a_forest_learns_from_ten_labels() -> None:
    """Leaves of five would leave it nothing to split."""
    draw = np.random.default_rng(0)
    labels = np.arange(110) % 2
    features = (draw.normal(size=(110, 20)) + 2 * labels[:, None]).astype(np.float32)
    scores = forest_scores(features[:10], labels[:10], features[10:], seed=0)
    assert roc_auc_score(labels[10:], scores) > 0.9


def test_times_say_of_which_device_and_of_how_many_labels(tmp_path: Path) -> None:
    """What takes part in few rows has the time of the last of these, by name."""
    trained = {"backbone": "scratch:vit-nano", "train": {"freeze": False}}
    contenders = {
        "both": trained,
        "neither": {"backbone": "scratch:vit-nano", "transfer": [20]},
        "all alone": {**trained, "backbone": "resnet18", "transfer": ["all"]},
        "frozen": {"backbone": "scratch:vit-nano"},
        "on a GPU": {"backbone": "scratch:vit-nano"},
    }
    plan = read_plan(write_plan(tmp_path, contenders=contenders, transfer={"labels": [20, "all"]}))
    texts = {"protocol": "transfer", "backbone": "", "seen": "", "rate_by": ""}
    zeros = dict.fromkeys(Row.__dataclass_fields__, 0)

    def row(contender: str, budget: int, seconds: float, **more: Any) -> Row:
        told = {"contender": contender, "budget": budget, "train_seconds": seconds}
        return Row(**zeros | texts | {"device": "cpu", "group": "b", "labels": 20} | told | more)

    done = [
        row("both", 20, 1.0, rate=3.0),
        row("both", 20, 1.0, rate=0.3, group="a"),
        row("both", ALL, 3.0, rate=1.0),
        row("all alone", ALL, 5.0, rate=1.0),
        row("frozen", 20, 0.5),
        row("on a GPU", 20, 0.5, device="cuda"),
    ]
    costs = {name: Cost(10, 1.0, 2.0, "cpu", 2) for name in contenders}
    costs |= {name: Cost(10, 1.0, 2.0, "cpu", 2, copies=4) for name in ("frozen", "on a GPU")}
    rates, table = to_markdown(plan, done, costs).split("\n\n")[-2:]
    assert rates.splitlines() == [
        "| times the usual learning rate: a, b | transfer 20 | transfer all |",
        "| --- | --- | --- |",
        "| both | 0.3 3 | – 1 |",
        "| all alone | – – | – 1 |",
    ]
    assert "| ms a cuboid (cpu, threads: 2) | s to train, transfer 20 |" in table
    assert "| both | 10 | 1.00 | 2.00 | 1.0 | 0.0 |" in table
    assert "| neither | 10 | 1.00 | 2.00 |  |  |" in table
    assert "| all alone | 10 | 1.00 | 2.00 | 5.0 (transfer all) | 0.0 |" in table
    # It is asked about twenty labels and three copies of each before.
    assert "| frozen | 10 | 1.00 | 2.00 | 0.7 | 0.0 |" in table
    assert "| on a GPU | 10 | 1.00 | 2.00 | 0.5 (cuda) | 0.0 (cuda) |" in table


def scored(contender: str, group: str, seed: int, auc: float) -> Row:
    told = {"protocol": "transfer", "budget": 20, "device": "cpu", "backbone": "", "seen": ""}
    rest = dict.fromkeys(Row.__dataclass_fields__, 0) | told | {"rate_by": "", "train_seconds": 3.0}
    return Row(**{**rest, "contender": contender, "group": group, "seed": seed, "auc": auc})


def test_a_table_says_how_many_seeds_its_means_are_of(tmp_path: Path) -> None:
    """What is left out of one group is out of the mean, with what that seed has in others."""
    plan = read_plan(write_plan(tmp_path, seeds=2, transfer={"labels": [20, 40]}))
    whole = [scored("untrained", group, seed, 0.9) for group in "ab" for seed in (0, 1)]
    more = [replace(row, budget=40, auc=0.7 + 0.1 * row.seed) for row in whole]
    text = to_markdown(plan, [*whole, *more[:3]], {}, ["Left out: untrained, b"])
    assert "| untrained | 0.900 | 0.700 | 1–2 |" in text
    assert "| contrast |  |  | 0 |" in text
    assert text.endswith("\n\n- Left out: untrained, b\n")


def marks(panel: Axes) -> dict[str, tuple[Any, Any, str]]:
    """What is marked in a picture, and how far, by name: where, and whether it is full."""
    found = {}
    for bars in panel.containers:
        line = bars.lines[0]
        found[bars.get_label()] = (line.get_xdata(), line.get_ydata(), line.get_fillstyle())
    return found


def test_what_has_fewer_seeds_than_others_is_hollow(tmp_path: Path) -> None:
    contenders = {
        "all": {"backbone": "scratch:vit-nano"},
        "one": {"backbone": "resnet18", "seeds": 1},
    }
    plan = read_plan(write_plan(tmp_path, contenders=contenders, seeds=2))
    done = [scored("all", "b", 0, 0.8), scored("all", "b", 1, 0.9), scored("one", "b", 0, 0.7)]
    drawn = draw(plan, done, {name: Cost(2_000_000, 1.0, 2.0, "cpu", 1) for name in contenders})
    for name in ("learning_curves", "group_curves", "cost"):
        shown = marks(drawn[name].figure.axes[0])
        assert {who: fill for who, (_, _, fill) in shown.items()} == {"all": "full", "one": "none"}


def test_pictures_have_a_scale_of_what_learns_and_all_costs(tmp_path: Path) -> None:
    """A rule at .1 does not press together what learns, at .8 and 1."""
    plan = read_plan(write_plan(tmp_path))
    told = [("contrast", 0, 0.1), ("untrained", 0, 0.8), ("untrained", 1, 1.0)]
    done = [scored(name, "b", seed, auc) for name, seed, auc in told]
    drawn = draw(plan, done, {"untrained": Cost(2_000_000, 1.0, 2.0, "cpu", 1)})
    for name in ("learning_curves", "group_curves"):
        low, high = drawn[name].figure.axes[0].get_ylim()
        assert 0.7 < low < 0.8
        assert 1.0 < high < 1.01
    quality = drawn["cost"].figure.axes
    assert [list(marks(panel)["untrained"][0]) for panel in quality] == [[2.0], [1.0], [2.0], [3.0]]
    assert "contrast" in [line.get_label() for line in quality[0].lines]


def test_costs_show_what_took_part_elsewhere_by_name(tmp_path: Path) -> None:
    """By other labels of the same protocol; those of another are no measure of it."""
    contenders = {
        "untrained": {"backbone": "scratch:vit-nano", "transfer": []},
        "few": {"backbone": "resnet18", "own": [20], "transfer": []},
        "contrast": {"rule": "contrast", "transfer": []},
        "large": {"backbone": "resnet50", "own": ["all"]},
        "elsewhere": {"backbone": "resnet50", "own": []},
    }
    asked = {"own": {"labels": [20, "all"]}, "transfer": {"labels": [20]}}
    plan = read_plan(write_plan(tmp_path, contenders=contenders, **asked))
    own = [
        replace(scored(name, "b", 0, auc), protocol="own", budget=budget)
        for name, budget, auc in (("untrained", 20, 0.8), ("few", 20, 0.7), ("large", ALL, 0.9))
    ]
    done = [*own, scored("large", "b", 0, 0.2), scored("elsewhere", "b", 0, 0.1)]
    costs = {name: Cost(2_000_000, 1.0, 2.0, "cpu", 1) for name in contenders}
    panel = draw(plan, done, costs)["cost"].figure.axes[0]
    shown = {name: list(mark[1]) for name, mark in marks(panel).items()}
    assert shown == {"untrained": [0.8], "few": [0.7], "large (own all)": [0.9]}
    assert panel.get_ylabel() == "AUC, own, 20 labels, or as named"


def test_curves_show_how_far_seeds_and_groups_lie_apart(tmp_path: Path) -> None:
    """Of seeds that were tried on all groups, as the marks are, which the third was not."""
    told = [("a", 0, 0.6), ("a", 1, 0.8), ("b", 0, 0.9), ("b", 1, 0.9), ("a", 2, 0.2)]
    done = [scored("untrained", group, seed, auc) for group, seed, auc in told]
    figure = draw(read_plan(write_plan(tmp_path)), done, {})["learning_curves"].figure
    spans = [
        segment[:, 1].tolist()
        for lines in figure.axes[0].collections
        if isinstance(lines, LineCollection)
        for segment in lines.get_segments()
    ]
    assert sorted(spans) == [pytest.approx([0.7, 0.9]), pytest.approx([0.75, 0.85])]


@pytest.mark.parametrize(("train", "copies"), [({}, 4), ({"freeze": False}, 0)])
def test_only_a_frozen_backbone_is_asked_before_training(
    train: dict[str, Any], copies: int
) -> None:
    contender = Contender("x", None, {"": "scratch:vit-nano"}, train, 1, {}, (1.0,), 2)
    cost = measure_cost(contender.settings("scratch:vit-nano", 0))
    assert (cost.copies, cost.threads) == (copies, 1)


def test_a_network_that_takes_other_cuboids_is_refused(two: Path, command) -> None:
    from cubeclf_core.backbones import build_backbone, save_backbone

    other = Vit3dConfig(size="nano", channels=2, voxel_size_um=(5.0, 2.0, 2.0))
    save_backbone(two / "other.safetensors", build_backbone(other, 0), {})
    contenders = {
        "untrained": {"backbone": "scratch:vit-nano"},
        "other": {"backbone": "other.safetensors"},
    }
    outcome = command(
        "cubeclf-compare", write_plan(two, contenders=contenders), "--out", two / "out"
    )
    assert outcome.code == 2
    assert "take other cuboids: ((20, 50, 50), (5.0, 1.0, 1.0)) and" in outcome.err
    assert not (two / "out").exists()


def test_what_is_trained_step_by_step() -> None:
    contender = Contender("x", None, {"": "a"}, {"freeze": False}, 1, {}, (1.0,), 2)
    assert contender.trains
    assert not Contender("x", None, {"": "a"}, {}, 1, {}, (1.0,), 2).trains
