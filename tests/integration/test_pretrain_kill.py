"""Pretraining that is killed, stopped, or cannot write: it goes on as if nothing had happened."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.started import Started

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

RUN = "from pretrain.commands import pretrain; pretrain()"
# Stops the process while the second checkpoint is half written.
KILLED_WHILE_WRITING = """
import os, signal
from cubeclf_core import checkpoint
save, count = checkpoint.save_file, [0]
def torn(tensors, path, metadata):
    save(tensors, path, metadata)
    count[0] += "checkpoints" in str(path)
    if count[0] == 2:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save_file = torn
"""
# From the second checkpoint on no file can grow beyond 100 kB, as if the disk were full.
DISK_FULL = """
import resource
from cubeclf_core import checkpoint
save, count = checkpoint.save_file, [0]
def full(tensors, path, metadata):
    count[0] += "checkpoints" in str(path)
    if count[0] == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    save(tensors, path, metadata)
checkpoint.save_file = full
"""
STEPS = 24
SETTINGS = ("--size", "nano", "--steps", STEPS, "--batch-size", 4, "--memory-gb", 0.25)
OFTEN = ("--log-every", 1, "--checkpoint-every", 4, "--monitor-every", 12, "--logger", "none")
METHODS = {
    "simclr": (),
    "mae": (),
    "dino": ("--settings.prototypes", 64, "--settings.local-views", 1),
    "dinov2": ("--settings.prototypes", 64, "--settings.local-views", 1),
}


def start(
    volume: Path,
    out: Path,
    method: str,
    *more: object,
    code: str = RUN,
    often: tuple[object, ...] = OFTEN,
) -> Started:
    words = (volume, "--out", out, "--method", method, *SETTINGS, *often, *METHODS[method], *more)
    return Started(code, [*map(str, words)], out.with_name(f"{out.name}.err"))


def losses(out: Path) -> dict[int, float]:
    file = out / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    told = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    assert len(dict(told)) == len(told), "a step is told once"
    return dict(told)


def wait_for_step(process: Started, out: Path, step: int) -> None:
    file, wanted = out / "metrics.jsonl", f'"step": {step}, "loss"'
    while process.poll() is None and not (file.exists() and wanted in file.read_text()):
        time.sleep(0.01)
    assert process.poll() is None, process.told()


@pytest.fixture(scope="module")
def uninterrupted(simulated, tmp_path_factory) -> Callable[[str], Path]:
    """Runs that were left alone, by method."""
    made: dict[str, Path] = {}

    def get(method: str) -> Path:
        if method not in made:
            out = tmp_path_factory.mktemp("uninterrupted") / method
            code, err = start(simulated(0).volume, out, method).finish()
            assert code == 0, err
            made[method] = out
        return made[method]

    return get


def assert_resumes_exactly(out: Path, volume: Path, method: str, reference: Path) -> None:
    code, err = start(volume, out, method, "--resume").finish()
    assert code == 0, err
    assert any(line.startswith("resuming  after ") for line in err)
    assert losses(out) == losses(reference)
    for name in ("exported/backbone.safetensors", "checkpoints/last.safetensors"):
        found, expected = load_file(out / name), load_file(reference / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), name


@pytest.mark.parametrize(
    "method",
    [
        "mae",
        pytest.param("simclr", marks=pytest.mark.slow),
        pytest.param("dino", marks=pytest.mark.slow),
        pytest.param("dinov2", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_resumes_bit_for_bit(
    method: str, simulated, uninterrupted, tmp_path: Path
) -> None:
    out, volume = tmp_path / "run", simulated(0).volume
    process = start(volume, out, method)
    wait_for_step(process, out, 9)
    process.kill()
    process.finish()
    assert not (out / "exported").exists()
    assert_resumes_exactly(out, volume, method, uninterrupted(method))


@pytest.mark.slow
def test_a_run_killed_again_and_again_resumes(simulated, uninterrupted, tmp_path: Path) -> None:
    """Before the first checkpoint too, where resuming starts anew."""
    out, volume = tmp_path / "run", simulated(0).volume
    for step in (1, 6, 17):
        process = start(volume, out, "mae", "--resume")
        wait_for_step(process, out, step)
        process.kill()
        process.finish()
    assert_resumes_exactly(out, volume, "mae", uninterrupted("mae"))


@pytest.mark.slow
def test_a_run_killed_after_its_best_probe_and_before_a_checkpoint_begins_anew(
    simulated, uninterrupted, tmp_path: Path
) -> None:
    brain, out = simulated(0), tmp_path / "run"
    rarely = ("--probe", brain.brains_file, "--config", tmp_path / "settings.yaml")
    (tmp_path / "settings.yaml").write_text("checkpoint_every: 1000\nmonitor_every: 1\n")
    process = start(brain.volume, out, "mae", *rarely, often=("--log-every", 1, "--logger", "none"))
    best = out / "exported" / "best_probe.safetensors"
    while process.poll() is None and not best.exists():
        time.sleep(0.01)
    assert process.poll() is None, process.told()
    process.kill()
    process.finish()
    assert not (out / "checkpoints").exists()
    code, err = start(brain.volume, out, "mae", "--resume", "--probe", brain.brains_file).finish()
    assert code == 0, err
    assert losses(out) == losses(uninterrupted("mae"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_writes_a_checkpoint_and_leaves(
    name: str, simulated, uninterrupted, tmp_path: Path
) -> None:
    out, volume = tmp_path / "run", simulated(0).volume
    process = start(volume, out, "mae")
    wait_for_step(process, out, 5)
    process.send_signal(getattr(signal, name))
    code, err = process.finish()
    assert code == 75, err
    assert err[-1].startswith(f"error: stopped by {name} after step ")
    assert "--resume" in err[-1]
    assert_resumes_exactly(out, volume, "mae", uninterrupted("mae"))


@pytest.mark.slow
def test_a_kill_while_writing_leaves_the_checkpoint_before(
    simulated, uninterrupted, tmp_path: Path
) -> None:
    out, volume = tmp_path / "run", simulated(0).volume
    code, _ = start(volume, out, "mae", code=KILLED_WHILE_WRITING + RUN).finish()
    assert code == -signal.SIGKILL
    assert list((out / "checkpoints").glob(".partial-*"))
    assert max(losses(out)) == 7
    assert_resumes_exactly(out, volume, "mae", uninterrupted("mae"))


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before(simulated, uninterrupted, tmp_path: Path) -> None:
    out, volume = tmp_path / "run", simulated(0).volume
    code, err = start(volume, out, "mae", code=DISK_FULL + RUN).finish()
    assert code == 1, err
    assert "could not be written" in err[-1]
    assert "the one before it is kept" in err[-1]
    assert_resumes_exactly(out, volume, "mae", uninterrupted("mae"))


@pytest.mark.slow
def test_another_setting_is_refused_on_resume(simulated, uninterrupted) -> None:
    out = uninterrupted("mae")
    before = (out / "metrics.jsonl").read_bytes()
    code, err = start(simulated(0).volume, out, "mae", "--resume", "--seed", 3).finish()
    assert code == 2
    assert err[-1].startswith("error: --seed is 3, but the run in ")
    assert (out / "metrics.jsonl").read_bytes() == before
