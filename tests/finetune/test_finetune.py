from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from cubeclf_core import load_classifier
from cubeclf_core.backbones import build_backbone, load_backbone, save_backbone
from cubeclf_core.cells import read_cells, write_cells
from cubeclf_core.checkpoint import Header, load_checkpoint, save_checkpoint
from cubeclf_core.errors import CellsError, CheckpointError, InputError
from cubeclf_core.trained import save_classifier
from cubeclf_core.vit import Vit3dConfig
from finetune.config import FinetuneConfig
from finetune.cubes import read_cubes
from finetune.labels import draw
from finetune.starting import load_start, untrained_classifier

NANO = Vit3dConfig(size="nano", channels=1)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 90), st.integers(0, 5))
def test_drawn_labels_keep_the_proportion(cells: int, others: int, n: int, seed: int) -> None:
    labels = np.array([1] * cells + [0] * others)
    index = draw(labels, n, seed)
    assert len(set(index.tolist())) == len(index) == min(n, len(labels))
    assert 0 < labels[index].sum() < len(index)
    assert abs(labels[index].sum() - len(index) * labels.mean()) <= 1


def write_cubes(folder: Path, pattern: str, n: int, seed: int, shape=(20, 50, 50)) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for i in range(n):
        for channel in (0, 1):
            name = pattern.format(z=i, y=2 * i, x=3, c=channel)
            tifffile.imwrite(folder / name, random.integers(0, 999, shape).astype(np.uint16))


def write_training_yaml(file: Path, **changes) -> Path:
    common = {"signal_channel": 0, "bg_channel": 1, "cell_def": ""} | changes
    data = [
        {"cube_dir": "cells", "type": "cell"} | common,
        {"cube_dir": "others", "type": "no_cell"} | common,
    ]
    file.write_text(yaml.safe_dump({"data": data}))
    return file


CELLFINDER, BRAINGLOBE = "pCellz{z}y{y}x{x}Ch{c}.tif", "pCellx{x}_y{y}_z{z}Ch{c}.tif"


@pytest.mark.parametrize("pattern", [CELLFINDER, BRAINGLOBE])
def test_cubes_are_read_from_the_yamls_folder_or_this_one(pattern, tmp_path, monkeypatch) -> None:
    write_cubes(tmp_path / "data" / "cells", pattern, 3, 0)
    write_cubes(tmp_path / "others", pattern, 2, 1)
    file = write_training_yaml(tmp_path / "data" / "training.yaml")
    with pytest.raises(InputError, match="neither"):
        read_cubes(file, Vit3dConfig())
    monkeypatch.chdir(tmp_path)
    both = read_cubes(file, Vit3dConfig())
    assert both.labels.tolist() == [1, 1, 1, 0, 0]
    assert both.cuboids.shape == (5, 2, 20, 50, 50)
    name = pattern.format(z=2, y=4, x=3, c=1)
    np.testing.assert_array_equal(
        both.cuboids[2, 1], tifffile.imread(tmp_path / "data/cells" / name)
    )
    signal = read_cubes(file, Vit3dConfig(channels=1))
    assert torch.equal(signal.cuboids, both.cuboids[:, :1])


def test_cubes_without_background_get_a_blank_channel(tmp_path: Path) -> None:
    write_cubes(tmp_path / "cells", CELLFINDER, 1, 0)
    write_cubes(tmp_path / "others", CELLFINDER, 1, 1)
    data = read_cubes(write_training_yaml(tmp_path / "t.yaml", bg_channel=-1), Vit3dConfig())
    assert data.cuboids[:, 0].any()
    assert not data.cuboids[:, 1].any()


