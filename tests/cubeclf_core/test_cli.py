from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cubeclf_core.checkpoint import load_checkpoint


def test_printed_config_is_read_back(command, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    flags = ("a.zarr", "b.zarr", "--out", "r", "--method", "dino", "--settings.prototypes", "77")
    printed = command("cubeclf-pretrain", *flags, "--print-config")
    assert printed.code == 0
    settings = yaml.safe_load(printed.out)
    assert settings["brains"] == ["a.zarr", "b.zarr"]
    assert settings["settings"] == {"prototypes": 77}
    file.write_text(printed.out)
    again = command("cubeclf-pretrain", "--config", file, "--print-config")
    assert again.out == printed.out
    changed = command("cubeclf-pretrain", f"--config={file}", "--method", "mae", "--print-config")
    assert yaml.safe_load(changed.out) == {**settings, "method": "mae"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--brains"),
        (("a.zarr", "--out", "r", "--method", "moco"), "mae"),
        (("a.zarr", "--out", "r", "--steps", "many"), "--steps"),
        (("a.zarr", "--out", "r", "--no-such-flag", "1"), "--no-such-flag"),
        (("--config",), "--config"),
        (("--config", "missing.yaml"), "missing.yaml"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(command, arguments, says: str) -> None:
    outcome = command("cubeclf-pretrain", *arguments)
    assert outcome.code == 2
    assert len(outcome.lines) == 1
    assert says in outcome.lines[0]


def test_config_file_with_an_unknown_setting_is_refused(command, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("brains: [a.zarr]\nout: r\nlerning_rate: 1.0\n")
    outcome = command("cubeclf-pretrain", "--config", file, "--print-config")
    assert outcome.code == 2
    assert len(outcome.lines) == 1
    assert "lerning" in outcome.lines[0]


def test_unexpected_error_is_one_line_and_debug_shows_the_rest(
    command, tmp_path, monkeypatch
) -> None:
    def fail(config: object) -> None:
        raise ZeroDivisionError("the\nfrobnicator")

    monkeypatch.setattr("cubeclf_core.simulate.simulate", fail)
    outcome = command("cubeclf-simulate", "--out", tmp_path / "x")
    assert (outcome.code, len(outcome.lines)) == (1, 1)
    assert "frobnicator" in outcome.lines[0]
    shown = command("cubeclf-simulate", "--out", tmp_path / "x", "--debug")
    assert shown.code == 1
    assert "Traceback" in shown.err
    assert shown.lines[-1] == outcome.lines[0]


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_ctrl_c_stops_with_130_and_keeps_what_was_learned(simulated, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code = "from pretrain.commands import pretrain; pretrain()"
    flags = ["--out", str(run), "--size", "nano", "--steps", "100000", "--batch-size", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(simulated(0).volume), *flags, "--log-every", "1"],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 400  # a loaded machine takes a minute to import torch
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=200)
    finally:
        process.kill()  # does nothing to one that has ended
    assert process.returncode == 130
    assert err.strip().splitlines()[-1] == "error: interrupted"
    header, tensors = load_checkpoint(run, "backbone")
    assert header.training["steps"] >= 1
    assert tensors
