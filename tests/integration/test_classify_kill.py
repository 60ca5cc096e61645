"""Classification that is killed, or whose workers are: the result is as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cubeclf_core.backbones import build_backbone
from cubeclf_core.cells import Cells, read_cells, write_cells
from cubeclf_core.pyramid import write_ome_zarr
from cubeclf_core.trained import Classifier, save_classifier
from cubeclf_core.vit import Vit3dConfig

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

RUN = "from finetune.commands import classify\nif __name__ == '__main__': classify()"
SHAPE = (30, 512, 1024)  # as wide as eight parts need it
PARTS = 8
N = 320


@dataclass(frozen=True)
class Input:
    folder: Path

    def words(self, out: Path, *more: object) -> list[str]:
        words = (self.folder / "brain.ome.zarr", "--classifier", self.folder / "c.safetensors")
        words = (*words, "--cells", self.folder / "cells.csv", "--part", 20, "--exact")
        return list(map(str, (*words, "--embeddings", "--out", out, *more)))

    def start(self, out: Path, *more: object) -> subprocess.Popen[str]:
        arguments = [sys.executable, "-c", RUN, *self.words(out, *more)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Input:
    """A brain of noise, and a network that has not learned anything."""
    folder = tmp_path_factory.mktemp("given")
    random = np.random.default_rng(0)
    voxels = random.poisson(9, SHAPE).astype(np.uint16)
    write_ome_zarr(folder / "brain.ome.zarr", [voxels], (5.0, 1.0, 1.0))
    positions = np.floor(random.uniform(0, SHAPE, (N, 3)))
    write_cells(folder / "cells.csv", Cells(positions, np.ones(N, np.int64)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = Classifier(build_backbone(Vit3dConfig(size="nano", channels=1), seed=0))
    save_classifier(folder / "c.safetensors", classifier, {})
    return Input(folder)


def finish(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    _, err = process.communicate(timeout=240)
    return process.returncode, err.splitlines()


def succeed(process: subprocess.Popen[str]) -> None:
    code, err = finish(process)
    assert code == 0, err


@pytest.fixture(scope="module")
def uninterrupted(given: Input, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    succeed(given.start(out))
    return out


def done_parts(out: Path) -> list[Path]:
    try:
        return sorted((out / "parts").glob("part_*"))
    except FileNotFoundError:  # removed while it was being looked into
        return []


def wait_until(happened: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def wait_for_parts(process: subprocess.Popen[str], out: Path, n: int) -> None:
    wait_until(lambda: process.poll() is not None or len(done_parts(out)) >= n)


def assert_same(out: Path, reference: Path) -> None:
    for name in ("candidates.csv", "embeddings.npy", *(f"points/{p}" for p in POINTS)):
        assert (out / name).read_bytes() == (reference / name).read_bytes(), name
    found, expected = (json.loads((run / "summary.json").read_text()) for run in (out, reference))
    for key in ("reading_s", "waiting_s"):
        del found[key], expected[key]
    assert found == expected
    assert not (out / "parts").exists()


POINTS = ("cells.xml", "cell_classification.xml", "cell_classification.yml")


def watch_until_done(process: subprocess.Popen[str], out: Path) -> dict[Path, tuple[int, int]]:
    """Which file each part was when last seen; they are removed in the end."""
    seen: dict[Path, tuple[int, int]] = {}

    def look() -> bool:
        for part in done_parts(out):
            with suppress(FileNotFoundError):
                seen[part] = written(part)
        return process.poll() is not None

    wait_until(look, 240)
    succeed(process)
    return seen


def written(part: Path) -> tuple[int, int]:
    status = part.stat()
    return status.st_ino, status.st_mtime_ns


def test_a_killed_run_goes_on_with_what_was_left(
    given: Input, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = given.start(out)
    wait_for_parts(process, out, 3)
    process.kill()
    finish(process)
    *kept, torn = done_parts(out)
    assert 2 <= len(kept) < PARTS - 1
    assert not (out / "candidates.csv").exists()
    before = {part: written(part) for part in kept}
    torn.write_bytes(torn.read_bytes()[:-1])  # as by a file system that lost power
    seen = watch_until_done(given.start(out, "--resume"), out)
    assert {part: seen[part] for part in kept} == before
    assert_same(out, uninterrupted)


@pytest.mark.slow
def test_a_signal_leaves_and_other_settings_do_not_go_on(
    given: Input, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = given.start(out)
    wait_for_parts(process, out, 1)
    process.send_signal(signal.SIGTERM)
    code, err = finish(process)
    assert code == 75, err
    assert "--resume goes on" in err[-1]
    file = given.folder / "cells.csv"
    cells = read_cells(file)
    try:
        write_cells(file, cells[np.arange(N)[::-1]])
        changed = finish(given.start(out, "--resume"))
    finally:
        write_cells(file, cells)
    assert changed[0] == 2
    assert "the list of candidates of brain is not what the run" in changed[1][-1]
    settings = finish(given.start(out, "--resume", "--tta"))
    assert settings[0] == 2
    assert "--tta is True" in settings[1][-1]
    succeed(given.start(out, "--resume"))
    assert_same(out, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_the_result_does_not_depend_on_the_number_of_workers(
    workers: int, given: Input, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    succeed(given.start(out, "--cluster", f"local:{workers}"))
    assert_same(out, uninterrupted)


def dask(*words: object) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "distributed.cli." + str(words[0]), *map(str, words[1:])]
    return subprocess.Popen(
        arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, text=True, env=environment
    )


@contextmanager
def scheduler_with(n: int, folder: Path) -> Iterator[tuple[Any, list[subprocess.Popen[str]]]]:
    """A scheduler and workers as a lab starts them, each a process of its own; all are there.

    Gives a client of the scheduler, and the workers, which are named by their numbers.
    """
    distributed = pytest.importorskip("distributed")
    file = folder / "scheduler.json"
    with ExitStack() as stack:

        def start(*words: object) -> subprocess.Popen[str]:
            process = dask(*words)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        flags = ("--scheduler-file", file, "--port", 0, "--no-dashboard", "--no-jupyter")
        start("dask_scheduler", *flags)
        wait_until(file.exists)
        quiet = ("--no-nanny", "--no-dashboard", "--nthreads", 1, "--memory-limit", 0)
        flags = ("--scheduler-file", file, *quiet, "--local-directory", folder)
        workers = [start("dask_worker", *flags, "--name", f"worker {i}") for i in range(n)]
        options = {"scheduler_file": str(file), "set_as_default": False}
        client = stack.enter_context(distributed.Client(**options, timeout=60))
        client.wait_for_workers(n, timeout=60)
        yield client, workers


def busy(client: Any, name: str) -> bool:
    """Whether a worker has been given a task that is not done."""
    known = client.scheduler_info(n_workers=-1)["workers"]
    (address,) = (where for where, worker in known.items() if worker["name"] == name)
    return bool(client.processing([address])[address])


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_its_part_and_nothing_else(
    given: Input, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with scheduler_with(2, tmp_path) as (client, workers):
        process = given.start(out, "--cluster", tmp_path / "scheduler.json")
        wait_for_parts(process, out, 2)
        assert busy(client, "worker 0")
        workers[0].kill()
        workers[0].wait()
        before = {part: written(part) for part in done_parts(out)}
        assert 2 <= len(before) < PARTS
        seen = watch_until_done(process, out)
    assert_same(out, uninterrupted)
    assert {part: seen[part] for part in before} == before


@pytest.mark.slow
def test_no_scheduler_is_told(given: Input, tmp_path: Path) -> None:
    code, err = finish(given.start(tmp_path / "out", "--cluster", "tcp://127.0.0.1:1"))
    assert code == 2
    assert "no scheduler of dask answers at tcp://127.0.0.1:1" in err[-1]
    assert not (tmp_path / "out").exists()
