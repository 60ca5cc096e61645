from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from benchmarks.classification import main, parse
from benchmarks.classifying.brains import simulated
from benchmarks.classifying.classifiers import Backbones
from benchmarks.classifying.config import QUICK
from benchmarks.classifying.processes import Usage, measured
from benchmarks.classifying.quality import Quality, Scored
from benchmarks.classifying.report import met, summarise, tables
from cubeclf_core.cells import read_cells
from cubeclf_core.errors import RunFailed
from cubeclf_core.fast import fastest

ROOT = Path(__file__).parents[2]


def speeds(ours: float = 5.0, many: float = 100.0) -> dict[str, tuple[int, Usage]]:
    def of(seconds: float, gigabytes: float = 1.0) -> Usage:
        return Usage(seconds, 2 * seconds, int(gigabytes * 1e9))

    return {
        "crop.cellfinder.resnet50.untrained": (3000, of(100)),
        "crop.cellfinder.nano.keras": (3000, of(20)),
        "crop.cubeclf.nano.fast": (3000, of(ours)),
        "simulated.cellfinder.resnet50.untrained": (3000, of(90)),
        "simulated.cubeclf.nano.fast": (3000, of(ours)),
        "tissue 200000.cubeclf.nano.fast": (200_000, of(many, 1.1)),
        "tissue 20000.cubeclf.nano.fast": (20_000, of(10)),
    }


def scores(fast: float = 0.7) -> list[Scored]:
    return [
        Scored("nano", "exact", "695", True, 0.7, 0.4),
        Scored("nano", "exact", "753", True, 0.6, 0.2),
        Scored("nano", "fast", "695", True, fast, 0.4),
        Scored("nano", "fast", "753", True, 0.6005, 0.2),
    ]


def test_ratios_are_of_the_brain_where_ours_does_worse() -> None:
    figures = {"cpu_units": "amx_bf16", **summarise(speeds(), scores())}
    assert figures["classify_over_cellfinder"] == 18
    assert figures["classify_over_cellfinder.crop"] == 20
    assert figures["keras_over_resnet50"] == 5
    assert figures["growth_200k_over_20k"] == 10
    assert figures["memory_200k_over_20k"] == pytest.approx(1.1)
    assert figures["crop.cubeclf.nano.fast.per_second"] == 600
    assert figures["nano.fast.average_precision"] == pytest.approx(0.65025)
    assert figures["nano.fast.ap_less_share"] == pytest.approx(0.35025)
    assert figures["nano.fast.lost"] == pytest.approx(0)
    assert met(figures)
    assert "MISSED" not in tables(figures)
    assert "~0.6500" in tables(figures)  # of keras, which is not scored again


@pytest.mark.parametrize(
    ("given", "beside"),
    [
        ((speeds(ours=12), scores()), {}),
        ((speeds(many=106), scores()), {}),
        ((speeds(), scores(fast=0.697)), {}),
        ((speeds(), scores()), {"resnet18.ap_less_share": 0.36}),
    ],
    ids=["slow", "growing", "losing", "below ResNet-18"],
)
def test_what_is_not_reached_is_said(given: tuple[dict, list], beside: dict[str, float]) -> None:
    assert not met({"cpu_units": "amx_bf16", **summarise(*given), **beside})


def test_a_processor_without_units_has_less_to_reach() -> None:
    assert met({"cpu_units": "none", **summarise(speeds(ours=12), scores())})


def test_memory_and_time_are_those_of_all_processes(tmp_path: Path) -> None:
    work = "import time; x = bytearray(300_000_000); time.sleep(1.5); sum(range(10**7))"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])"
    used = measured([sys.executable, "-c", code], tmp_path / "log")
    assert used.seconds > 1.5
    assert 0.05 < used.cpu_seconds < used.seconds + 1
    assert 3e8 < used.peak_bytes < 6e8
    with pytest.raises(RunFailed, match=r"exit code 3: no room \(all it said is in .*log\)"):
        measured([sys.executable, "-c", "print('no room'); exit(3)"], tmp_path / "log")


def test_help_answers_without_torch() -> None:
    code = (
        "import sys; from benchmarks.classification import main\n"
        "try: main(['--help'])\nexcept SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'sklearn', 'zarr'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--no-cellfinder" in done.stdout


def test_bad_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--rounds", "0"]) == 2
    assert main(["--quick", "--sizes", "tiny"]) == 2
    assert main(["--quick", "--formats", "fast", "int8"]) == 2
    with pytest.raises(SystemExit):
        parse(["--sizes", "huge"])


@pytest.mark.slow
def test_quick_form_measures_and_keeps_what_it_made(tmp_path: Path) -> None:
    files = ["--json", str(tmp_path / "f.json"), "--plot", str(tmp_path / "f.svg")]
    words = ["--quick", "--no-cellfinder", "--formats", "fast", "torch", *files]
    assert main([*words, "--folder", str(tmp_path / "kept")]) == 0
    figures = json.loads((tmp_path / "f.json").read_text("utf-8"))
    assert figures["tissue 400.cubeclf.nano.fast.candidates"] == 400
    assert figures["growth_200k_over_20k"] > 0.5
    assert 0.1 < figures["simulated.cubeclf.nano.torch.peak_gb"] < 5
    assert figures["simulated.cubeclf.nano.fast.cpu_seconds"] > 1
    assert (tmp_path / "f.svg").exists()
    runs = tmp_path / "kept" / "classification" / "runs"
    table = (runs / "tissue-400.cubeclf.nano.fast-0" / "candidates.csv").read_text("utf-8")
    assert len(table.splitlines()) == 401


@pytest.mark.slow
def test_cellfinder_takes_part_and_keeps_every_candidate(tmp_path: Path) -> None:
    pytest.importorskip("cellfinder")
    subject = simulated(tmp_path, QUICK)
    script = [sys.executable, "-m", "benchmarks.classifying.by_cellfinder"]
    model, out = tmp_path / "resnet50.keras", tmp_path / "out.xml"
    measured([*script, "--make-resnet50", str(model)], tmp_path / "make.log")
    words = ["--signal", subject.signal, "--cells", subject.cells, "--model", model, "--out", out]
    words += ["--voxel-size-um", *subject.voxel_size_um]
    measured([*script, *map(str, words)], tmp_path / "run.log")
    assert len(read_cells(out)) == subject.n > 20
    planes = []
    for channel in range(2):
        folder = tmp_path / f"ch{channel}"
        folder.mkdir()
        for z in range(32):
            tifffile.imwrite(folder / f"{z:03}.tif", np.full((192, 192), 100 + z, np.uint16))
        planes.append(folder)
    words[1] = planes[0]
    words += ["--background", planes[1]]
    measured([*script, *map(str, words)], tmp_path / "planes.log")
    assert len(read_cells(out)) == subject.n


@pytest.mark.slow
def test_the_fastest_way_loses_nothing_that_counts_on_real_blocks(
    real_data: Path, tmp_path: Path
) -> None:
    """With random weights, and what is scored is scored once."""
    quality = Quality(real_data, tmp_path, Backbones(tmp_path))
    exact, fast = (list(quality.score("nano", form)) for form in ("exact", "fast"))
    for e, f in zip(exact, fast, strict=True):
        assert e.average_precision > e.share + 0.05
        assert e.average_precision - f.average_precision < 0.002
        if fastest()[1] == torch.bfloat16:
            assert e.average_precision != f.average_precision
    lines = (tmp_path / "quality.jsonl").read_text("utf-8")
    assert list(quality.score("nano", "fast")) == fast
    assert (tmp_path / "quality.jsonl").read_text("utf-8") == lines
