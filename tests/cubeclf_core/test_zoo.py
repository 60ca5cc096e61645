from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

from cubeclf_core import zoo
from cubeclf_core.backbones import load_backbone
from cubeclf_core.cells import read_cells
from cubeclf_core.checkpoint import load_checkpoint
from cubeclf_core.classifier import load_classifier
from cubeclf_core.content import content_hash
from cubeclf_core.downloads import download, sha256_of
from cubeclf_core.errors import CheckpointError, InputError, RunFailed
from cubeclf_core.network_configs import prepare
from finetune.comparing.pretraining import has_seen

ROOT = Path(__file__).parents[2]
LARGEST = 12_000_000  # bytes, of what is in the repository


@pytest.mark.parametrize("name", zoo.index())
def test_what_the_index_tells_of_is_there_with_its_card(name: str) -> None:
    entry = zoo.index()[name]
    file = zoo.find(name, entry.kind)
    assert file is not None
    assert entry.url is not None or file.stat().st_size <= LARGEST
    assert sha256_of(file) == entry.sha256
    assert entry.licence
    assert entry.data
    card = (ROOT / "checkpoints" / f"{name}.md").read_text(encoding="utf-8")
    assert "/tmp/" not in card + str(load_checkpoint(file, entry.kind)[0])
    assert content_hash(name) == entry.sha256
    assert card.startswith(f"# {name}\n")
    assert entry.command.startswith("python -m benchmarks.zoo")


def test_there_are_weights_of_both_kinds() -> None:
    assert {"vit3d-nano-v1", "vit3d-tiny-v1"} <= set(zoo.known("backbone"))
    assert "cells-tiny-v1" in zoo.known("classifier")
    files = {file.name for file in (ROOT / "checkpoints").glob("*.safetensors")}
    assert files == {entry.file for entry in zoo.index().values() if entry.url is None}


@pytest.mark.parametrize("name", zoo.known("backbone"))
def test_a_backbone_is_loaded_by_name_and_takes_one_channel_or_two(name: str) -> None:
    backbone, origin = load_backbone(name)
    assert origin["objective"] == "simclr"
    cuboids = torch.rand(2, 1, *backbone.config.cuboid_shape) * 1000
    with torch.no_grad():
        embedded = backbone.embed(prepare(cuboids, backbone.config))
    assert embedded.shape == (2, backbone.embedding_width)
    assert embedded.isfinite().all()
    assert has_seen(name, frozenset({"any"})) == "no"
    assert has_seen(name, frozenset({"data/serial2p_crop/ch0"})) == "unknown"


@pytest.mark.parametrize("name", zoo.known("classifier"))
def test_a_classifier_is_loaded_by_name(name: str) -> None:
    classifier = load_classifier(name)
    cuboids = torch.rand(3, classifier.config.channels, *classifier.config.cuboid_shape) * 1000
    found = classifier.predict(cuboids)
    exact = load_classifier(name, exact=True).predict(cuboids)
    assert found == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize("name", zoo.known("classifier"))
def test_a_classifier_is_exported_by_name(name: str, tmp_path: Path, command) -> None:
    out = tmp_path / "bundle"
    outcome = command("cubeclf-export", name, "--format", "bundle", "--out", out)
    assert outcome.code == 0, outcome.err
    cuboids = torch.rand(3, 2, 20, 50, 50) * 1000
    expected, found = (load_classifier(c, exact=True).predict(cuboids) for c in (name, out))
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_name_of_another_kind_is_refused_and_a_path_comes_first(tmp_path, monkeypatch) -> None:
    name = zoo.known("backbone")[0]
    with pytest.raises(CheckpointError, match=f"{name} is a backbone, expected a classifier"):
        zoo.find(name, "classifier")
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    assert zoo.find(name, "backbone") is None
    assert zoo.find("no such name", "backbone") is None


def test_who_mistypes_a_name_is_told_which_there_are(tmp_path: Path, command) -> None:
    words = ("cells-tiny-v0", "--format", "onnx", "--out", tmp_path / "cells.onnx")
    outcome = command("cubeclf-export", *words)
    assert outcome.code == 2
    assert outcome.lines[-1].endswith("file, or " + ", or ".join(zoo.known("classifier")))


def test_larger_weights_are_downloaded_once_and_checked(tmp_path: Path, monkeypatch) -> None:
    source = tmp_path / "elsewhere"
    source.write_bytes(b"weights" * 400_000)
    told = {
        "kind": "backbone",
        "file": "large.safetensors",
        "licence": "MIT",
        "data": "none",
        "command": "none",
        "url": source.as_uri(),
    }
    right = zoo.Entry(**told, sha256=hashlib.sha256(source.read_bytes()).hexdigest())
    wrong = zoo.Entry(**told, sha256="0" * 64)
    monkeypatch.setenv("CUBECLF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(zoo, "index", lambda: {"large": right, "changed": wrong})
    with pytest.raises(CheckpointError, match=r"has the SHA-256 .* expected 000"):
        zoo.find("changed", "backbone")
    assert not (tmp_path / "cache").exists()
    found = zoo.find("large", "backbone")
    assert found is not None
    assert found.read_bytes() == source.read_bytes()
    source.unlink()
    assert zoo.find("large", "backbone") == found


def test_what_cannot_be_downloaded_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file at"):
        download((tmp_path / "nothing").as_uri(), tmp_path / "to", None)
    with pytest.raises(RunFailed, match="nowhere://x cannot be downloaded: "):
        download("nowhere://x", tmp_path / "to", None)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_weights_come_with_a_wheel(tmp_path: Path, simulated) -> None:
    """Straight after installing it, a backbone is fine-tuned and a classifier used, by name."""
    pip = ["-m", "pip", "-q"]
    build = [sys.executable, *pip, "wheel", "--no-deps", str(ROOT), "-w", str(tmp_path)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    # With the packages that are here, but for cubeclf itself, which is the wheel's.
    venv.create(tmp_path / "env", with_pip=True)
    installed = tmp_path / "env" / "bin"
    python = installed / "python"
    subprocess.run([python, *pip, "install", "--no-deps", str(wheel)], check=True)
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    there = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    here = Path(torch.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([there, str(here)])}

    def run(*words: object) -> str:
        done = subprocess.run(
            [str(word) for word in words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    load = "[load_backbone(name) for name in zoo.known('backbone')]"
    code = "from cubeclf_core import zoo; from cubeclf_core.backbones import load_backbone; "
    assert run(python, "-c", f"{code}{load}; print(zoo.__file__)").startswith(there)
    brain = simulated(0)
    words = ["--brains", brain.brains_file, "--backbone", "vit3d-nano-v1", "--folds", 2]
    run(installed / "cubeclf-finetune", *words, "--out", "fine-tuned")
    assert load_classifier(tmp_path / "fine-tuned").config.channels == 2
    words = [brain.volume, "--cells", brain.cells, "--classifier", "cells-tiny-v1"]
    run(installed / "cubeclf-classify", *words, "--out", "classified")
    classified = tmp_path / "classified" / "points" / "cell_classification.xml"
    assert len(read_cells(classified)) == len(read_cells(brain.cells))
