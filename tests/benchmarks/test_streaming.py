from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.config import StreamingConfig
from benchmarks.measure import Effort, measure
from benchmarks.report import TARGETS
from benchmarks.streaming import main
from benchmarks.streams import decoded_chunks, kept_chunks, make_stream, told, unread
from benchmarks.volume import Tissue
from cubeclf_core.volumes import ArraySource, Volume

ROOT = Path(__file__).parents[2]
TINY = Effort(
    shape=(64, 256, 256),
    small=(64, 128, 128),
    rounds=1,
    seconds=0.05,
    candidates=50,
    batches=20,
    gigabyte=1 << 26,
    live_chunks=16,
)


@pytest.mark.slow
def test_writes_all_figures_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out" / "figures.json"
    config = StreamingConfig(json=file, folder=tmp_path / "made", memory_gb=1.0, threads=1)
    measure(config, TINY)
    figures = json.loads(file.read_text("utf-8"))
    assert set(TARGETS) <= set(figures)
    assert all(isinstance(value, str | int | float) for value in figures.values())
    assert all(math.isfinite(figures[key]) and figures[key] > 0 for key in TARGETS)
    assert 1.8 < figures["compression_ratio"] < 2.4
    assert figures["design_effect_unshuffled"] > 5
    assert figures["design_effect_independent"] == pytest.approx(1, abs=0.2)
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "must reach" in said
    assert "zarr-python, one by one" in said


def test_bad_input_is_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--volume", str(tmp_path / "no.zarr")]) == 2
    assert main(["--memory-gb", "0"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_answers_without_what_it_measures() -> None:
    code = (
        "import sys; from benchmarks.streaming import parse\n"
        "try: parse(['--help'])\nexcept SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'dask', 'zarr'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout


def test_tissue_is_the_same_however_it_is_read() -> None:
    tissue = Tissue((80, 150, 160), 0)
    whole = tissue[0:80, 0:150, 0:160]
    part = tissue[60:71, 120:140, 100:160]
    assert np.abs(whole[60:71, 120:140, 100:160].astype(int) - part).max() <= 1  # float rounding
    assert not np.array_equal(whole, Tissue((80, 150, 160), 1)[0:80, 0:150, 0:160])
    assert np.corrcoef(whole[:13].ravel(), whole[67:].ravel())[0, 1] < 0.9  # only noise repeats


def test_reads_are_counted_in_chunks() -> None:
    volume = Volume("v", (ArraySource(np.zeros((128, 256, 256), np.uint8)),), (5, 1, 1))
    counted = told(volume)
    counted.read((0, 0, 0), (64, 128, 128))
    counted.read((63, 127, 0), (65, 129, 128))
    assert decoded_chunks(counted.reads, volume.chunk_shape) == 1 + 4
    assert kept_chunks(counted.reads) == 1 + 2 * 2 * 128 / 2**20


def test_origins_do_not_depend_on_what_is_read() -> None:
    array = np.full((64, 256, 256), 65535, np.uint16)
    volume = Volume("v", (ArraySource(array),), (5, 1, 1))
    nothing, seen = unread(volume, volume.shape)
    drawn, expected = (
        make_stream(of, seen, memory_bytes=1 << 26).batch(3) for of in (nothing, told(volume))
    )
    np.testing.assert_array_equal(drawn.origin, expected.origin)
