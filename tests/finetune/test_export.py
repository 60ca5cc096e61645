"""`cubeclf-export` in each format: what it writes, reads back, refuses and tells."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cubeclf_core.backbones import load_backbone
from cubeclf_core.cells import read_cells
from cubeclf_core.classifier import load_classifier
from cubeclf_core.heads import HeadConfig
from cubeclf_core.metrics import classification_metrics
from cubeclf_core.networks import make_network
from cubeclf_core.resnet import PlaneNorm, ResNet3dConfig
from cubeclf_core.trained import Classifier, load_trained, save_classifier
from cubeclf_core.vit import Vit3dConfig
from cubeclf_core.volumes import open_volume

# keras's own reading of its variables, with numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAMES = {"keras": "c.keras", "onnx": "c.onnx", "torch": "c.pt2", "bundle": "c"}
NEEDS = {"keras": ("keras",), "onnx": ("onnx", "onnxscript", "onnxruntime")}


SLOW = {"keras"}  # tests/contracts/test_cellfinder_export.py has a quick one


def need(*packages: str) -> None:
    for package in packages:
        if find_spec(package) is None:  # keras would want to know its backend to be imported
            pytest.skip(f"{package} is not installed")


@pytest.fixture
def export(tmp_path: Path, command) -> Callable[..., Path]:
    """Export a classifier's file, see that it works, and return what was written."""

    def run(kind: str, *flags: object) -> Path:
        need(*NEEDS.get(kind, ()))
        out = tmp_path / NAMES[kind]
        words = ("--format", kind, "--out", out, *flags)
        outcome = command("cubeclf-export", tmp_path / "c.safetensors", *words)
        assert outcome.code == 0, outcome.err
        return out

    return run


def card_of(path: Path) -> str:
    return (path / "README.md" if path.is_dir() else path.with_name(path.name + ".md")).read_text()


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow) if k in SLOW else k for k in NAMES]
)
def test_what_was_exported_predicts_and_classifies_as_the_network(
    kind: str, tmp_path: Path, export, blobs, fitted, predict, simulated
) -> None:
    classifier = fitted(channels=2)
    classifier.head.temperature.fill_(1.7)
    training = {"threshold": 0.9, "labels": {"n": 36, "cells": 12, "brains": ["blobs"]}}
    save_classifier(tmp_path / "c.safetensors", classifier, training)
    out = export(kind, "--threshold", 0.3)
    loaded = load_classifier(out, exact=True)
    assert loaded.config == classifier.backbone.config
    assert loaded.threshold == 0.3
    assert loaded.classes == ("no cell", "cell")
    cuboids = blobs(5, 3, channels=2).cuboids
    expected = predict(classifier, cuboids)
    for n in (1, 2, 5):  # any batch size
        found = loaded.predict(cuboids[:n])
        np.testing.assert_allclose(found[:, 1], expected[:n], atol=1e-5)
        np.testing.assert_allclose(found.sum(1), 1)

    brain = simulated(0)
    cells = read_cells(brain.cells)[np.arange(20)]
    volume = open_volume(brain.volume)
    theirs, ours = (
        np.concatenate([part.probability for part in each.classify(volume, cells)])
        for each in (loaded, load_classifier(tmp_path / "c.safetensors", exact=True))
    )
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    card = card_of(out)
    for told in ("0.3", "1.7", "36, of which 12 cells, of blobs", "signal and background"):
        assert told in card
    assert "largest difference in probability" in card


