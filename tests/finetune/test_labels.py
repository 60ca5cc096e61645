"""Labels of several files together: each once, of one class, with where it is from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cubeclf_core.brains import load_brains
from cubeclf_core.cells import Cells, read_cells, write_cells
from cubeclf_core.errors import CellsError, CellsOutside, InputError
from cubeclf_core.vit import Vit3dConfig
from finetune.labels import check_both_classes, read_labelled
from finetune.repeats import keep_once, pair_by_place
from finetune.sources import find_labels, reach_um, read_sources

NETWORK = Vit3dConfig(size="nano", channels=1)
POSITIONS = np.array([[12, 40, 60], [15, 50, 70], [20, 30, 80], [25, 60, 60], [14, 66, 33.0]])
TYPES = np.array([2, 1, 2, 1, 2])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A volume with five labels."""
    voxels = np.random.default_rng(0).integers(0, 999, (40, 100, 120)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "ch0.tif", voxels)
    write_cells(tmp_path / "cells.xml", Cells(POSITIONS, TYPES))
    return tmp_path


def entry(**changes: Any) -> dict[str, Any]:
    base = {"name": "mouse", "signal": "ch0.tif", "cells": "cells.xml", "voxel_size_um": [5, 2, 2]}
    return base | changes


def brains(folder: Path, *entries: dict[str, Any], name: str = "brains.yaml") -> Path:
    (folder / name).write_text(yaml.safe_dump(list(entries)))
    return folder / name


def cubes(folder: Path, like=POSITIONS, voxels=None, name: str = "cubes", **more: Any) -> Path:
    """A training YAML with a cube of random voxels, or of those given, for each position."""
    random = np.random.default_rng(1)
    entries = []
    for i, (position, kind) in enumerate(zip(like.astype(int), TYPES, strict=False)):
        kind = "cell" if kind == 2 else "no_cell"
        z, y, x = position
        file = folder / name / kind / f"pCellz{z}y{y}x{x}Ch0.tif"
        file.parent.mkdir(parents=True, exist_ok=True)
        cube = random.integers(0, 999, (20, 50, 50)) if voxels is None else voxels[i]
        tifffile.imwrite(file, cube.astype(np.uint16))
    for kind in ("cell", "no_cell"):
        folders = {"cube_dir": f"{name}/{kind}", "type": kind, "bg_channel": -1}
        entries.append(folders | more)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"data": entries}))
    return folder / f"{name}.yaml"


def read_all(brain_files: list[Path], cube_files: list[Path], network: Vit3dConfig, **more: Any):
    """Labels of all these files, and what there is to say of them."""
    return read_sources(find_labels(brain_files, cube_files), network, **more)


def test_labels_of_a_brain_know_where_they_are_from(folder: Path) -> None:
    (brain,) = load_brains([brains(folder, entry(group="animal 1"))])
    data = read_labelled(brain, NETWORK)
    positions = read_cells(folder / "cells.xml").positions
    np.testing.assert_array_equal(data.positions_um, positions * [5, 2, 2])
    assert data.brains == ["animal 1"] * 5
    z, y, x = positions[3].astype(int)
    assert data.sources[3] == f"mouse/cells.xml {z},{y},{x}"
    some = data.subset(np.array([3, 1]))
    assert some.sources == [data.sources[3], data.sources[1]]
    np.testing.assert_array_equal(some.positions_um, data.positions_um[[3, 1]])


def test_brains_and_cubes_come_together(folder: Path) -> None:
    data, remarks = read_all([brains(folder, entry())], [cubes(folder)], NETWORK)
    assert len(data) == 10
    assert data.brains == ["mouse"] * 5 + ["cubes"] * 5
    assert data.labels.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]  # XML is sorted by type
    assert len(remarks) == 1
    assert remarks[0].startswith("cubes of cubes count as another animal than mouse")
    same, remarks = read_all([brains(folder, entry())], [cubes(folder, group="mouse")], NETWORK)
    assert set(same.brains) == {"mouse"}
    assert remarks == []


def test_labels_given_twice_are_kept_once_and_told(folder: Path) -> None:
    shifted = Cells(np.concatenate([POSITIONS[:2] + 0.4, [[30, 50, 50]]]), np.array([2, 1, 2]))
    write_cells(folder / "more.csv", shifted)
    files = [
        brains(folder, entry()),
        brains(folder, entry(cells="more.csv"), name="more.yaml"),  # of one name: one brain
    ]
    data, remarks = read_all(files, [], NETWORK)
    assert len(data) == 6
    assert data.sources[-1] == "mouse/more.csv 30,50,50"
    assert len(remarks) == 1
    assert remarks[0].startswith("2 labels are given twice; kept once: ")
    assert "mouse/cells.xml 12,40,60 = mouse/more.csv 12.4,40.4,60.4" in remarks[0]
    alone, _ = read_all(files[:1], [], NETWORK)
    assert data.subset(np.arange(5)).sources == alone.sources


