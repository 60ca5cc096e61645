from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from benchmarks.learning.blocks import (
    MICROGLIA,
    SEEN,
    UNLABELLED,
    VOXEL_SIZE_UM,
    Block,
    count_opening,
    data_folder,
    open_block,
    read_block,
    write_brains_file,
)
from benchmarks.learning.config import DEFAULT, FULL, LABELLED, QUICK, LearningConfig
from benchmarks.learning.contenders import Frozen, principal_components
from benchmarks.learning.finetuned import Finetuned
from benchmarks.learning.measure import measure
from benchmarks.learning.protocols import Result, make_tasks, summarise, try_out
from benchmarks.learning.recipes import RECIPES
from benchmarks.learning.report import default_learns, findings, tables
from benchmarks.learning.trainings import Training, carry_out, network_of, plan, settings_of
from benchmarks.pretraining import main
from cubeclf_core.backbones import build_backbone, load_backbone, save_backbone
from cubeclf_core.cells import Cells, read_cells, write_cells
from cubeclf_core.cli import to_yaml
from cubeclf_core.errors import InputError, RunFailed
from cubeclf_core.trained import fresh_classifier
from finetune.comparing.forest import radial_means
from finetune.examples import Features
from pretrain.config import PretrainConfig

ROOT = Path(__file__).parents[2]
SHAPE = (20, 200, 64)  # z y x: as long as a real block along y, where it is halved
TINY = replace(
    QUICK,
    labels=24,
    draws=1,
    untrained_seeds=1,
    unlabelled=48,
    speed=replace(QUICK.speed, rounds=1, steps=1),
)


def write_block(folder: Path, name: str, n: int = 60) -> None:
    """Write a noisy block with round cells, and candidates on nothing."""
    random = np.random.default_rng(int(name))
    positions = random.integers(0, SHAPE, (n, 3)).astype(float)
    types = np.where(np.arange(n) % 3 == 0, 2, 1)
    image = random.normal(300, 10, SHAPE)
    away = [np.arange(s)[:, None] - p for s, p in zip(SHAPE, positions.T, strict=True)]
    z, y, x = (np.exp(-((a * um / 5) ** 2)) for a, um in zip(away, VOXEL_SIZE_UM, strict=True))
    image += 200 * np.einsum("zn,yn,xn->zyx", z[:, types == 2], y[:, types == 2], x[:, types == 2])
    tifffile.imwrite(folder / f"{name}.tif", image.astype(np.uint16))
    write_cells(folder / f"{name}.xml", Cells(positions, types))


