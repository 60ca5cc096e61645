"""The whole command on two processes, as torchrun starts them, against one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="gloo and POSIX signals"),
]

SETTINGS = {
    "simclr": (),
    "mae": (),
    "dino": ("--settings.prototypes", "64", "--settings.local-views", "1"),
    "dinov2": ("--settings.prototypes", "64", "--settings.local-views", "1"),
}
COMMON = ("--size", "nano", "--batch-size", "8", "--memory-gb", "0.5")
OFTEN = ("--log-every", "1", "--checkpoint-every", "3", "--logger", "none")


def start(
    ranks: int, volume: Path, out: Path, method: str, *more: str, steps: int = 8
) -> subprocess.Popen:
    command = Path(sysconfig.get_path("scripts")) / "cubeclf-pretrain"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    words = (str(volume), "--out", str(out), "--method", method, "--steps", str(steps))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [
            sys.executable,
            *launcher,
            str(command),
            *words,
            *COMMON,
            *OFTEN,
            *SETTINGS[method],
            *more,
        ],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def losses(out: Path) -> dict[int, float]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.parametrize("method", list(SETTINGS))
def test_two_processes_follow_one(method: str, simulated, tmp_path: Path) -> None:
    for ranks in (1, 2):
        process = start(ranks, simulated(0).volume, tmp_path / str(ranks), method)
        _, err = process.communicate(timeout=400)
        assert process.returncode == 0, err
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert one.keys() == two.keys()
    assert len(one) == 8
    for step, loss in one.items():
        assert two[step] == pytest.approx(loss, rel=1e-3, abs=1e-4), step
    weights = [load_file(tmp_path / n / "exported" / "backbone.safetensors") for n in "12"]
    for name, expected in weights[0].items():
        # AdamW turns rounding into steps of a learning rate where a gradient is nearly zero.
        assert (weights[1][name] - expected).abs().mean() < 2e-4, name


def test_two_processes_stop_together_and_go_on(simulated, tmp_path: Path) -> None:
    out, volume = tmp_path / "run", simulated(0).volume
    process = start(2, volume, out, "mae", steps=400)
    while process.poll() is None and not (out / "checkpoints").exists():
        time.sleep(0.1)
    assert process.poll() is None, process.stderr.read()
    listed = subprocess.check_output(["ps", "-o", "pid=", "--ppid", str(process.pid)], text=True)
    os.kill(int(listed.split()[-1]), signal.SIGUSR1)  # one of them is enough
    _, err = process.communicate(timeout=400)
    assert "stopped by" in err
    done = max(losses(out)) + 1
    assert done < 400
    process = start(2, volume, out, "mae", "--resume", steps=400)
    while process.poll() is None and max(losses(out)) < done + 3:
        time.sleep(0.1)
    process.terminate()
    _, err = process.communicate(timeout=400)
    assert f"resuming  after {done} of 400 steps" in err