def test_labels_that_contradict_are_refused(folder: Path) -> None:
    write_cells(folder / "b.yml", Cells(POSITIONS, 3 - TYPES))
    files = [brains(folder, entry()), brains(folder, entry(cells="b.yml"), name="b.yaml")]
    with pytest.raises(InputError) as error:
        read_all(files, [], NETWORK)
    said = str(error.value)
    assert said.startswith("5 labels contradict another of the same place: ")
    assert "mouse/cells.xml 12,40,60 (cell) and mouse/b.yml 12,40,60 (no cell)" in said
    assert "and 2 more; correct or remove" in said
    again = Cells(POSITIONS[[0, 1, 2, 3, 0, 0]], np.array([2, 1, 2, 1, 2, 1]))
    write_cells(folder / "c.csv", again)  # three times: cell, cell, no cell
    with pytest.raises(InputError, match="1 label contradicts"):
        read_all([brains(folder, entry(cells="c.csv"))], [], NETWORK)


def test_one_place_of_two_volumes_is_two_labels(folder: Path) -> None:
    tifffile.imwrite(folder / "ch1.tif", tifffile.imread(folder / "ch0.tif")[::-1])
    file = brains(folder, entry(), entry(name="other", signal="ch1.tif"))
    data, remarks = read_all([file], [], NETWORK)
    assert (len(data), remarks) == (10, [])


def test_one_volume_in_two_groups_is_refused(folder: Path) -> None:
    other = entry(name="other")
    with pytest.raises(InputError, match="mouse and other are one volume"):
        find_labels([brains(folder, entry(), other)])
    data, remarks = read_all([brains(folder, entry(), other | {"group": "mouse"})], [], NETWORK)
    assert len(data) == 5
    assert "5 labels are given twice" in remarks[0]


def test_cubes_of_one_name_in_a_group_are_one_and_in_two_groups_two(folder: Path) -> None:
    files = [cubes(folder, group="m"), cubes(folder, POSITIONS[:4], name="again", group="m")]
    fresh = np.random.default_rng(7).integers(0, 99, (4, 20, 50, 50))
    cubes(folder, POSITIONS[:4], fresh, name="again", group="m")  # other voxels, same names
    data, remarks = read_all([], files, NETWORK)
    assert len(data) == 5
    assert "4 labels are given twice; kept once: " in remarks[0]
    assert "cell/pCellz12y40x60Ch0.tif" in remarks[0]
    cubes(folder, POSITIONS[:4], fresh, name="again", group="another mouse")
    data, remarks = read_all([], files, NETWORK)
    assert (len(data), remarks) == (9, [])


def test_cubes_of_the_same_voxels_are_one_whatever_their_name_and_group(folder: Path) -> None:
    voxels = np.random.default_rng(7).integers(0, 99, (5, 20, 50, 50))
    files = [
        cubes(folder, voxels=voxels, name="a"),
        cubes(folder, POSITIONS + 1, voxels, name="b"),
    ]
    data, remarks = read_all([], files, NETWORK)
    assert set(data.brains) == {"a"}
    assert len(data) == 5
    assert "5 labels are given twice" in remarks[0]
    cubes(folder, POSITIONS + 1, voxels[[1, 0, 2, 3, 4]], name="b")
    with pytest.raises(InputError, match=r"2 labels contradict .*a?cell/pCell.* \(cell\) and "):
        read_all([], files, NETWORK)


def test_blank_cubes_are_not_taken_for_one_place(folder: Path) -> None:
    data, remarks = read_all([], [cubes(folder, voxels=np.full((5, 20, 50, 50), 7))], NETWORK)
    assert (len(data), remarks) == (5, [])


