"""Fine-tuning that is killed or stopped: it goes on as if nothing had happened."""

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

RUN = "from finetune.commands import finetune; finetune()"
SETTINGS = ("--labels", 24, "--epochs", 4, "--batch-size", 4, "--copies", 2, "--patience", 4)
SLOWLY = ("--head", "mlp", "--learning-rate", 1e-4)  # so that the first epoch is not the best
WAYS = {
    "network": ("--no-freeze", *SLOWLY),
    "lora": ("--lora-rank", 2, "--unfreeze-epoch", 1, *SLOWLY),
    "mlp": SLOWLY,
}


Brains = tuple[Path, ...]


def two_brains(simulated) -> Brains:
    """Each has an intercept of its own, which is part of what is resumed."""
    return simulated(0).brains_file, simulated(1).brains_file


def start(brains: Brains, out: Path, way: str, *more: object, code: str = RUN) -> Started:
    words = ("--backbone", "scratch:vit-nano", "--brains", *brains, "--out", out)
    words = (*words, *SETTINGS, *WAYS[way], *more)
    return Started(code, [*map(str, words)], out.with_name(f"{out.name}.err"))


def epochs(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def wait_for_epochs(process: Started, out: Path, n: int) -> None:
    file = out / "metrics.jsonl"
    while process.poll() is None and not (file.exists() and file.read_text().count("\n") >= n):
        time.sleep(0.01)
    assert process.poll() is None, process.told()


@pytest.fixture(scope="module")
def uninterrupted(simulated, tmp_path_factory) -> Callable[[str], Path]:
    """Runs that were left alone, by what they train."""
    made: dict[str, Path] = {}

    def get(way: str) -> Path:
        if way not in made:
            out = tmp_path_factory.mktemp("uninterrupted") / way
            code, err = start(two_brains(simulated), out, way).finish()
            assert code == 0, err
            made[way] = out
        return made[way]

    return get


def assert_resumes_exactly(out: Path, brains: Brains, way: str, reference: Path) -> None:
    code, err = start(brains, out, way, "--resume").finish()
    assert code == 0, err
    assert epochs(out) == epochs(reference)
    name = "exported/classifier.safetensors"
    found, expected = load_file(out / name), load_file(reference / name)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    scores = [json.loads((run / "metrics.json").read_text()) for run in (out, reference)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    "way", ["mlp", *(pytest.param(way, marks=pytest.mark.slow) for way in ("network", "lora"))]
)
def test_a_killed_run_resumes_bit_for_bit(
    way: str, simulated, uninterrupted, tmp_path: Path
) -> None:
    """Killed in the first training, and in the last, on all labels."""
    out, brains, reference = tmp_path / "run", two_brains(simulated), uninterrupted(way)
    held = [line for line in epochs(reference) if "fold" in line]
    assert len(held) >= 2
    assert len(epochs(reference)) >= len(held) + 2, "the last training is too short to be killed"
    for n in (2, len(held) + 1):
        process = start(brains, out, way, "--resume")
        wait_for_epochs(process, out, n)
        process.kill()
        process.finish()
        assert not (out / "metrics.json").exists()
    assert_resumes_exactly(out, brains, way, reference)


@pytest.mark.slow
def test_a_signal_leaves_after_the_epoch(simulated, uninterrupted, tmp_path: Path) -> None:
    out, brains = tmp_path / "run", two_brains(simulated)
    process = start(brains, out, "network")
    wait_for_epochs(process, out, 1)
    process.send_signal(signal.SIGTERM)
    code, err = process.finish()
    assert code == 75, err
    assert "--resume goes on after its last epoch" in err[-1]
    other = start(brains, out, "network", "--resume", "--seed", 3).finish()
    assert other[0] == 2
    assert "--seed is 3" in other[1][-1]
    assert_resumes_exactly(out, brains, "network", uninterrupted("network"))


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_there(simulated, uninterrupted, tmp_path: Path) -> None:
    """From the second checkpoint on no file can grow beyond 100 kB."""
    out, brains = tmp_path / "run", two_brains(simulated)
    full = """
import resource
from cubeclf_core import checkpoint
save, count = checkpoint.save_file, [0]
def limited(tensors, path, metadata):
    count[0] += 1
    if count[0] == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    save(tensors, path, metadata)
checkpoint.save_file = limited
"""
    code, err = start(brains, out, "network", code=full + RUN).finish()
    assert code == 1, err
    assert "could not be written" in err[-1]
    assert_resumes_exactly(out, brains, "network", uninterrupted("network"))
