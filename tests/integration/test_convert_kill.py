"""Conversions that are killed, and what they take: real processes, measured from outside."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cubeclf_core.volumes import open_volume

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

CODE = "from cubeclf_core.commands import convert; convert()"
# A child's peak begins with what its parent had, so the parent has to be a small one.
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
SIZE = ("--voxel-size-um", "5", "2", "2")
SHAPE = (160, 400, 500)


@contextmanager
def converting(*words: object) -> Iterator[subprocess.Popen[str]]:
    arguments = [sys.executable, "-W", "error", "-c", CODE, *map(str, words), *SIZE]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def convert(*words: object) -> tuple[int, list[str]]:
    with converting(*words) as process:
        _, err = process.communicate(timeout=240)
    return process.returncode, err.splitlines()


def wait_until_done(process: subprocess.Popen[str], work: Path, n_units: int) -> None:
    while process.poll() is None and len(journal(work)) < n_units:
        time.sleep(0.002)


def journal(work: Path) -> list[str]:
    """The units that are recorded, without one that was torn."""
    file = work / "done"
    return file.read_text().split("\n")[:-1] if file.exists() else []


def shard(store: Path, unit: str) -> Path:
    level, *place = unit.split()
    return store.joinpath(level, "c", *place)


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two channels; a conversion takes about a second and 30 units."""
    rng = np.random.default_rng(0)
    folders = [tmp_path_factory.mktemp(f"ch{c}") for c in (0, 1)]
    for folder in folders:
        for z in range(SHAPE[0]):
            plane = rng.integers(1, 4000, SHAPE[1:], "uint16")
            tifffile.imwrite(folder / f"plane{z}.tif", plane)
    return folders


def test_killed_again_and_again_it_ends_as_if_never(planes: list[Path], tmp_path: Path) -> None:
    out, whole = tmp_path / "killed" / "brain.ome.zarr", tmp_path / "whole" / "brain.ome.zarr"
    work = out.with_name(".converting-brain.ome.zarr")
    assert convert(*planes, "--out", whole)[0] == 0
    written: dict[str, tuple[int, int]] = {}  # inode and time of the file of each finished unit
    for more in (1, 3, 7):
        n_before = len(written)
        with converting(*planes, "--out", out) as process:
            wait_until_done(process, work, n_before + more)
            process.send_signal(signal.SIGKILL)
            _, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, err
        if n_before:
            assert err.startswith(f"continuing: {n_before} of 26 units are done\n")
        assert not out.exists()
        units = journal(work)
        assert len(set(units)) == len(units) >= n_before + more
        now = {unit: shard(work / "store", unit).stat() for unit in units}
        now_written = {unit: (stat.st_ino, stat.st_mtime_ns) for unit, stat in now.items()}
        assert written.items() <= now_written.items()
        written = now_written
    code, lines = convert(*planes, "--out", out, "--verify")
    assert code == 0
    assert lines[0] == f"continuing: {len(written)} of 26 units are done"
    for unit, was in written.items():
        stat = shard(out, unit).stat()
        assert (stat.st_ino, stat.st_mtime_ns) == was
    assert contents(out) == contents(whole)
    assert [path.name for path in out.parent.iterdir()] == ["brain.ome.zarr"]


def test_interrupted_it_keeps_what_is_done(planes: list[Path], tmp_path: Path) -> None:
    out, work = tmp_path / "brain.ome.zarr", tmp_path / ".converting-brain.ome.zarr"
    for _ in range(5):  # on a busy machine it may be over before it is interrupted
        with converting(*planes, "--out", out) as process:
            wait_until_done(process, work, 2)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        if process.returncode:
            break
        shutil.rmtree(out)
    assert process.returncode == 130, err
    kept, last = err.splitlines()
    n_done = len(journal(work))
    assert kept.startswith(f"{n_done} of 26 units are done and kept in {work}; the same command")
    assert last == "error: interrupted"
    assert not out.exists()
    code, lines = convert(planes[0], "--out", out)
    assert code == 0
    changed = "the inputs and their shape changed since the conversion was interrupted"
    assert lines[0] == f"starting over: {changed}"


def test_two_do_not_write_one_output(planes: list[Path], tmp_path: Path) -> None:
    out, work = tmp_path / "brain.ome.zarr", tmp_path / ".converting-brain.ome.zarr"
    with converting(*planes, "--out", out) as first:
        wait_until_done(first, work, 1)
        first.send_signal(signal.SIGSTOP)
        code, lines = convert(*planes, "--out", out)
        assert code == 2
        (line,) = lines
        assert line.startswith(f"error: brain.ome.zarr is being written by process {first.pid} on ")
        first.send_signal(signal.SIGCONT)
        _, err = first.communicate(timeout=60)
    assert first.returncode == 0, err
    volume = open_volume(out)
    assert (volume.shape, volume.n_channels) == (SHAPE, 2)


@pytest.mark.slow
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_peak_memory_is_below_the_setting(tmp_path: Path, compression: str | None) -> None:
    planes, out = tmp_path / "planes", tmp_path / "brain.ome.zarr"
    planes.mkdir()
    rows = np.arange(2000, dtype="uint16")
    for z in range(160):  # the same few files again and again: 1.5 GB of voxels
        file = planes / f"plane{z}.tif"
        if z < 4:
            plane = np.add.outer(rows % (z + 2), np.arange(2300, dtype="uint16") % 97)
            tifffile.imwrite(file, plane, compression=compression)
        else:
            os.link(planes / f"plane{z % 4}.tif", file)
    setting = 0.45 if compression is None else 0.75  # decoded planes are kept, 0.27 GB of them
    words = [sys.executable, "-c", CODE, planes, "--out", out, "--memory-gb", setting, *SIZE]
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, words)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    peak = int(measured.stdout) * (1 if sys.platform == "darwin" else 1024) / 1e9
    assert 0.4 * setting < peak < setting