@pytest.mark.slow
def test_the_program_loads_without_this_package(tmp_path: Path, export, fitted) -> None:
    """Nor does it need to know which of several channels is the signal: the first."""
    save_classifier(tmp_path / "c.safetensors", fitted(), {})
    out = export("torch")
    code = f"""
import sys
for name in ("cubeclf_core", "finetune", "pretrain", "timm", "lightly"):
    sys.modules[name] = None  # importing it raises
import torch
program = torch.export.load({str(out)!r}).module()
counts = torch.rand(3, 2, 20, 50, 50)
print(tuple(program(counts).shape), torch.equal(program(counts), program(counts[:, :1])))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(3, 2) True"


WRITERS = {
    "keras": "build_model",
    "onnx": "save_onnx",
    "torch": "save_exported",
    "bundle": "save_bundle",
}


@pytest.mark.parametrize(
    "kind",
    [k if k == "bundle" else pytest.param(k, marks=pytest.mark.slow) for k in NAMES],
)
def test_a_wrong_export_is_not_written(
    kind: str, tmp_path: Path, command, monkeypatch, fitted
) -> None:
    save_classifier(tmp_path / "c.safetensors", fitted(channels=2), {})
    from finetune.exporting import run as export

    right = getattr(export, WRITERS[kind])

    def wrong(*given):
        network = next(part for part in given if isinstance(part, torch.nn.Module))
        with torch.no_grad():  # the network that it is compared with stays as it is
            other = load_trained(tmp_path / "c.safetensors")[0]
            other.head.last.bias.add_(torch.tensor([0.01, -0.01]))
        if kind == "onnx":
            other = export.Probabilities(other)
        return right(*(other if part is network else part for part in given))

    monkeypatch.setattr(export, WRITERS[kind], wrong)
    before = sorted(tmp_path.iterdir())
    words = ("--format", kind, "--out", tmp_path / NAMES[kind])
    outcome = command("cubeclf-export", tmp_path / "c.safetensors", *words)
    assert outcome.code == 1
    assert "differ" in outcome.lines[-1]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_a_file_that_fails_in_a_process_of_its_own_is_not_written(
    tmp_path: Path, command, monkeypatch, fitted
) -> None:
    save_classifier(tmp_path / "c.safetensors", fitted(channels=2), {})
    from finetune.exporting import run as export

    monkeypatch.setattr(export, "save_exported", lambda path, *_: path.write_bytes(b"nothing"))
    out = tmp_path / "c.pt2"
    outcome = command("cubeclf-export", tmp_path / "c.safetensors", "--out", out)
    assert outcome.code == 1
    assert "in a process of its own" in outcome.lines[-1]
    assert not out.exists()


@pytest.mark.slow
def test_a_bundle_is_a_backbone_too(tmp_path: Path, export, fitted, simulated, command) -> None:
    classifier = fitted(channels=2)
    save_classifier(tmp_path / "c.safetensors", classifier, {"threshold": 0.5})
    out = export("bundle")
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    assert json.loads((out / "config.json").read_text())["backbone"]["size"] == "nano"
    assert card_of(out).startswith("---\nlibrary_name: cubeclf\n")
    backbone, origin = load_backbone(str(out))
    assert origin["classifier"] == {"threshold": 0.5}
    assert classifier.backbone.config.pooled_beside
    assert not backbone.config.pooled_beside  # so that pretraining may start from it
    for name, tensor in classifier.backbone.state_dict().items():
        assert torch.equal(tensor, backbone.state_dict()[name])
    words = ("--brains", simulated(0).brains_file, "--labels", 20, "--folds", 0)
    outcome = command("cubeclf-finetune", "--backbone", out, *words, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err


def camera(n: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    rate = 100 + 400 * torch.rand((n, 2, 20, 50, 50), generator=random)
    return torch.poisson(rate, generator=random)


def resnet_classifier(path: Path) -> None:
    """With statistics as training leaves them: without, random weights let errors grow."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        classifier = Classifier(make_network(ResNet3dConfig(depth=18)))
        for module in classifier.modules():
            if isinstance(module, PlaneNorm):
                module.momentum = 1.0
        classifier.head.fit_scale(classifier.features(camera(8, 0)))
    save_classifier(path, classifier.eval(), {})


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
def test_residual_networks_export_too(kind: str, tmp_path: Path, export) -> None:
    resnet_classifier(tmp_path / "c.safetensors")
    cuboids = camera(3, 1)
    expected = load_classifier(tmp_path / "c.safetensors", exact=True).predict(cuboids)
    loaded = load_classifier(export(kind), exact=True)
    np.testing.assert_allclose(loaded.predict(cuboids), expected, atol=1e-4)
    if kind == "bundle":
        from finetune.starting import load_start

        start = load_start(str(tmp_path / "c"), channels=2, seed=0)
        assert isinstance(start.backbone.config, ResNet3dConfig)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "torch"])
@pytest.mark.parametrize("head", ["attention", "mlp"])
def test_other_heads_and_one_channel(kind: str, head: str, tmp_path: Path, export) -> None:
    config = Vit3dConfig(size="nano", channels=1, register_tokens=2, layer_scale=0.1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classes = ("no cell", "cell", "artefact")
        classifier = Classifier(make_network(config), HeadConfig(kind=head, classes=classes))
    save_classifier(tmp_path / "c.safetensors", classifier.eval(), {})
    cuboids = camera(3, 1)
    three = load_classifier(tmp_path / "c.safetensors", exact=True).predict(cuboids)
    loaded = load_classifier(export(kind), exact=True)
    assert loaded.classes == classes
    np.testing.assert_allclose(loaded.predict(cuboids), three, atol=1e-4)


@pytest.fixture
def cfos(real_data: Path, tmp_path: Path) -> Callable[[int], Path]:
    """Brains files of single blocks of real c-Fos."""

    def write(block: int) -> Path:
        file = tmp_path / f"{block}.yaml"
        stem = str(real_data / "cfos" / str(block))
        entry = {"name": str(block), "signal": f"{stem}.tif", "cells": f"{stem}.xml"}
        file.write_text(yaml.safe_dump([{**entry, "voxel_size_um": [6, 1.62, 1.62]}]))
        return file

    return write


@pytest.mark.slow
def test_what_int8_loses_is_measured_on_real_data(cfos, tmp_path: Path, command) -> None:
    need(*NEEDS["onnx"])
    run, out = tmp_path / "run", tmp_path / "c.onnx"
    words = ("--backbone", "scratch:vit-nano", "--channels", 1, "--brains", cfos(695))
    assert command("cubeclf-finetune", *words, "--folds", 0, "--out", run).code == 0
    words = ("--format", "onnx", "--out", out, "--brains", cfos(753))
    assert command("cubeclf-export", run, *words).code == 0
    full = out.stat().st_size
    outcome = command("cubeclf-export", run, *words, "--int8", "--overwrite")
    assert outcome.code == 0, outcome.err
    assert out.stat().st_size < 0.5 * full
    (line,) = [line for line in outcome.lines if line.startswith("average precision in int8")]
    assert "976 labelled candidates of 753" in line
    assert line.partition(": ")[2] in card_of(out)
    (entry,) = yaml.safe_load(cfos(753).read_text())
    volume = open_volume(entry["signal"], voxel_size_um=entry["voxel_size_um"])
    cells = read_cells(entry["cells"])
    measured = []
    for path in (run, out):
        probability = np.empty(len(cells))
        for part in load_classifier(path, exact=True).classify(volume, cells):
            probability[part.index] = part.probability
        measured.append(classification_metrics(cells.labels, probability)["average_precision"])
    exact, int8 = measured
    assert exact != int8  # it is another network
    told_int8, told_exact = map(float, re.findall(r"0\.\d{4}", line)[:2])
    assert told_exact == pytest.approx(exact, abs=1e-4)
    # one scale for all tokens of a batch: which candidates go through together shows in the digits
    assert told_int8 == pytest.approx(int8, abs=2e-3)
    assert exact - int8 < 0.01
