from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from sklearn.metrics import roc_auc_score

from cubeclf_core.cells import CELL, NO_CELL, Cells, read_cells
from cubeclf_core.errors import InputError
from cubeclf_core.rules import contrast, density
from cubeclf_core.simulate import VOXEL_SIZE_UM, simulate_brain

ROOT = Path(__file__).parents[2]
SMALL = (32, 128, 128)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = "from cubeclf_core.commands import simulate; simulate()"
    words = [sys.executable, "-W", "error", "-c", command, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)


def cuboids_around(signal: npt.NDArray[np.uint16], cells: Cells) -> npt.NDArray[np.uint16]:
    padded = np.pad(signal, ((10, 10), (25, 25), (25, 25)), mode="reflect")
    corners = cells.positions.astype(int)
    return np.stack([padded[z : z + 20, y : y + 50, x : x + 50] for z, y, x in corners])


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_brightness_and_crowding_do_not_tell_cells_from_artefacts(
    seed: int, tmp_path: Path
) -> None:
    out = tmp_path / "brain"
    done = run("--out", out, "--shape", 40, 224, 224, "--cells", 90, "--seed", seed)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        ".cubeclf",
        "brain.ome.zarr",
        "cells.xml",
        "preview.png",
    ]
    brain = np.asarray(zarr.open_group(out / "brain.ome.zarr", mode="r")["0"])
    cells = read_cells(out / "cells.xml")
    assert brain.shape == (2, 40, 224, 224)
    _, scores = contrast(cuboids_around(brain[0], cells), cells.labels)
    crowding = density(cells.positions, VOXEL_SIZE_UM)
    assert 0.6 < roc_auc_score(cells.labels, scores) < 0.8
    assert 0.25 < roc_auc_score(cells.labels, crowding) < 0.75


def test_command_writes_what_the_function_returns(tmp_path: Path) -> None:
    out = tmp_path / "brain"
    assert run("--out", out, "--shape", *SMALL, "--cells", 20, "--seed", 7).returncode == 0
    brain, cells = simulate_brain(SMALL, 20, 7)
    written = read_cells(out / "cells.xml")
    np.testing.assert_array_equal(zarr.open_group(out / "brain.ome.zarr", mode="r")["0"], brain)
    np.testing.assert_array_equal(written.positions, cells.positions)
    np.testing.assert_array_equal(written.types, cells.types)


def test_a_seed_is_a_brain() -> None:
    (first, cells), (again, same_cells), (other, _) = (
        simulate_brain(SMALL, 20, seed) for seed in (3, 3, 4)
    )
    assert first.tobytes() == again.tobytes()
    assert cells.positions.tobytes() == same_cells.positions.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    ("shape", "n_cells", "seed"),
    [(SMALL, 1, 0), (SMALL, 30, 1), ((20, 50, 50), 4, 2), ((24, 50, 300), 30, 3)],
)
def test_candidates_are_inside_and_counted(
    shape: tuple[int, int, int], n_cells: int, seed: int
) -> None:
    brain, cells = simulate_brain(shape, n_cells, seed)
    assert brain.shape == (2, *shape)
    assert brain.dtype == np.uint16
    assert (cells.types == CELL).sum() == n_cells
    assert set(cells.types.tolist()) == {CELL, NO_CELL}
    if n_cells >= 20:
        assert 0.59 < np.mean(cells.types == NO_CELL) < 0.66
    assert (cells.positions == np.rint(cells.positions)).all()
    assert (cells.positions >= 0).all()
    assert (cells.positions < shape).all()


def test_artefacts_do_not_sit_on_cells() -> None:
    _, cells = simulate_brain((48, 192, 192), 60, 0)
    um = cells.positions * VOXEL_SIZE_UM
    is_cell = cells.types == CELL
    gaps = np.linalg.norm(um[~is_cell, None] - um[None, is_cell], axis=2).min(axis=1)
    assert np.mean(gaps > 10) > 0.95


def test_cells_are_bright_in_the_signal_channel_and_not_in_the_other() -> None:
    brain, cells = simulate_brain((48, 192, 192), 60, 5)
    above = []
    for channel in brain:
        cuboids = cuboids_around(channel, cells)[cells.types == CELL]
        centre = cuboids[:, 9:12, 23:28, 23:28].mean(axis=(1, 2, 3))
        above.append(np.median(centre / np.median(cuboids, axis=(1, 2, 3))))
    assert above[0] > 1.2
    assert above[1] < 1.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", 10, 128, 128], "at least one cuboid"),
        (["--shape", *SMALL, "--cells", 0], "at least 1"),
        (["--shape", *SMALL, "--cells", 100000], "ask for at most"),
        (["--shape", *SMALL, "--cells", 5, "--seed", -1], "expected 0 or more"),
    ],
)
def test_impossible_values(arguments: list[object], message: str, tmp_path: Path) -> None:
    out = tmp_path / "brain"
    done = run("--out", out, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_replaced_only_when_told(tmp_path: Path) -> None:
    out = tmp_path / "brain"
    out.mkdir()
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    arguments = ("--out", out, "--shape", 20, 50, 50, "--cells", 3)
    done = run(*arguments)
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    assert run(*arguments, "--overwrite").returncode == 2  # a folder of something else
    (out / ".cubeclf").touch()
    assert run(*arguments, "--overwrite").returncode == 0
    assert (out / "cells.xml").stat().st_size > 0
    assert not (out / "notes.txt").exists()


def test_what_stood_there_stays_if_the_new_brain_is_impossible(tmp_path: Path) -> None:
    out = tmp_path / "brain"
    out.mkdir()
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    assert run("--out", out, "--shape", 9, 9, 9, "--overwrite").returncode == 2
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_too_many_cells_for_the_function() -> None:
    with pytest.raises(InputError, match="too many"):
        simulate_brain(SMALL, 10_000)