@pytest.fixture(scope="session")
def blocks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for the real blocks, in their layout."""
    root = tmp_path_factory.mktemp("data")
    for kind in ("cfos", "microglia"):
        (root / kind).mkdir()
    for name in (*LABELLED, *UNLABELLED):
        folder = root / ("microglia" if name in MICROGLIA else "cfos")
        write_block(folder, name)
        if name in UNLABELLED:
            (folder / f"{name}.xml").unlink()
    return root


@pytest.fixture
def simulated_data(blocks_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUBECLF_REAL_DATA", str(blocks_folder))
    return data_folder()


def random_blocks(n: int = 400, names: tuple[str, ...] = LABELLED) -> dict[str, Block]:
    made = {}
    for name in names:
        random = np.random.default_rng(int(name))
        positions = random.uniform(0, 200, (n, 3))
        labels = (random.random(n) < 0.3).astype(np.int64)
        made[name] = Block(name, positions, labels, torch.zeros(n, 1, 1, 1, 1), np.zeros(n))
    return made


def test_no_voxel_is_both_learned_from_and_tested_on() -> None:
    blocks = random_blocks()
    tasks = make_tasks(blocks, labels=100, draws=5)
    own = [t for t in tasks if t.protocol == "own"]
    transfer = [t for t in tasks if t.protocol == "transfer"]
    assert len(own) == 15
    assert len(transfer) == 3
    for task in own:
        ((name, learned),) = task.learn.items()
        assert name == task.block
        assert len(set(learned.tolist())) == 100
        y = blocks[name].positions[:, 1]
        assert (y[task.test].min() - y[learned].max()) * VOXEL_SIZE_UM[1] > 50
    draws = {tuple(task.learn["969"]) for task in own if task.block == "969"}
    assert len(draws) == 5
    for task in transfer:
        assert set(task.learn) == set(LABELLED) - {task.block}
        assert len(task.test) == 400


def test_backbone_has_seen_ones_own_brain_and_no_other_that_is_tested() -> None:
    for task in make_tasks(random_blocks(), labels=100, draws=1):
        assert (task.block in SEEN[task.seen]) == (task.protocol == "own")


def test_closed_block_stays_closed() -> None:
    tasks = make_tasks(random_blocks(names=("695", "753")), labels=100, draws=1)
    assert {task.block for task in tasks} == {"695", "753"}
    assert not any("969" in task.learn for task in tasks)


def test_labels_of_one_class_are_refused() -> None:
    blocks = random_blocks()
    blocks["753"].labels[:] = 0
    with pytest.raises(InputError, match="753"):
        make_tasks(blocks, labels=100, draws=1)


def test_openings_are_counted(tmp_path: Path) -> None:
    assert count_opening(tmp_path, ("695", "753"), ["mae"]) == 0
    assert count_opening(tmp_path, LABELLED, ["mae"]) == 1
    assert count_opening(tmp_path, LABELLED, ["dino"]) == 2
    assert count_opening(tmp_path, ("695", "753"), ["dino"]) == 2
    lines = (tmp_path / "opened_969.jsonl").read_text().splitlines()
    assert [json.loads(line)["objectives"] for line in lines] == [["mae"], ["dino"]]


def test_pretraining_is_told_no_types(simulated_data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    other = tmp_path / "other"
    for folder in (first, second, other / "cfos"):
        folder.mkdir(parents=True)
    for name in SEEN["A"][:2]:
        cells = read_cells(simulated_data / "cfos" / f"{name}.xml")
        write_cells(other / "cfos" / f"{name}.xml", Cells(cells.positions, 3 - cells.types))
    write_brains_file(simulated_data, "A", first)
    write_brains_file(other, "A", second)
    for name in SEEN["A"][:2]:
        told = first / f"{name}_candidates.xml"
        assert set(read_cells(told).types) == {1}
        assert told.read_bytes() == (second / f"{name}_candidates.xml").read_bytes()


def test_all_recipes_have_one_network() -> None:
    """But for the projection, which masked autoencoding would leave as it is."""
    assert set(RECIPES) == {"simclr", "dino", "dinov2", "mae"}
    for effort in (DEFAULT, FULL, QUICK):
        networks = {method: network_of(settings_of(method, effort)) for method in RECIPES}
        assert {name for name, n in networks.items() if not n.projection} == {"mae"}
        assert len({replace(network, projection=0) for network in networks.values()}) == 1


def test_plan_holds_every_backbone_and_seed(tmp_path: Path) -> None:
    files = {seen: tmp_path / f"{seen}.yaml" for seen in SEEN}
    trainings = plan(("mae", "dino"), files, tmp_path, FULL)
    assert len({t.name for t in trainings}) == len(trainings) == 2 * 2 * FULL.seeds
    for training in trainings:
        assert training.config.brains == (str(files[training.seen]),)
        steps = FULL.steps_scale * RECIPES[training.method]["steps"]
        assert training.config.steps == round(steps)


def test_summary_averages_draws_then_blocks_then_seeds() -> None:
    def result(seed: int, block: str, draw: int, auc: float) -> Result:
        return Result("own", "mae", seed, block, draw, {"auc": auc, "ap_less_prevalence": 0.0})

    figures = summarise(
        [
            *(result(0, "695", i, auc) for i, auc in enumerate((0.5, 0.6, 0.7))),
            result(0, "753", 0, 0.8),
            result(1, "695", 0, 0.9),
            result(1, "753", 0, 0.9),
        ]
    )
    expected = {"": 0.8, ".min": 0.7, ".max": 0.9}
    for end, value in expected.items():
        assert figures[f"own.mae.auc{end}"] == pytest.approx(value)
    assert figures["own.mae.695.auc"] == pytest.approx(0.75)
    assert figures["own.mae.753.auc"] == pytest.approx(0.85)


def test_probes_find_what_features_hold_and_nothing_else() -> None:
    blocks = random_blocks(names=("695", "753"))
    tasks = make_tasks(blocks, labels=100, draws=1)
    torch.manual_seed(0)
    noise = {name: torch.randn(len(block.labels), 12) for name, block in blocks.items()}
    told = {name: noise[name].clone() for name in blocks}
    for name, block in blocks.items():
        told[name][:, 3] += 4 * torch.from_numpy(block.labels)
    for features, low, high in ((told, 0.9, 1.0), (noise, 0.35, 0.65)):
        frozen = Frozen(blocks, dict.fromkeys(SEEN, features))
        scorers = {"linear": frozen.linear, "knn": frozen.knn}
        scorers["forest"] = partial(frozen.forest, seed=0)
        for name, scorer in scorers.items():
            figures = summarise(try_out(name, scorer, tasks, blocks))
            for row in ("own", "transfer"):
                assert low <= figures[f"{row}.{name}.auc"] <= high, (row, name)


def test_a_head_on_a_frozen_network_finds_what_that_says_and_nothing_else() -> None:
    blocks = random_blocks(names=("695", "753"))
    tasks = make_tasks(blocks, labels=100, draws=1)
    make = partial(build_backbone, network_of(settings_of("simclr", TINY)), 0)
    width = len(fresh_classifier(make()).head.mean)
    torch.manual_seed(0)
    noise = {name: torch.randn(4, len(block.labels), width) for name, block in blocks.items()}
    told = {name: copies.clone() for name, copies in noise.items()}
    for name, block in blocks.items():
        told[name][:, :, 3] += 4 * torch.from_numpy(block.labels)
    for said, low, high in ((told, 0.9, 1.0), (noise, 0.35, 0.65)):
        known = {seen: {n: Features(copies) for n, copies in said.items()} for seen in SEEN}
        head = Finetuned(blocks, dict.fromkeys(SEEN, make), 0, {}, known=known)
        figures = summarise(try_out("head", head, tasks, blocks))
        for row in ("own", "transfer"):
            assert low <= figures[f"{row}.head.auc"] <= high, row


def test_radial_means_see_distance_and_no_direction() -> None:
    size = (5.0, 1.0, 1.0)
    z, y, x = torch.meshgrid(*(torch.arange(n) - n // 2 for n in (21, 51, 51)), indexing="ij")
    distance = ((5 * z) ** 2 + y**2 + x**2).sqrt()
    means = radial_means(distance[None, None], size)
    assert means.shape == (1, 20)
    assert (means.diff() > 0).all()
    noise = torch.rand(2, 1, 21, 51, 51)
    torch.testing.assert_close(radial_means(noise, size), radial_means(noise.flip(2, 3, 4), size))


def test_principal_components_are_those_of_the_unlabelled() -> None:
    torch.manual_seed(0)
    patterns = torch.randn(2, 1, 4, 6, 6)
    weights = torch.randn(50, 2)
    unlabelled = torch.einsum("nk,kczyx->nczyx", weights, patterns)
    block = replace(random_blocks(50)["695"], cuboids=3 * unlabelled)  # gain
    found = principal_components(unlabelled, {"695": block})["695"]
    assert found.shape == (50, 40)
    spread = found.std(0)
    assert spread[:2].min() > 1
    assert spread[3:].max() < 1e-3  # a third comes of normalising


def test_blocks_are_read_whole_or_in_part(simulated_data: Path, tmp_path: Path) -> None:
    network = network_of(settings_of("mae", TINY))
    brain = open_block(simulated_data, "695", tmp_path)
    whole, part = (read_block(brain, network, most) for most in (None, 20))
    assert whole.cuboids.shape == (60, 1, *network.cuboid_shape)
    assert len(part.labels) == 20
    where = [np.flatnonzero((whole.positions == p).all(1))[0] for p in part.positions]
    np.testing.assert_array_equal(part.labels, whole.labels[where])
    np.testing.assert_array_equal(part.crowding, whole.crowding[where])
    torch.testing.assert_close(part.cuboids, whole.cuboids[where])
    middle = whole.cuboids[:, 0, 10, 25, 25]
    assert middle[whole.labels == 1].min() > middle[whole.labels == 0].median()


def test_missing_data_is_bad_input_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUBECLF_REAL_DATA", str(tmp_path))
    assert main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "CUBECLF_REAL_DATA" in line


@pytest.mark.parametrize(
    "flags",
    [
        ("--blocks", "695"),
        ("--blocks", "695", "1230"),
        ("--blocks", "695", "695"),
        ("--methods", "moco"),
        ("--seeds", "0"),
        ("--steps-scale", "0"),
    ],
)
def test_bad_settings_are_two(flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 2
    assert flags[0] in capsys.readouterr().err


def test_help_answers_without_torch() -> None:
    code = (
        "import sys; from benchmarks.pretraining import parse\n"
        "try: parse(['--help'])\nexcept SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'sklearn', 'zarr'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--blocks" in done.stdout


@pytest.mark.slow
def test_failed_pretraining_says_why(tmp_path: Path) -> None:
    config = PretrainConfig(("any",), out=tmp_path / "runs" / "mae")
    with pytest.raises(RunFailed, match=r"mae ended with exit code 2: error: any does not exist"):
        carry_out([Training("mae", "A", config)], reuse=False, side_by_side=1)


def pretend(training: Training) -> None:
    """Leave what a pretraining would, with random weights."""
    backbone = build_backbone(network_of(settings_of(training.method, TINY)), 7)
    save_backbone(training.out / "exported" / "backbone.safetensors", backbone, {})
    kept = replace(training.config, overwrite=False)
    (training.out / "config.yaml").write_text(to_yaml(kept), encoding="utf-8")
    training.end(60.0)


@pytest.mark.slow
def test_all_figures_are_there(
    simulated_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "out" / "figures.json", tmp_path / "made"
    folder.mkdir()
    files = {seen: write_brains_file(simulated_data, seen, folder) for seen in SEEN}
    for training in plan(("mae",), files, folder, TINY):
        pretend(training)
    config = LearningConfig(methods=("mae",), json=file, folder=folder, reuse=True)
    measure(config, TINY)
    figures = json.loads(file.read_text("utf-8"))
    names = ("mae", "untrained", "untrained_pooled", "pca", "forest", "contrast", "density")
    for row in ("own", "transfer"):
        for name in names:
            keys = [f"{row}.{name}.{block}auc" for block in ("", "695.", "753.", "969.")]
            keys += [f"{row}.{name}.auc.{end}" for end in ("min", "max")]
            assert all(0 <= figures[key] <= 1 for key in keys)
            assert math.isfinite(figures[f"{row}.{name}.ap_less_prevalence"])
        assert figures[f"{row}.contrast.auc"] > 0.9  # bright cells on nothing
        assert f"{row}_knn.mae.auc" in figures
    assert {"own_finetuned.mae.auc", "own_finetuned.untrained.auc"} <= set(figures)
    assert all(figures[k] > 0 for k in ("step_share", "mae_saving", "augmentation_share"))
    assert figures["opened_969"] == 1
    assert figures["default"] in RECIPES
    assert figures["mae.cuboids"] == 4
    assert figures["mae.seconds"] == 60
    assert all(isinstance(value, str | int | float) for value in figures.values())
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert tables(figures, config.blocks) in said
    assert all(line in said for line in findings(figures))
    assert "mae, own: worst seed" in said


def test_the_default_has_to_beat_the_untrained_network_with_its_worst_seed() -> None:
    others = ("untrained", "untrained_pooled", "pca")
    bars = {f"{row}.{name}.auc.max": 0.9 for row in ("own", "transfer") for name in others}
    worst = {"own.simclr.auc.min": 0.91, "transfer.simclr.auc.min": 0.91}
    figures = {"default": "simclr", **bars, **worst}
    assert default_learns(figures)
    for key in (*bars, *worst):
        value = 0.92 if key in bars else 0.89
        assert not default_learns({**figures, key: value}), key


def test_only_the_same_settings_and_brains_are_taken_as_they_are(tmp_path: Path) -> None:
    files = {seen: tmp_path / f"{seen}.yaml" for seen in SEEN}
    for file in files.values():
        file.write_text("- name: a\n", encoding="utf-8")
    same = plan(("mae",), files, tmp_path, TINY)
    for training in same:
        assert not training.done()
        pretend(training)
    assert all(training.done() for training in same)
    longer = plan(("mae",), files, tmp_path, replace(TINY, steps_scale=0.01))
    assert not any(training.done() for training in longer)
    for file in files.values():
        file.write_text("- name: a\n  weight: 3\n", encoding="utf-8")
    assert not any(training.done() for training in same)


@pytest.mark.slow
def test_pretrainings_are_those_of_the_command(simulated_data: Path, tmp_path: Path) -> None:
    files = {seen: write_brains_file(simulated_data, seen, tmp_path) for seen in SEEN}
    trainings = plan(tuple(RECIPES), files, tmp_path, TINY)
    carry_out(trainings, reuse=False, side_by_side=2)
    for training in trainings:
        assert training.done()
        assert training.seconds > 0
        backbone, told = load_backbone(str(training.out))
        assert told["objective"] == training.method
        untrained = build_backbone(backbone.config, training.config.seed)
        moved = (backbone.patch_embed.proj.weight - untrained.patch_embed.proj.weight).abs().max()
        assert moved > 0
    before = trainings[0].seconds
    carry_out(trainings, reuse=True, side_by_side=1)
    assert trainings[0].seconds == before


@pytest.mark.slow
def test_command_runs_on_real_blocks(real_data: Path, tmp_path: Path) -> None:
    file, folder = tmp_path / "figures.json", tmp_path / "runs"
    flags = ["--quick", "--blocks", "695", "753", "--json", str(file), "--folder", str(folder)]
    assert main(flags) == 0
    figures = json.loads(file.read_text("utf-8"))
    for name in (*RECIPES, "untrained", "untrained_pooled", "pca", "forest", "contrast", "density"):
        assert 0 < figures[f"own.{name}.auc"] < 1
        assert 0 < figures[f"transfer.{name}.auc"] < 1
    assert figures["opened_969"] == 0
    assert not any("969" in key for key in figures if key != "opened_969")
    assert figures["own.untrained.auc"] > 0.8
