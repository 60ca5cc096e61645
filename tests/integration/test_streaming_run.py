"""A pretraining tells what it saw of the brain, what it could not read, and how long it waited."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

RARELY = ("--log-every", 2, "--monitor-every", 6)
PRETRAIN = ("--size", "nano", "--batch-size", 4, "--steps", 6, *RARELY)


def chunk_files(volume: Path) -> list[Path]:
    return sorted(file for file in (volume / "0" / "c").rglob("*") if file.is_file())


@pytest.fixture
def volume(simulated, tmp_path: Path) -> Path:
    """A brain of its own, to be damaged."""
    return Path(shutil.copytree(simulated(0).volume, tmp_path / "brain.ome.zarr"))


@pytest.mark.slow
def test_a_run_records_what_it_saw(command, volume: Path, tmp_path: Path) -> None:
    outcome = command("cubeclf-pretrain", volume, "--out", tmp_path / "run", *PRETRAIN)
    assert outcome.code == 0
    statistics = json.loads((tmp_path / "run/statistics.json").read_text())
    assert len(statistics["brain"]["channels"]) == 2
    assert 0 < statistics["brain"]["channels"][0]["median"] < 65535
    assert 0 < statistics["brain"]["tissue"] <= 1
    assert (tmp_path / "run/figures/tissue_brain.png").stat().st_size > 10_000
    lines = list(map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines()))
    assert all(0 <= line["wait_share"] <= 1 for line in lines if "loss" in line)
    assert not (tmp_path / "run/faults.jsonl").exists()


def test_a_damaged_chunk_is_listed_and_does_not_end_the_run(
    command, volume: Path, tmp_path: Path
) -> None:
    for file in chunk_files(volume)[:1]:
        file.write_bytes(file.read_bytes()[:100])
    outcome = command("cubeclf-pretrain", volume, "--out", tmp_path / "run", *PRETRAIN)
    assert outcome.code == 0
    faults = [json.loads(f) for f in (tmp_path / "run/faults.jsonl").read_text().splitlines()]
    assert all(fault["brain"] == "brain" and len(fault["start"]) == 3 for fault in faults)
    assert len({tuple(fault["start"]) for fault in faults}) == len(faults)
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    last = [line for line in lines if "loss" in line][-1]
    assert 0 < last["faults"] <= len(faults)
    assert any("another region drawn instead" in line for line in outcome.lines)


def test_a_brain_that_cannot_be_read_ends_the_run_in_one_line(
    command, volume: Path, tmp_path: Path
) -> None:
    for file in chunk_files(volume):
        file.write_bytes(b"nothing")
    outcome = command("cubeclf-pretrain", volume, "--out", tmp_path / "run", *PRETRAIN)
    assert outcome.code == 1
    assert "regions of brain could not be read" in outcome.lines[-1]
    assert "Traceback" not in outcome.err
    assert (tmp_path / "run/faults.jsonl").exists()


def test_a_brain_without_room_for_a_cuboid_in_tissue_is_bad_input(command, tmp_path: Path) -> None:
    from cubeclf_core.pyramid import write_ome_zarr

    brain = np.random.default_rng(0).poisson(20, (40, 200, 200)).astype(np.uint16)
    brain[:, :, :12] += 2000
    write_ome_zarr(tmp_path / "edge.ome.zarr", [brain], (5.0, 1.0, 1.0))
    outcome = command(
        "cubeclf-pretrain", tmp_path / "edge.ome.zarr", "--out", tmp_path / "run", *PRETRAIN
    )
    assert outcome.code == 2
    assert "edge: no cuboid has its middle in tissue" in outcome.lines[-1]
    assert not (tmp_path / "run").exists()