@pytest.mark.parametrize("n", [2, 4, 5, 7])
def test_so_many_labels_as_are_wanted_are_drawn_of_all_files(folder: Path, n: int) -> None:
    files = [brains(folder, entry())], [cubes(folder, group="mouse")]
    everything, _ = read_all(*files, NETWORK)
    data, _ = read_all(*files, NETWORK, n=n, seed=3)
    assert len(data) == n
    assert 0 < data.labels.sum() < n
    index = np.array([everything.sources.index(source) for source in data.sources])
    same = everything.subset(index)
    assert (np.diff(index) > 0).all()
    np.testing.assert_array_equal(same.cuboids, data.cuboids)
    assert same.labels.tolist() == data.labels.tolist()
    assert same.brains == data.brains


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), *[st.integers(0, 8).map(lambda i: i / 2)] * 3),
        min_size=1,
        max_size=15,
    )
)
def test_what_is_kept_is_apart_and_what_is_not_has_a_twin(labels) -> None:
    """What is the same as a third is the same too, so a twin may be left out itself."""
    volumes = [label[0] for label in labels]
    positions = np.array([label[1:] for label in labels], float)
    kept, remarks = keep_once(
        pair_by_place(volumes, positions), np.ones(len(labels), np.int64), [""] * len(labels)
    )
    assert bool(remarks) == (len(kept) < len(labels))

    def near(i: int, j: int) -> bool:
        return volumes[i] == volumes[j] and bool((abs(positions[i] - positions[j]) < 1).all())

    assert not any(near(i, j) for i in kept for j in kept if i != j)
    for i in set(range(len(labels))) - set(kept.tolist()):
        assert any(near(i, j) for j in range(len(labels)) if j != i)


def test_too_few_labels_are_one_line(folder: Path) -> None:
    for types, says in (
        ([2, 2, 2, 2, 2], "all 5 labels are cells; a classifier needs both"),
        ([1, 1, 1, -1, 1], "all 5 labels are non-cells"),
        ([2, 1, 1, 1, 1], "1 of 5 labels is a cell; a classifier needs at least two cells"),
        ([2, 2, 2, 2, 1], "4 of 5 labels are cells; a classifier needs at least two cells"),
    ):
        write_cells(folder / "few.yml", Cells(POSITIONS, np.array(types)))
        with pytest.raises(CellsError, match=says) as error:
            find_labels([brains(folder, entry(cells="few.yml"))])
        assert "brains.yaml" in str(error.value)
    with pytest.raises(CellsError, match="2 of 3 labels are cells"):
        check_both_classes(np.array([1, 1, 0]), "three")
    twice = Cells(POSITIONS[[0, 1, 2, 1]], TYPES[[0, 1, 2, 1]])
    write_cells(folder / "few.yml", twice)  # one artefact, given twice
    with pytest.raises(CellsError, match="2 of 3 labels are cells"):
        read_all([brains(folder, entry(cells="few.yml"))], [], NETWORK)


def test_labels_outside_or_missing_are_refused(folder: Path) -> None:
    write_cells(folder / "out.csv", Cells(POSITIONS * [1, 1, 3], TYPES))
    with pytest.raises(CellsOutside, match=r"out\.csv: 4 of 5"):
        find_labels([brains(folder, entry(cells="out.csv"))])
    with pytest.raises(CellsError, match="brain mouse has no cells; add a `cells` entry"):
        find_labels([brains(folder, entry(cells=None))])


def test_the_reach_of_a_cuboid_is_that_in_the_coarsest_voxels(folder: Path) -> None:
    found = find_labels([brains(folder, entry())], [cubes(folder)])
    assert reach_um(found, NETWORK) == (110, 54, 54)
    fine = find_labels([brains(folder, entry(voxel_size_um=[6, 1.62, 1.62]))])
    assert reach_um(fine, NETWORK) == pytest.approx((19 * 6, 33 * 1.62, 33 * 1.62))
    places = find_labels([], [cubes(folder, voxel_size_um=[10, 3, 3])])
    assert reach_um(places, NETWORK) == (120, 57, 57)


def test_a_run_takes_several_files_of_each_and_tells_of_repeats(folder: Path, command) -> None:
    tifffile.imwrite(folder / "ch1.tif", tifffile.imread(folder / "ch0.tif")[::-1])
    write_cells(folder / "more.csv", Cells(POSITIONS[:3], TYPES[:3]))
    again = brains(folder, entry(cells="more.csv"), name="more.yaml")
    test = [
        brains(folder, entry(name=name, signal="ch1.tif"), name=f"{name}.yaml") for name in "ab"
    ]
    words = ("--brains", brains(folder, entry()), again, "--cubes", cubes(folder, group="mouse"))
    words += ("--cubes", cubes(folder, name="second"), "--test", *test)
    out = folder / "run"
    outcome = command("cubeclf-finetune", "--backbone", "scratch:vit-nano", *words, "--out", out)
    assert outcome.code == 0, outcome.err
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["labels"] == {"n": 10, "cells": 6}
    assert sorted(metrics["evaluation"]["brains"]) == ["a", "b"]
    assert "3 labels are given twice" in outcome.err
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert settings["brains"] == [str(folder / "brains.yaml"), str(again)]
    rerun = command("cubeclf-finetune", "--config", out / "config.yaml", "--print-config")
    assert yaml.safe_load(rerun.out) == settings
