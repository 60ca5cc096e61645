"""A comparison that is killed goes on with what is not done, to the same table."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from cubeclf_core.checkpoint import load_checkpoint

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals"),
    pytest.mark.slow,
]

RUN = "from finetune.commands import compare; compare()"
TIMES = ("train_seconds", "test_seconds", "memory_gb")
PLAN: dict[str, Any] = {
    "data": {"brains": ["brains.yaml"]},
    "channels": 2,
    "seeds": 2,
    "own": {"labels": [12], "learn_below": 0.35, "test_above": 0.65},
    "transfer": {"labels": [12, "all"]},
    "rates": [1, 3],
    "pretraining": {"p": {"brains": ["brains.yaml"], "size": "nano", "steps": 2, "batch_size": 4}},
    "contenders": {
        "contrast": {"rule": "contrast"},
        "forest": {"rule": "forest"},
        "pretrained": {"backbone": "p"},
        "trained": {
            "backbone": "scratch:vit-nano",
            "train": {"freeze": False, "epochs": 1, "batch_size": 4},
            "seeds": 1,
            "transfer": [12],
        },
    },
}


@pytest.fixture(scope="module")
def folder(simulated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("compare")
    entries = [
        {"name": name, "signal": str(brain.volume), "cells": str(brain.cells)}
        for name, brain in (("a", simulated(0)), ("b", simulated(1)))
    ]
    (made / "brains.yaml").write_text(yaml.safe_dump(entries))
    (made / "plan.yaml").write_text(yaml.safe_dump(PLAN, sort_keys=False))
    return made


def start(folder: Path, out: str, *more: str, plan: str = "plan.yaml") -> subprocess.Popen:
    words = (str(folder / plan), "--out", str(folder / out), *more)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-W", "error", "-c", RUN, *words]
    return subprocess.Popen(
        arguments,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # a group of its own, for Ctrl-C
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    _, err = process.communicate(timeout=600)
    return process.returncode, err


def table(folder: Path, out: str) -> list[dict[str, str]]:
    """All cells without what differs from run to run: times."""
    with (folder / out / "results.csv").open(newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def reference(folder: Path) -> list[dict[str, str]]:
    code, err = finish(start(folder, "reference", "--workers", "2"))
    assert code == 0, err
    return table(folder, "reference")


def wait_for_cells(process: subprocess.Popen, out: Path, n: int) -> list[psutil.Process]:
    """Wait until so many cells are done; gives the processes that work."""
    while process.poll() is None and len(list((out / "cells").glob("*.npz"))) < n:
        time.sleep(0.05)
    assert process.poll() is None, process.stderr.read()
    return psutil.Process(process.pid).children(recursive=True)


def test_the_table_is_whole(reference: list[dict[str, str]]) -> None:
    assert len(reference) == 2 * (3 + 3 * 2 + 3 * 2 + 2)
    assert {row["seen"] for row in reference if row["contender"] == "pretrained"} == {"yes"}
    rates = {row["rate"] for row in reference if row["contender"] == "trained"}
    assert rates <= {"1.0", "3.0"}


@pytest.mark.parametrize("n", [0, 5, 14])
def test_a_killed_run_goes_on_to_the_same_table(
    folder: Path, reference: list[dict[str, str]], n: int
) -> None:
    out = f"killed{n}"
    process = start(folder, out, "--workers", "2")
    while n == 0 and not list((folder / out / "pretraining").glob("*/train.log")):
        time.sleep(0.05)  # in the middle of pretraining
    workers = wait_for_cells(process, folder / out, n)
    process.kill()
    process.communicate()
    psutil.wait_procs(workers, timeout=30)
    assert not [worker for worker in workers if worker.is_running()]  # nobody is left behind
    kept = {f: f.stat().st_mtime_ns for f in (folder / out / "cells").glob("*.npz")}
    assert len(kept) >= n
    code, err = finish(start(folder, out, "--workers", "1", "--resume"))
    assert code == 0, err
    assert table(folder, out) == reference
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


@pytest.mark.parametrize("how", ["--cluster local:2", "--workers 2"])
@pytest.mark.parametrize("n", [3, 13])  # among the frozen ones, and when networks are trained
def test_a_signal_is_told_and_a_cluster_gives_the_same(
    folder: Path, reference: list[dict[str, str]], how: str, n: int
) -> None:
    out = f"{how.replace(' ', '').replace(':', '')}-{n}"
    process = start(folder, out, *how.split())
    wait_for_cells(process, folder / out, n)
    process.send_signal(signal.SIGTERM)
    code, err = finish(process)
    assert code == 75, err
    assert "--resume goes on with what is not done yet" in err
    code, err = finish(start(folder, out, *how.split(), "--resume"))
    assert code == 0, err
    assert table(folder, out) == reference


def test_ctrl_c_leaves_no_backbone_that_counts_as_pretrained(folder: Path) -> None:
    settings = {**PLAN["pretraining"]["p"], "steps": 60, "checkpoint_every": 1}
    contenders = {"pretrained": PLAN["contenders"]["pretrained"]}
    plan = {**PLAN, "seeds": 1, "pretraining": {"p": settings}, "contenders": contenders}
    del plan["rates"]
    (folder / "longer.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    runs = folder / "interrupted" / "pretraining"
    process = start(folder, "interrupted", "--workers", "1", plan="longer.yaml")
    while process.poll() is None and not list(runs.glob("*/checkpoints/last.safetensors")):
        time.sleep(0.05)
    assert process.poll() is None, process.stderr.read()
    workers = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it
    code, err = finish(process)
    assert code == 130, err
    psutil.wait_procs(workers, timeout=60)
    assert not [worker for worker in workers if worker.is_running()]
    assert list(runs.glob("*/checkpoints/last.safetensors"))
    assert not list(runs.glob("*/exported/backbone.safetensors"))
    code, err = finish(start(folder, "interrupted", "--resume", plan="longer.yaml"))
    assert code == 0, err
    (weights,) = runs.glob("*/exported/backbone.safetensors")
    assert load_checkpoint(weights, "backbone")[0].training["steps"] == 60


def test_a_process_that_dies_is_one_line(folder: Path) -> None:
    process = start(folder, "dies", "--workers", "1")
    (worker, *_) = (
        w
        for w in wait_for_cells(process, folder / "dies", 2)
        if "spawn_main" in " ".join(w.cmdline())
    )
    worker.kill()
    code, err = finish(process)
    assert code == 1
    assert err.splitlines()[-1].startswith("error: a process died (exit code -9)")
