"""The published protocol, on a small stand-in of the set's layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml

from benchmarks.serial2p import fetch, main, settings_of, unpack, write_split
from finetune.cubes import list_cubes

SHAPE = (20, 50, 50)


@pytest.fixture(scope="session")
def archive(tmp_path_factory) -> Path:
    """Two folders of cubes, bright in the middle and not, zipped."""
    folder = tmp_path_factory.mktemp("set")
    random = np.random.default_rng(0)
    for brain in ("a", "b"):
        for kind in ("cells", "non_cells"):
            to = folder / "cubes" / brain / kind
            to.mkdir(parents=True)
            for i in range(24):
                for channel in (0, 1):
                    voxels = random.normal(300, 20, SHAPE)
                    if kind == "cells" and channel == 0:
                        voxels[8:12, 22:28, 22:28] += 200
                    name = f"pCellz{30 * i}y{7 * i}x{len(kind) * 100}Ch{channel}.tif"
                    tifffile.imwrite(to / name, voxels.astype(np.uint16))
    return Path(shutil.make_archive(str(folder / "set"), "zip", folder / "cubes"))


def words(archive: Path, folder: Path, *more: str) -> list[str]:
    common = ["--archive", archive.as_uri(), "--folder", str(folder), "--seed", "1"]
    return [*common, "--backbones", "scratch:vit-nano", "--train", "{copies: 1, folds: 2}", *more]


@pytest.mark.slow
def test_the_protocol_from_archive_to_figure(archive: Path, tmp_path: Path, capfd) -> None:
    assert main(words(archive, tmp_path)) == 0
    assert "false-positive rate at recall 0.99" in capfd.readouterr().out
    (split,) = tmp_path.glob("cubes_*_random_1")
    train, test = (list_cubes(split / f"{part}.yaml") for part in ("train", "test"))
    assert len(train) + len(test) == 96
    names = [{cube.paths[0].resolve() for cube in part} for part in (train, test)]
    assert not names[0] & names[1]
    told = (split / "results.json").read_text()
    found = json.loads(told)["found"]["scratch:vit-nano"]
    assert found["cubes"] == len(test)
    assert found["auc"] > 0.9
    assert 0 <= found["false_positive_rate_at_recall_0.99"] <= 1
    (weights,) = split.glob("*/exported/classifier.safetensors")
    before = weights.stat().st_mtime_ns
    assert main(words(archive, tmp_path)) == 0  # which trains nothing anew
    assert weights.stat().st_mtime_ns == before
    assert (split / "results.json").read_text() == told
    # Another archive at the same place is noticed, and nothing is trained on it.
    (tmp_path / "set.zip").write_bytes(b"changed")
    assert main(words(archive, tmp_path)) == 2
    assert "expected" in capfd.readouterr().err


def test_whole_folders_are_held_out(archive: Path, tmp_path: Path) -> None:
    file, sha256 = fetch(archive.as_uri(), None, tmp_path)
    assert fetch(archive.as_uri(), sha256.upper(), tmp_path) == (file, sha256)
    split = write_split(unpack(file, tmp_path / "cubes"), by_folder=True, seed=0)
    groups = [
        {entry["group"] for entry in yaml.safe_load((split / f"{part}.yaml").read_text())["data"]}
        for part in ("train", "test")
    ]
    assert sorted(map(len, groups)) == [1, 1]
    assert not groups[0] & groups[1]


def test_random_weights_are_trained_to_the_end_unless_told_otherwise() -> None:
    """Frozen, they would stand beside the published figure as if they were its network."""
    for name in ("resnet50", "scratch:vit-nano"):
        assert settings_of(name, "{}") == {"freeze": False, "folds": 0}
    assert settings_of("resnet50", "{epochs: 50}") == {"freeze": False, "folds": 0, "epochs": 50}
    assert settings_of("resnet50", "{freeze: true}")["freeze"] is True
    assert settings_of("vit3d-tiny-v1", "{}") == {}


@pytest.mark.parametrize("given", ["{", "5", "[1]"])
def test_settings_that_are_none_are_refused(given: str, archive: Path, tmp_path, capfd) -> None:
    assert main([*words(archive, tmp_path)[:-1], given]) == 2
    assert "error: --train is" in capfd.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path, capfd) -> None:
    file = tmp_path / "set.zip"
    file.write_bytes(content)
    assert main(words(file, tmp_path / "out")) == 2
    assert "is no zip or tar archive" in capfd.readouterr().err
    assert main(words(tmp_path / "nothing.zip", tmp_path / "out")) == 2
    assert "no file at" in capfd.readouterr().err
