"""Each kind of bad input, through the commands: one clear line, exit 2, nothing touched."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from safetensors.torch import save_file

from cubeclf_core.backbones import build_backbone, save_backbone
from cubeclf_core.cells import Cells, write_cells
from cubeclf_core.checkpoint import Header
from cubeclf_core.exported import save_exported
from cubeclf_core.files import mark
from cubeclf_core.heads import HeadConfig
from cubeclf_core.onnx_file import save_onnx
from cubeclf_core.trained import Classifier, save_classifier
from cubeclf_core.vit import Vit3dConfig


@dataclass(frozen=True)
class World:
    """Good inputs, and bad ones, each wrong in one way."""

    folder: Path
    brain: Path
    cells: Path
    brains_file: Path
    run: Path
    good_backbone: Path
    good_classifier: Path

    def brains(self, name: str, **changes: object) -> Path:
        """Write a brains file like the good one but for some entries."""
        entry = {"name": "b", "signal": str(self.brain), "cells": str(self.cells)} | changes
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump([{k: v for k, v in entry.items() if v is not None}]))
        return file

    def cells_file(self, name: str, positions: list[list[float]], types: list[int]) -> Path:
        """Write a cells XML."""
        cells = Cells(np.array(positions, np.float64), np.array(types, np.int64))
        write_cells(self.folder / name, cells)
        return self.folder / name


@pytest.fixture
def world(simulated, tmp_path: Path) -> World:
    brain = simulated(0)
    backbone = build_backbone(Vit3dConfig(size="nano"), seed=0)
    save_backbone(tmp_path / "backbone.safetensors", backbone, {})
    save_classifier(tmp_path / "classifier.safetensors", Classifier(backbone), {})
    return World(
        tmp_path,
        brain.volume,
        brain.cells,
        brain.brains_file,
        tmp_path / "run",
        tmp_path / "backbone.safetensors",
        tmp_path / "classifier.safetensors",
    )


def pretrain(*brains: object, out: Path) -> tuple[object, ...]:
    return ("cubeclf-pretrain", *brains, "--size", "nano", "--steps", 1, "--out", out)


def finetune(backbone: object, brains: object, out: Path) -> tuple[object, ...]:
    return ("cubeclf-finetune", "--backbone", backbone, "--brains", brains, "--out", out)


def classify(world: World, *, brain=None, cells=None, classifier=None) -> tuple[object, ...]:
    flags = ("--classifier", classifier or world.good_classifier, "--cells", cells or world.cells)
    return ("cubeclf-classify", brain or world.brain, *flags, "--out", world.run)


def no_volume(w: World):
    (w.folder / "notes.txt").write_text("not a volume")
    yield pretrain(w.folder / "nowhere.zarr", out=w.run), "does not exist"
    yield pretrain(w.folder / "notes.txt", out=w.run), "another kind"
    (w.folder / "empty").mkdir()
    yield pretrain(w.folder / "empty", out=w.run), "TIFF"
    yield classify(w, brain=w.folder / "nowhere.zarr"), "does not exist"
    convert = ("cubeclf-convert", w.folder / "nowhere", "--out", w.run, "--voxel-size-um", 5, 1, 1)
    yield convert, "does not exist"
    (w.folder / "broken.tif").write_bytes(b"II*\0broken")
    convert = ("cubeclf-convert", w.folder / "broken.tif", *convert[2:])
    yield convert, "broken.tif"


def small_volume(w: World):
    tifffile.imwrite(w.folder / "small.tif", np.zeros((19, 60, 60), np.uint16))
    small = w.brains("small", signal="small.tif", voxel_size_um=[5, 1, 1], cells=None)
    yield pretrain(small, out=w.run), "(21, 54, 54)"
    inside = w.cells_file("inside.xml", [[i, i, i] for i in (5, 6, 7, 8)], [1, 2, 1, 2])
    labelled = w.brains("small", signal="small.tif", voxel_size_um=[5, 1, 1], cells=str(inside))
    yield finetune("scratch:vit-nano", labelled, w.run), "(20, 50, 50)"
    yield classify(w, brain=small, cells=inside), "(20, 50, 50)"


def missing_voxel_size(w: World):
    tifffile.imwrite(w.folder / "plain.tif", np.zeros((30, 60, 60), np.uint16))
    yield pretrain(w.folder / "plain.tif", out=w.run), "--voxel-size-um"
    yield classify(w, brain=w.folder / "plain.tif"), "--voxel-size-um"
    yield ("cubeclf-convert", w.folder / "plain.tif", "--out", w.run), "--voxel-size-um"


def cells_outside(w: World):
    outside = w.cells_file("outside.xml", [[5, 5, 5], [6, 600, 6]], [1, 2])
    yield finetune("scratch:vit-nano", w.brains("outside", cells=str(outside)), w.run), "outside"
    yield classify(w, cells=outside), "outside"


def empty_cells(w: World):
    (w.folder / "empty.xml").write_text("<CellCounter_Marker_File/>")
    yield classify(w, cells=w.folder / "empty.xml"), "no cells"
    brains = w.brains("empty", cells="empty.xml")
    yield finetune("scratch:vit-nano", brains, w.run), "no cells"
    (w.folder / "zero.xml").write_text("")
    yield classify(w, cells=w.folder / "zero.xml"), "zero.xml"
    yield finetune("scratch:vit-nano", w.brains("none", cells=None), w.run), "no cells"


def one_class(w: World):
    only = w.cells_file("only.xml", [[5, 5, 5], [6, 6, 6]], [2, 2])
    yield finetune("scratch:vit-nano", w.brains("only", cells=str(only)), w.run), "needs both"


def learned_and_tested(w: World):
    same = w.brains("same", group="another animal")  # as the group says, not as the volume does
    words = finetune("scratch:vit-nano", w.brains_file, w.run)
    yield (*words, "--test", same), "a test needs a brain that training has not seen"


def too_few_labels(w: World):
    three = w.cells_file("three.yml", [[5, 5, 5], [6, 6, 6], [7, 7, 7]], [2, 2, 1])
    words = finetune("scratch:vit-nano", w.brains("three", cells=str(three)), w.run)
    yield words, "at least two cells and two others"


def contradicting_labels(w: World):
    places = [[i, i, i] for i in (5, 6, 7, 8)]
    one = w.brains("one", cells=str(w.cells_file("one.csv", places, [2, 1, 2, 1])))
    two = w.brains("two", cells=str(w.cells_file("two.csv", places, [2, 1, 2, 2])))
    words = finetune("scratch:vit-nano", one, w.run)
    yield (*words, "--brains", two), "1 label contradicts"


def wrong_checkpoint(w: World):
    yield finetune(w.good_classifier, w.brains_file, w.run), "expected a backbone"
    yield finetune(w.folder / "nowhere", w.brains_file, w.run), "no backbone"
    yield finetune("scratch:vit-huge", w.brains_file, w.run), "vit-nano"
    yield classify(w, classifier=w.good_backbone), "expected a classifier"
    yield classify(w, classifier=w.cells), "no safetensors"
    file = w.folder / "new.pt2"
    yield ("cubeclf-export", w.good_backbone, "--out", file), "expected a classifier"


def existing_output(w: World):
    w.run.mkdir()
    (w.run / "precious.txt").write_text("precious")
    yield pretrain(w.brain, out=w.run), "--overwrite"
    yield finetune("scratch:vit-nano", w.brains_file, w.run), "--overwrite"
    yield classify(w), "--overwrite"
    yield ("cubeclf-export", w.good_classifier, "--out", w.run), "--overwrite"
    yield ("cubeclf-simulate", "--out", w.run), "--overwrite"
    yield ("cubeclf-convert", w.brain, "--out", w.run, "--voxel-size-um", 5, 1, 1), "--overwrite"


def wrong_settings(w: World):
    yield (*pretrain(w.brain, out=w.run), "--batch-size", 0), "--batch-size"
    yield (*pretrain(w.brain, out=w.run), "--candidate-share", 2), "--candidate-share"
    yield (*finetune("scratch:vit-nano", w.brains_file, w.run), "--labels", 1), "--labels"
    yield (*classify(w), "--threshold", 3), "--threshold"
    yield ("cubeclf-export", w.good_classifier, "--out", w.run), ".pt2"
    yield ("cubeclf-finetune", "--backbone", "scratch:vit-nano", "--out", w.run), "no labels"
    (w.folder / "bad.yaml").write_text("- nam: x\n")
    yield pretrain(w.folder / "bad.yaml", out=w.run), "nam"


def not_finite(w: World):
    voxels = np.random.default_rng(0).random((30, 60, 60)).astype(np.float32)
    voxels[15] = np.nan
    tifffile.imwrite(w.folder / "nan.tif", voxels)
    inside = w.cells_file("inside.xml", [[15, i, 30] for i in (30, 31, 32, 33)], [1, 2, 1, 2])
    file = w.brains("nan", signal="nan.tif", voxel_size_um=[5, 1, 1], cells=str(inside))
    yield pretrain(file, out=w.run), "not finite"
    yield finetune("scratch:vit-nano", file, w.run), "not finite"
    tested = (*finetune("scratch:vit-nano", w.brains_file, w.run), "--test", file)
    yield tested, "not finite"


def careless_output(w: World):
    (w.folder / "file").write_text("a file")
    for words in (
        pretrain(w.brain, out=w.folder / "file" / "x"),
        ("cubeclf-simulate", "--out", w.folder / "file" / "x"),
        ("cubeclf-export", w.good_classifier, "--out", w.folder / "file" / "x.pt2"),
    ):
        yield words, "no folder"
    yield (*pretrain(w.brain, out=w.brain / "run"), "--overwrite"), "input"
    copy = w.folder / "labelled"
    copy.mkdir()
    entry = {"name": "b", "signal": str(w.brain), "cells": str(w.cells)}
    (copy / "brains.yaml").write_text(yaml.safe_dump([entry]))
    mark(copy)
    yield (*pretrain(copy / "brains.yaml", out=copy), "--overwrite"), "input"
    yield (*finetune("scratch:vit-nano", copy / "brains.yaml", copy), "--overwrite"), "input"


def foreign_headers(w: World):
    for i, header in enumerate(("no json", "{}", '{"kind": "backbone", "format_version": 1}')):
        file = w.folder / f"header{i}.safetensors"
        save_file({"x": torch.zeros(1)}, file, metadata={"cubeclf": header})
        yield finetune(file, w.brains_file, w.run), "header"
    with zipfile.ZipFile(w.folder / "foreign.pt2", "w") as archive:
        archive.writestr("data", "nothing")
    yield classify(w, classifier=w.folder / "foreign.pt2"), "no exported classifier"


def wrong_exports(w: World):
    out = w.folder / "new.keras"
    keras = ("cubeclf-export", w.good_classifier, "--format", "keras", "--out")
    yield (*keras, w.folder / "new.h5"), "needs .keras"
    yield (*keras, out, "--threshold", 2), "--threshold"
    yield (*keras, out, "--threshold", 1), "below 1"
    yield (*keras, out, "--int8"), "--format onnx"
    onnx = ("cubeclf-export", w.good_classifier, "--format", "onnx", "--out", w.folder / "n.onnx")
    yield (*onnx, "--int8"), "--brains"
    yield (*onnx, "--brains", w.brains("none", cells=None)), "no cells"
    bundle = ("cubeclf-export", w.good_classifier, "--format", "bundle", "--out")
    yield (*bundle, w.folder / "new.pt2"), "a bundle is a folder"
    yield (*bundle, w.folder / "new", "--two-classes"), "keeps its classes"
    three = w.folder / "three.safetensors"
    classes = HeadConfig(classes=("no cell", "cell", "artefact"))
    network = Classifier(build_backbone(Vit3dConfig(size="nano"), seed=0), classes)
    save_classifier(three, network, {})
    yield ("cubeclf-export", three, "--format", "keras", "--out", out), "--two-classes"
    (w.folder / "new.onnx.md").write_text("a text of the user's")
    words = ("cubeclf-export", w.good_classifier, "--format", "onnx", "--out")
    yield (*words, w.folder / "new.onnx"), "new.onnx.md exists"


def wrong_exported(w: World):
    (w.folder / "junk.keras").write_bytes(b"junk" * 100)
    yield classify(w, classifier=w.folder / "junk.keras"), "no .keras file"
    with zipfile.ZipFile(w.folder / "foreign.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    yield classify(w, classifier=w.folder / "foreign.keras"), "not exported by cubeclf"
    header = Header(kind="classifier", backbone={}, format_version=99)
    newer = header.to_json()
    with zipfile.ZipFile(w.folder / "newer.keras", "w") as archive:
        archive.writestr("cubeclf.json", newer)
    yield classify(w, classifier=w.folder / "newer.keras"), "newer"
    batch = {0: torch.export.Dim("batch")}
    for suffix, save in ((".pt2", save_exported), (".onnx", save_onnx)):
        save(w.folder / f"newer{suffix}", torch.nn.ReLU().eval(), torch.ones(2, 1), batch, header)
        yield classify(w, classifier=w.folder / f"newer{suffix}"), "newer"
    with zipfile.ZipFile(w.folder / "junk.pt2", "w") as archive:
        archive.writestr("version", "0")
    yield classify(w, classifier=w.folder / "junk.pt2"), "no exported classifier"
    (w.folder / "junk.onnx").write_bytes(b"junk" * 100)
    yield classify(w, classifier=w.folder / "junk.onnx"), "no ONNX model"
    yield classify(w, classifier=w.folder / "nowhere.onnx"), "no classifier"
    bundle = w.folder / "bundle"
    bundle.mkdir()
    (bundle / "model.safetensors").write_bytes(w.good_backbone.read_bytes())
    yield classify(w, classifier=bundle), "expected a classifier"
    yield finetune(bundle, w.brains_file, w.run), "expected a classifier"


def misleading_labels(w: World):
    tested = (*finetune("scratch:vit-nano", w.brains_file, w.run), "--test", w.brains_file)
    yield tested, "not seen"
    escaping = w.folder / "escaping.yaml"
    entry = {"name": "../../escaped", "signal": str(w.brain), "cells": str(w.cells)}
    escaping.write_text(yaml.safe_dump([entry]))
    yield finetune("scratch:vit-nano", escaping, w.run), "name"
    (w.folder / "cubes").mkdir()
    both = [{"cube_dir": "cubes", "type": kind} for kind in ("cell", "no_cell")]
    cubes = w.folder / "cubes.yaml"
    words = ("cubeclf-finetune", "--backbone", "scratch:vit-nano", "--out", w.run, "--cubes", cubes)
    for entries, says in (
        (both, "both as cell"),
        (both[:1], "no cubes"),
        ([both[0] | {"cell_def": "cells.xml"}, both[1]], "cell_def"),
        ([both[0] | {"signal_channel": "zero"}, both[1]], "signal_channel"),
        ([both[0] | {"type": ["cell"]}, both[1]], "type"),
    ):
        cubes.write_text(yaml.safe_dump({"data": entries}))
        yield words, says


def absurd_numbers(w: World):
    yield (*pretrain(w.brain, out=w.run), "--seed", -1), "--seed"
    yield (*pretrain(w.brain, out=w.run), "--learning-rate", "nan"), "--learning-rate"
    yield (
        (*pretrain(w.brain, out=w.run), "--method", "mae", "--settings.decoder-width", 97),
        "mae.decoder_width",
    )
    yield (*finetune("scratch:vit-nano", w.brains_file, w.run), "--seed", -1), "--seed"
    yield (*classify(w), "--voxel-size-um", 1000, 100, 100), "coarse"


CASES: list[Callable] = [
    not_finite,
    careless_output,
    foreign_headers,
    wrong_exports,
    wrong_exported,
    misleading_labels,
    absurd_numbers,
    no_volume,
    small_volume,
    missing_voxel_size,
    cells_outside,
    empty_cells,
    one_class,
    learned_and_tested,
    too_few_labels,
    contradicting_labels,
    wrong_checkpoint,
    existing_output,
    wrong_settings,
]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"folder"
        for p in folder.rglob("*")
    }


@pytest.mark.parametrize("cases", CASES, ids=lambda f: f.__name__)
def test_bad_input_gets_one_line_and_exit_2(cases, world: World, command) -> None:
    for words, says in cases(world):
        before = contents(world.folder)
        outcome = command(*words)
        assert outcome.code == 2, (words, outcome.err)
        assert len(outcome.lines) == 1, (words, outcome.err)
        assert outcome.lines[0].startswith("error: ")
        assert says in outcome.lines[0], (words, outcome.err)
        assert contents(world.folder) == before, words


def test_overwrite_replaces_a_run_only_when_the_input_is_good(world: World, command) -> None:
    world.run.mkdir()
    (world.run / "precious.txt").write_text("precious")
    foreign = command(*pretrain(world.brain, out=world.run), "--overwrite")
    assert (foreign.code, len(foreign.lines)) == (2, 1)
    assert "nothing that this command wrote" in foreign.lines[0]
    mark(world.run)
    bad = pretrain(world.folder / "nowhere.zarr", out=world.run)
    assert command(*bad, "--overwrite").code == 2
    assert (world.run / "precious.txt").exists()
    good = pretrain(world.brain, out=world.run)
    outcome = command(*good, "--batch-size", 2, "--overwrite")
    assert outcome.code == 0, outcome.err
    assert not (world.run / "precious.txt").exists()
