"""The same commands on real microscopy, which is not part of the project; skipped where absent.

``pytest tests/integration/test_real_data.py`` prints the figures as it goes.
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

pytestmark = pytest.mark.slow


def log_of(run: Path) -> list[dict[str, float]]:
    """The lines of steps; those of looks at the embeddings have no loss."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.fixture
def succeed(command):
    def run(*words: object) -> str:
        outcome = command(*words)
        assert outcome.code == 0, outcome.err
        return outcome.err

    return run


@pytest.fixture
def report(capsys):
    """Print a figure past the capture of pytest."""

    def tell(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}", flush=True)

    return tell


@pytest.fixture
def crop(real_data: Path, tmp_path: Path, succeed) -> Path:
    """The serial two-photon crop, two channels, as a brains file."""
    folder, out = real_data / "serial2p_crop", tmp_path / "crop.ome.zarr"
    planes = (folder / "ch0", folder / "ch1")
    succeed("cubeclf-convert", *planes, "--out", out, "--voxel-size-um", 5, 2, 2)
    file = tmp_path / "crop.yaml"
    entry = {"name": "crop", "signal": out.name, "cells": str(folder / "cells.xml")}
    file.write_text(yaml.safe_dump([entry]))
    return file


def classify_crop(run: Path, crop: Path, real_data: Path, tmp_path: Path, succeed) -> str:
    """Fine-tune a backbone on the four labelled cubes and classify the 56 positions on cells."""
    cubes = real_data / "cubes"
    entries = [
        {"cube_dir": str(cubes / folder), "type": kind, "signal_channel": 0, "bg_channel": 1}
        for folder, kind in (("cells", "cell"), ("non_cells", "no_cell"))
    ]
    training = tmp_path / "training.yaml"
    training.write_text(yaml.safe_dump({"data": entries}))
    classifier, out = tmp_path / "classifier", tmp_path / "classified"
    succeed("cubeclf-finetune", "--backbone", run, "--cubes", training, "--out", classifier)
    cells = real_data / "serial2p_crop" / "cells.xml"
    succeed("cubeclf-classify", crop, "--classifier", classifier, "--cells", cells, "--out", out)
    with (out / "candidates.csv").open() as table:
        probability = np.array([float(row["probability"]) for row in csv.DictReader(table)])
    assert len(probability) == 56
    assert np.isfinite(probability).all()
    accepted = int((probability >= 0.5).sum())
    return f"crop, {run.name}: {accepted} of 56 cells accepted, after four labelled cubes"


def test_masked_autoencoding_learns_on_serial_two_photon(
    crop, real_data, tmp_path, succeed, report
) -> None:
    run = tmp_path / "mae"
    small = ("--size", "nano", "--steps", 600, "--batch-size", 16, "--learning-rate", 2e-3)
    succeed("cubeclf-pretrain", crop, "--method", "mae", *small, "--log-every", 1, "--out", run)
    end = log_of(run)[-100:]
    loss, baseline = (np.mean([line[key] for line in end]) for key in ("loss", "neighbour_mean"))
    report(f"MAE on the crop: loss {loss:.4f}, mean of visible neighbours {baseline:.4f}")
    assert loss < baseline
    report(classify_crop(run, crop, real_data, tmp_path, succeed))


def test_dino_learns_on_serial_two_photon(crop, real_data, tmp_path, succeed, report) -> None:
    run = tmp_path / "dino"
    small = ("--size", "nano", "--steps", 250, "--batch-size", 16, "--learning-rate", 1e-3)
    head = ("--settings.prototypes", 512, "--settings.local-views", 2)
    succeed("cubeclf-pretrain", crop, "--method", "dino", *small, *head, "--out", run)
    loss = np.mean([line["cross_entropy"] for line in log_of(run)[-3:]])
    found = json.loads((run / "metrics.json").read_text())
    ranks = {which: found[which]["rank_me"] for which in ("trained", "untrained")}
    report(f"DINO on the crop: cross-entropy {loss:.4f}, ln K {math.log(512):.4f}, {ranks}")
    assert loss < math.log(512)
    assert ranks["trained"] > ranks["untrained"]
    report(classify_crop(run, crop, real_data, tmp_path, succeed))


def test_a_backbone_of_two_blocks_and_labels_of_one_score_the_other(
    real_data, tmp_path, succeed, report
) -> None:
    for block in ("695", "753"):
        stack, out = real_data / "cfos" / f"{block}.tif", tmp_path / f"{block}.ome.zarr"
        succeed("cubeclf-convert", stack, "--out", out, "--voxel-size-um", 6, 1.62, 1.62)
        cells = str(real_data / "cfos" / f"{block}.xml")
        entry = {"name": f"block{block}", "signal": out.name, "cells": cells}
        (tmp_path / f"{block}.yaml").write_text(yaml.safe_dump([entry]))
    files = tmp_path / "695.yaml", tmp_path / "753.yaml"
    backbone = tmp_path / "backbone"
    succeed("cubeclf-pretrain", *files, "--preset", "laptop", "--out", backbone)
    found = {}
    for name, weights in (("pretrained", backbone), ("untrained", "scratch:vit-nano")):
        run = tmp_path / name
        data = ("--brains", files[0], "--test", files[1], "--channels", 1)
        succeed("cubeclf-finetune", "--backbone", weights, *data, "--out", run)
        found[name] = json.loads((run / "metrics.json").read_text())["scores"]
    for name, scores in {
        "pretrained, frozen": found["pretrained"]["classifier"],
        "untrained, frozen": found["untrained"]["classifier"],
        "contrast": found["pretrained"]["contrast"],
        "density": found["pretrained"]["density"],
    }.items():
        scores = scores["pooled"]
        report(
            f"753 by labels of 695: {name:<18} AUC {scores['auc']:.3f}, average precision "
            f"{scores['average_precision_less_prevalence']:+.3f} over the prevalence"
        )
    assert found["pretrained"]["contrast"]["pooled"]["auc"] > 0.9  # as the data's own table says
    scores = [found[which]["classifier"]["pooled"]["auc"] for which in ("pretrained", "untrained")]
    assert scores[0] > scores[1]