def test_cubes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_cubes(tmp_path / "cells", CELLFINDER, 1, 0, shape=(20, 40, 40))
    write_cubes(tmp_path / "others", CELLFINDER, 1, 1)
    file = write_training_yaml(tmp_path / "t.yaml")
    with pytest.raises(CellsError, match=r"20, 40, 40"):
        read_cubes(file, Vit3dConfig())
    with pytest.raises(CellsError, match="lacks channel 2"):
        read_cubes(write_training_yaml(tmp_path / "t.yaml", bg_channel=2), Vit3dConfig())
    (tmp_path / "t.yaml").write_text("data: nothing")
    with pytest.raises(InputError, match="training YAML"):
        read_cubes(file, Vit3dConfig())


def test_real_cubes_train_a_classifier(real_data: Path, tmp_path: Path, command) -> None:
    file = tmp_path / "training.yaml"
    write_training_yaml(file)
    entries = yaml.safe_load(file.read_text())["data"]
    for entry, folder in zip(entries, ("cells", "non_cells"), strict=True):
        entry["cube_dir"] = str(real_data / "cubes" / folder)
    file.write_text(yaml.safe_dump({"data": entries}))
    flags = ("--cubes", file, "--out", tmp_path / "run")
    outcome = command("cubeclf-finetune", "--backbone", "scratch:vit-nano", *flags)
    assert outcome.code == 0, outcome.err
    cubes = read_cubes(file, Vit3dConfig())
    probability = load_classifier(tmp_path / "run", exact=True).predict(cubes.cuboids)[:, 1]
    assert probability[cubes.labels == 1].min() > probability[cubes.labels == 0].max()


def test_temperature_and_threshold_go_along(
    simulated, tmp_path: Path, command, blobs, fitted
) -> None:
    classifier = fitted(channels=2)
    cuboids = blobs(5, 3, channels=2).cuboids
    with torch.no_grad():
        plain = classifier(cuboids)
        classifier.head.temperature.fill_(2.5)
    told = {"threshold": 0.9}
    save_classifier(tmp_path / "c.safetensors", classifier, told)
    export = ("cubeclf-export", tmp_path / "c.safetensors", "--out", tmp_path / "c.pt2")
    assert command(*export).code == 0
    for path in (tmp_path / "c.safetensors", tmp_path / "c.pt2"):
        loaded = load_classifier(path, exact=True)
        assert loaded.threshold == 0.9
        np.testing.assert_allclose(
            loaded.predict(cuboids), (plain / 2.5).double().softmax(1).numpy(), atol=1e-5
        )
    brain, out = simulated(0), tmp_path / "out"
    words = ("--classifier", tmp_path / "c.pt2", "--cells", brain.cells, "--out", out)
    assert command("cubeclf-classify", brain.volume, *words).code == 0
    with (out / "candidates.csv").open() as file:
        for row in csv.DictReader(file):
            assert (float(row["probability"]) >= 0.9) == (row["type"] == "2")


def test_checkpoints_of_another_kind_are_refused(tmp_path: Path) -> None:
    backbone = build_backbone(NANO, seed=0)
    save_backbone(tmp_path / "backbone.safetensors", backbone, {})
    with pytest.raises(CheckpointError, match="holds a backbone, expected a classifier"):
        load_classifier(tmp_path / "backbone.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not written by cubeclf"):
        load_backbone(str(tmp_path / "foreign.safetensors"))
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 100)
    with pytest.raises(CheckpointError, match="no safetensors"):
        load_backbone(str(tmp_path / "junk.safetensors"))
    with pytest.raises(CheckpointError, match="expected a run's folder"):
        load_backbone(str(tmp_path))


