"""Whole commands from raw planes to classified cells, on a small simulated brain."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml

from cubeclf_core.backbones import load_backbone
from cubeclf_core.cells import read_cells
from cubeclf_core.volumes import open_volume


@pytest.mark.parametrize("method", ["simclr", pytest.param("mae", marks=pytest.mark.slow)])
def test_planes_to_classified_cells(method: str, simulated, tmp_path: Path, command) -> None:
    source = open_volume(simulated(0).volume)
    voxels = source.read((0, 0, 0), source.shape)
    for channel, stack in enumerate(voxels):
        (tmp_path / f"ch{channel}").mkdir()
        for z, plane in enumerate(stack):
            tifffile.imwrite(tmp_path / f"ch{channel}" / f"plane{z}.tif", plane)

    def run(*words: object) -> None:
        outcome = command(*words)
        assert outcome.code == 0, outcome.err

    brain = tmp_path / "brain.ome.zarr"
    planes = (tmp_path / "ch0", tmp_path / "ch1")
    run("cubeclf-convert", *planes, "--out", brain, "--voxel-size-um", 5, 1, 1)
    file = tmp_path / "brains.yaml"
    entry = {"name": "a", "signal": "brain.ome.zarr", "cells": str(simulated(0).cells)}
    file.write_text(yaml.safe_dump([entry]))

    pretrained, run_folder = tmp_path / "pretrained", tmp_path / "classifier"
    small = ("--method", method, "--size", "nano", "--steps", 6, "--batch-size", 4)
    often = ("--log-every", 2, "--monitor-every", 6)
    run("cubeclf-pretrain", file, *small, *often, "--out", pretrained)
    told = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in told if "loss" in line]
    assert [line["step"] for line in lines] == [0, 2, 4, 5]
    assert all(math.isfinite(line["loss"]) and 0 <= line["wait_share"] <= 1 for line in lines)
    assert (pretrained / "progress.png").exists()
    backbone, origin = load_backbone(str(pretrained))
    assert (origin["objective"], origin["steps"]) == (method, 6)
    assert backbone.config.channels == 2

    labels = ("--brains", file, "--labels", 40, "--test", simulated(1).brains_file)
    run("cubeclf-finetune", "--backbone", pretrained, *labels, "--out", run_folder)
    run("cubeclf-export", run_folder, "--format", "torch", "--out", tmp_path / "c.pt2")
    cells = simulated(1).cells
    inference = ("--classifier", tmp_path / "c.pt2", "--cells", cells, "--out", tmp_path / "done")
    run("cubeclf-classify", simulated(1).volume, *inference)

    with (tmp_path / "done" / "candidates.csv").open() as table:
        rows = list(csv.DictReader(table))
    candidates = read_cells(cells)
    positions = np.array([[float(row[axis]) for axis in "zyx"] for row in rows])
    np.testing.assert_array_equal(positions, candidates.positions)
    # Scored twice on two ways, by the trained network and by the exported one: the same result.
    from cubeclf_core.metrics import classification_metrics

    probability = np.array([float(row["probability"]) for row in rows])
    metrics = json.loads((run_folder / "metrics.json").read_text())["scores"]
    again = classification_metrics(candidates.labels, probability)
    assert again["auc"] == pytest.approx(metrics["classifier"]["brains"]["brain1"]["auc"], abs=2e-3)


@pytest.mark.slow
def test_a_run_repeats_itself(simulated, tmp_path: Path, command) -> None:
    weights = []
    for name in ("first", "second"):
        flags = ("--size", "nano", "--steps", 3, "--batch-size", 2, "--out", tmp_path / name)
        assert command("cubeclf-pretrain", simulated(0).brains_file, *flags).code == 0
        weights.append(load_backbone(str(tmp_path / name))[0].state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.slow
def test_one_channel_is_enough(simulated, tmp_path: Path, command) -> None:
    """A brain without background pretrains, fine-tunes and classifies; so does a mixed pair."""
    volume = open_volume(simulated(0).volume)
    tifffile.imwrite(tmp_path / "signal.tif", volume.read((0, 0, 0), volume.shape, 1)[0])
    file = tmp_path / "brains.yaml"
    signal = {"name": "s", "signal": "signal.tif", "voxel_size_um": [5, 1, 1]}
    file.write_text(yaml.safe_dump([signal | {"cells": str(simulated(0).cells)}]))

    small = ("--size", "nano", "--steps", 2, "--batch-size", 2)
    out = tmp_path / "pretrained"
    outcome = command("cubeclf-pretrain", file, simulated(1).volume, *small, "--out", out)
    assert outcome.code == 0, outcome.err
    assert load_backbone(str(out))[0].config.channels == 1
    refused = command("cubeclf-pretrain", file, *small, "--channels", 2, "--out", tmp_path / "no")
    assert (refused.code, len(refused.lines)) == (2, 1)

    for backbone in (out, "scratch:vit-nano"):  # of one channel, and of two
        run_folder = tmp_path / f"run-{Path(str(backbone)).name}"
        words = ("--backbone", backbone, "--brains", file, "--labels", 30, "--out", run_folder)
        assert command("cubeclf-finetune", *words).code == 0
        for name, brain in (("one", file), ("two", simulated(0).volume)):
            done = tmp_path / f"{run_folder.name}-{name}"
            words = ("--classifier", run_folder, "--cells", simulated(0).cells, "--out", done)
            outcome = command("cubeclf-classify", brain, *words)
            assert outcome.code == 0, outcome.err