def test_checkpoint_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    header = Header(kind="backbone", backbone={}, format_version=99)
    save_checkpoint(tmp_path / "b.safetensors", header, {"x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="newer"):
        load_checkpoint(tmp_path / "b.safetensors", "backbone")


def test_weights_for_another_normalisation_are_refused(tmp_path: Path) -> None:
    header = Header(kind="backbone", backbone={}, normalisation="cuboid")
    save_checkpoint(tmp_path / "b.safetensors", header, {"x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"normalised by 'cuboid'; this .* 'contrast'"):
        load_checkpoint(tmp_path / "b.safetensors", "backbone")


def test_weights_are_for_whoever_may_read_other_new_files(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save_checkpoint(tmp_path / "b.safetensors", Header(kind="backbone", backbone={}), {})
    usual, found = ((tmp_path / name).stat().st_mode for name in ("other", "b.safetensors"))
    assert found == usual


def test_a_header_tells_what_the_weights_are(tmp_path: Path, fitted) -> None:
    save_classifier(tmp_path / "c.safetensors", fitted(), {"labels": 36})
    header, _ = load_checkpoint(tmp_path / "c.safetensors", "classifier")
    assert header.backbone["voxel_size_um"] == [5.0, 1.0, 1.0]
    assert header.normalisation == "contrast"
    assert header.head == {"kind": "linear", "classes": ["no cell", "cell"], "hidden": 64}
    assert set(header.provenance["packages"]) >= {"cubeclf", "torch"}


def test_classify_keeps_order_flags_the_border_and_obeys_the_threshold(
    simulated, tmp_path: Path, command, fitted
) -> None:
    brain = simulated(0)
    save_classifier(tmp_path / "c.safetensors", fitted(channels=2), {})
    cells = read_cells(brain.cells)
    found = {}
    for threshold in (0.0, 0.5, 1.0):
        out = tmp_path / f"out{threshold}"
        flags = ("--classifier", tmp_path / "c.safetensors", "--cells", brain.cells, "--out", out)
        outcome = command("cubeclf-classify", brain.volume, *flags, "--threshold", threshold)
        assert outcome.code == 0, outcome.err
        with (out / "candidates.csv").open() as file:
            found[threshold] = list(csv.DictReader(file))
        classified = read_cells(out / "points" / "cell_classification.xml")
        assert len(classified) == len(read_cells(out / "points" / "cells.xml")) == len(cells)
        accepted = {tuple(p) for p in classified.positions[classified.types == 2].tolist()}
        assert accepted == {
            tuple(float(row[axis]) for axis in "zyx")
            for row in found[threshold]
            if row["type"] == "2"
        }
        assert (out / "figures" / "classified.png").stat().st_size > 10_000
    rows = found[0.5]
    np.testing.assert_array_equal([[float(r[a]) for a in "zyx"] for r in rows], cells.positions)
    assert {row["type"] for row in found[0.0]} == {"2"}
    assert {row["type"] for row in rows} == {"1", "2"}
    for row in rows:
        at_border = not (
            10 <= float(row["z"]) <= 30 and all(25 <= float(row[a]) <= 199 for a in "yx")
        )
        assert int(row["padded"]) == at_border
        assert (float(row["probability"]) >= 0.5) == (row["type"] == "2")


def test_finetuning_a_run_reports_the_unseen_brain(simulated, tmp_path: Path, command) -> None:
    flags = ("--brains", simulated(0).brains_file, "--test", simulated(1).brains_file)
    out = tmp_path / "run"
    command_line = ("--backbone", "scratch:vit-nano", *flags, "--labels", 60, "--out", out)
    outcome = command("cubeclf-finetune", *command_line)
    assert outcome.code == 0, outcome.err
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["labels"]["n"] == 60
    assert metrics["unseen"]
    tested = {name: scores["brains"]["brain1"] for name, scores in metrics["scores"].items()}
    assert tested["classifier"]["auc"] > 0.6
    assert 0.6 < tested["contrast"]["auc"] < 0.8
    cells = read_cells(simulated(1).cells)
    assert tested["density"]["prevalence"] == pytest.approx(cells.labels.mean())
    low, high = tested["classifier"]["intervals"]["auc"]
    assert low < tested["classifier"]["auc"] < high
    assert metrics["evaluation"]["brains"]["brain1"]["n"] == len(cells)
    page = (out / "report.html").read_text()
    assert all(word in page for word in ("brain1", "contrast", "data:image/png;base64"))
    assert 'src="http' not in page
    probability = np.concatenate(
        [part.probability for part in _scored(out, simulated(1).volume, cells)]
    )
    assert len(probability) == len(cells)
    again = tmp_path / "again"
    assert command("cubeclf-finetune", *command_line[:-1], again).code == 0
    weights = [(p / "exported" / "classifier.safetensors") for p in (out, again)]
    first, second = (load_checkpoint(path, "classifier")[1] for path in weights)
    assert all(torch.equal(first[name], second[name]) for name in first)


def _scored(run: Path, volume: Path, cells):
    from cubeclf_core.volumes import open_volume

    return load_classifier(run).classify(open_volume(volume), cells)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--unfreeze-last", 99), "4 blocks"),
        (("--lora-rank", 2, "--unfreeze-last", 1), "one of the two"),
        (("--threshold", "half"), "recall=0.99"),
        (("--labels", 3), "at least 4"),
        (("--backbone", "resnet19"), "resnet18"),
        (("--backbone", "resnet18", "--head", "attention"), "vision transformer"),
        (("--backbone", "resnet18", "--lora-rank", 2), "no attention"),
        pytest.param(
            ("--backbone", "resnet18", "--unfreeze-last", 1, "--precision", "bf16-mixed"),
            "with precision 32-true",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU"),
        ),
        (("--resume", "--overwrite"), "one of the two"),
    ],
)
def test_impossible_wishes_leave_nothing(flags, message, simulated, tmp_path, command) -> None:
    backbone = () if "--backbone" in flags else ("--backbone", "scratch:vit-nano")
    words = (*backbone, "--brains", simulated(0).brains_file, "--out", tmp_path / "run", *flags)
    outcome = command("cubeclf-finetune", *words)
    assert outcome.code == 2
    assert message in outcome.lines[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("backbone", "train"), [("resnet18", {}), ("scratch:vit-nano", {"freeze": False})]
)
def test_half_precision_is_for_what_a_cpu_gets_right(backbone: str, train: dict[str, bool]) -> None:
    config = FinetuneConfig(
        backbone=backbone,
        out=Path("unused"),
        brains=(Path("unused"),),
        precision="bf16-mixed",
        **train,
    )
    start = load_start(backbone, channels=1, seed=0)
    assert untrained_classifier(start, config).backbone is start.backbone


def test_without_anything_held_out_nothing_is_claimed(simulated, tmp_path, command) -> None:
    out = tmp_path / "run"
    words = ("--backbone", "scratch:vit-nano", "--brains", simulated(0).brains_file, "--out", out)
    outcome = command("cubeclf-finetune", *words, "--folds", 0, "--labels", 20)
    assert outcome.code == 0, outcome.err
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["evaluation"] is None
    assert metrics["temperature"] is None
    assert load_classifier(out).threshold == 0.5
    assert "No labels were held out" in (out / "report.html").read_text()


def test_cells_of_one_brain_and_artefacts_of_another_are_told_of(
    simulated, tmp_path, command
) -> None:
    entries = []
    for number, type_ in ((0, 2), (1, 1)):
        cells = read_cells(simulated(number).cells)
        kept = tmp_path / f"{number}.xml"
        write_cells(kept, cells[np.flatnonzero(cells.types == type_)])
        signal = str(simulated(number).volume)
        entries.append({"name": f"brain{number}", "signal": signal, "cells": str(kept)})
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(entries))
    words = ("--brains", tmp_path / "both.yaml", "--labels", 40, "--out", tmp_path / "run")
    outcome = command("cubeclf-finetune", "--backbone", "scratch:vit-nano", *words)
    assert outcome.code == 0, outcome.err
    told = "labels of brain0, brain1 are not of every class: what sets a brain apart may pass for"
    assert any(told in line for line in outcome.lines)
    assert told in (tmp_path / "run" / "report.html").read_text("utf-8")
    classifier = load_classifier(tmp_path / "run").network
    assert classifier.head.last.weight.abs().sum() > 0


def test_cubes_for_another_voxel_size_are_refused(tmp_path: Path) -> None:
    write_cubes(tmp_path / "cells", CELLFINDER, 2, 0)
    write_cubes(tmp_path / "others", CELLFINDER, 2, 1)
    network = Vit3dConfig(voxel_size_um=(4.0, 2.0, 2.0), patch_um=(16.0, 20.0, 20.0))
    with pytest.raises(CellsError, match="give the brains themselves"):
        read_cubes(write_training_yaml(tmp_path / "t.yaml"), network)


def test_a_test_brain_of_an_animal_that_is_learned_from_is_refused(
    simulated, tmp_path, command
) -> None:
    entry = yaml.safe_load(simulated(1).brains_file.read_text())[0]
    entry = {
        key: str(simulated(1).brains_file.parent / str(value))
        if key in ("signal", "cells")
        else value
        for key, value in entry.items()
    }
    (tmp_path / "same.yaml").write_text(yaml.safe_dump([{**entry, "group": "brain0"}]))
    words = ("--brains", simulated(0).brains_file, "--test", tmp_path / "same.yaml")
    outcome = command(
        "cubeclf-finetune", "--backbone", "scratch:vit-nano", *words, "--out", tmp_path / "run"
    )
    assert outcome.code == 2
    assert "a test needs a brain that training has not seen" in outcome.lines[-1]


@pytest.mark.slow
def test_more_classes_than_two_train_and_export_as_two(simulated, tmp_path, command) -> None:
    """Artefacts beside what is no cell; every third of the latter is called one."""
    cells = read_cells(simulated(0).cells)
    others = np.flatnonzero(cells.types != 2)
    types = cells.types.copy()
    types[others[::3]] = -1
    write_cells(tmp_path / "cells.xml", replace(cells, types=types))
    entry = {"name": "b", "signal": str(simulated(0).volume), "cells": "cells.xml"}
    (tmp_path / "brains.yaml").write_text(yaml.safe_dump([entry]))
    words = ("--backbone", "scratch:vit-nano", "--brains", tmp_path / "brains.yaml")
    out = tmp_path / "run"
    outcome = command("cubeclf-finetune", *words, "--classes.artefact", "[-1]", "--out", out)
    assert outcome.code == 0, outcome.err
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert settings["classes"] == {"artefact": [-1]}
    evaluation = json.loads((out / "metrics.json").read_text())["evaluation"]
    assert evaluation["classes"] == ["no cell", "cell", "artefact"]
    confusion = np.array(evaluation["pooled"]["confusion"])
    assert confusion.shape == (3, 3)
    assert confusion.sum(1)[2] == pytest.approx(len(others[::3]), abs=20)  # but for the guard
    three = load_classifier(out, exact=True)
    assert three.classes == ("no cell", "cell", "artefact")
    for flags, n in (((), 3), (("--two-classes",), 2)):
        file = tmp_path / f"{n}.pt2"
        assert command("cubeclf-export", out, "--out", file, *flags).code == 0
        found = load_classifier(file, exact=True).predict(blobs_of_noise())
        assert found.shape == (4, n)
        expected = three.predict(blobs_of_noise())[:, 1]
        np.testing.assert_allclose(found[:, 1], expected, atol=1e-5)
    for wrong, message in (("[2]", "2 is a cell"), ("none", "a list of types"), ("[7]", "has 0")):
        given = ("--classes.artefact", wrong, "--out", tmp_path / "wrong")
        outcome = command("cubeclf-finetune", *words, *given)
        assert outcome.code == 2
        assert message in outcome.lines[-1]


def blobs_of_noise() -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.poisson(torch.full((4, 2, 20, 50, 50), 200.0), generator=random)
