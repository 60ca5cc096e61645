"""cellfinder's training YAML and its cubes, good and bad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import yaml

from cubeclf_core.cells import Cells, write_cells
from cubeclf_core.errors import CellsError, InputError
from cubeclf_core.vit import Vit3dConfig
from finetune.cubes import list_cubes, read_cubes

SHAPE = (20, 50, 50)
ONE, TWO = Vit3dConfig(channels=1), Vit3dConfig(channels=2)
CELLFINDER, BRAINGLOBE = "pCellz{z}y{y}x{x}Ch{c}.tif", "pCellx{x}_y{y}_z{z}Ch{c}.tif"


def cube(folder: Path, zyx, *, pattern=CELLFINDER, channels=(0, 1), dtype="uint16", shape=SHAPE):
    """Write a cube of random voxels; give its channels."""
    folder.mkdir(parents=True, exist_ok=True)
    z, y, x = zyx
    random = np.random.default_rng((z, y, x))
    voxels = {c: random.integers(0, 255, shape).astype(dtype) for c in channels}
    for c, array in voxels.items():
        tifffile.imwrite(folder / pattern.format(z=z, y=y, x=x, c=c), array)
    return list(voxels.values())


def training_yaml(folder: Path, *entries: dict[str, Any], name: str = "training.yaml") -> Path:
    file = folder / name
    common = {"signal_channel": 0, "bg_channel": 1, "cell_def": ""}
    file.write_text(yaml.safe_dump({"data": [common | entry for entry in entries]}))
    return file


def cells(**more: Any) -> dict[str, Any]:
    return {"cube_dir": "cells", "type": "cell"} | more


def others(**more: Any) -> dict[str, Any]:
    return {"cube_dir": "others", "type": "no_cell"} | more


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two cells, named in the two ways, and an artefact."""
    cube(tmp_path / "cells", (3, 200, 10))
    cube(tmp_path / "cells", (4, 20, 1000), pattern=BRAINGLOBE)
    cube(tmp_path / "others", (5, 7, 9))
    return tmp_path


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", ">u2"])
def test_cubes_are_read_with_where_they_are_from(tmp_path: Path, dtype: str) -> None:
    signal, background = cube(tmp_path / "cells", (3, 200, 10), dtype=dtype)
    cube(tmp_path / "cells", (4, 20, 1000), pattern=BRAINGLOBE, dtype=dtype)
    cube(tmp_path / "others", (5, 7, 9), dtype=dtype)
    data = read_cubes(training_yaml(tmp_path, cells(), others(group="mouse 2")), TWO)
    assert data.labels.tolist() == [1, 1, 0]
    by_name = dict(zip(data.sources, range(3), strict=True))
    first = by_name["cells/pCellz3y200x10Ch0.tif"]
    np.testing.assert_array_equal(data.cuboids[first, 0], signal)
    np.testing.assert_array_equal(data.cuboids[first, 1], background)
    assert data.positions_um[first].tolist() == [15, 200, 10]
    assert data.positions_um[by_name["cells/pCellx1000_y20_z4Ch0.tif"]].tolist() == [20, 20, 1000]
    assert data.brains == ["training", "training", "mouse 2"]
    assert torch.equal(read_cubes(tmp_path / "training.yaml", ONE).cuboids, data.cuboids[:, :1])


def test_positions_count_in_the_voxels_that_the_yaml_says(folder: Path) -> None:
    data = read_cubes(training_yaml(folder, cells(voxel_size_um=[10, 2, 2.5]), others()), ONE)
    assert sorted(data.positions_um[:2].tolist()) == [[30, 400, 25], [40, 40, 2500]]


def test_a_cube_without_a_full_position_is_read_and_placed_nowhere(tmp_path: Path) -> None:
    cube(tmp_path / "cells", (3, 2, 1), pattern="z{z}Ch{c}.tif")
    data = read_cubes(training_yaml(tmp_path, cells()), ONE)
    assert np.isnan(data.positions_um).all()


def test_files_that_a_mac_leaves_are_passed_over(folder: Path) -> None:
    (folder / "cells" / "._pCellz3y200x10Ch0.tif").write_bytes(b"junk")
    (folder / "cells" / ".DS_Store").write_bytes(b"junk")
    assert len(read_cubes(training_yaml(folder, cells(), others()), TWO)) == 3


@pytest.mark.parametrize("kind", ["cells.xml", "cells.yml", "cells.csv", "folder"])
def test_a_cell_def_chooses_cubes_whatever_its_types(folder: Path, kind: str) -> None:
    wanted = folder / kind
    if kind == "folder":
        cube(wanted, (4, 20, 1000), pattern="anything_z{z}y{y}x{x}Ch{c}.tif")
        (wanted / ".DS_Store").write_bytes(b"")
        (wanted / "notes.txt").write_bytes(b"")
    else:
        positions = np.array([[4, 20, 1000], [9, 9, 9.0]])
        positions += 0 if kind.endswith("xml") else 0.9  # cut off, as brainglobe-utils does
        write_cells(wanted, Cells(positions, np.array([1, 2])))
    file = training_yaml(folder, cells(cell_def=kind), others())
    data = read_cubes(file, TWO)
    assert data.sources == ["cells/pCellx1000_y20_z4Ch0.tif", "others/pCellz5y7x9Ch0.tif"]
    assert data.labels.tolist() == [1, 0]


def test_one_folder_may_hold_both_classes_where_cell_defs_tell_them(folder: Path) -> None:
    cube(folder / "cells", (5, 7, 9))
    for name, zyx in (("yes.xml", [4, 20, 1000]), ("no.xml", [5, 7, 9])):
        write_cells(folder / name, Cells(np.array([zyx], float), np.array([2])))
    entries = (cells(cell_def="yes.xml"), others(cube_dir="cells", cell_def="no.xml"))
    data = read_cubes(training_yaml(folder, *entries), TWO)
    assert data.labels.tolist() == [1, 0]
    assert data.sources[1] == "cells/pCellz5y7x9Ch0.tif"
    with pytest.raises(InputError, match="both as cell and as no_cell"):
        read_cubes(training_yaml(folder, cells(), others(cube_dir="cells")), TWO)


def test_a_yaml_goes_with_its_folder_or_is_read_from_where_one_is(
    folder: Path, monkeypatch
) -> None:
    write_cells(folder / "c.xml", Cells(np.array([[4, 20, 1000.0]]), np.array([2])))
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    file = training_yaml(elsewhere, cells(cell_def="c.xml"), others())
    with pytest.raises(InputError, match="neither"):
        list_cubes(file)
    monkeypatch.chdir(folder)
    assert [c.position for c in list_cubes(file)] == [(4, 20, 1000), (5, 7, 9)]


STATISTICS = {"signal_mean": 90, "signal_std": 8.5, "bg_mean": 80.0, "bg_std": 9}


def test_means_and_deviations_are_taken_and_change_nothing(folder: Path) -> None:
    plain = read_cubes(training_yaml(folder, cells(), others()), TWO)
    entries = (cells(**STATISTICS), others(**STATISTICS))
    assert torch.equal(read_cubes(training_yaml(folder, *entries), TWO).cuboids, plain.cuboids)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"signal_mean": 90}, "signal_mean is there but not signal_std; give all or none"),
        (STATISTICS | {"bg_std": 0}, "bg_std is 0, expected a number"),
        (STATISTICS | {"bg_mean": "high"}, "bg_mean is 'high'"),
        (STATISTICS | {"signal_mean": float("nan")}, "signal_mean is nan"),
        ({"cube_dir": "nowhere"}, "cube_dir is nowhere; neither .* is a folder"),
        ({"cube_dir": 3}, "needs a cube_dir"),
        ({"type": "neuron"}, "type is 'neuron'"),
        ({"signal_channel": True}, "signal_channel is True"),
        ({"bg_channel": "one"}, "bg_channel is 'one'"),
        ({"cell_def": 3}, "cell_def is 3"),
        ({"cell_def": "none.xml"}, "cell_def is none.xml; neither"),
        ({"cell_def": "far.xml"}, "none of the 2 cubes in .* at a position of its cell_def"),
        ({"cell_def": "empty"}, "holds no file whose name says"),
        ({"cell_def": "training.yaml"}, "expected CellCounter_Marker_File"),
        ({"group": ["a"]}, "group is"),
        ({"voxel_size_um": [5, 1]}, "voxel_size_um is"),
        ({"voxel_size_um": [5, 1, 0]}, "voxel_size_um is"),
        ({"signal_channel": 2}, "lacks channel 2"),
    ],
)
def test_a_wrong_entry_is_one_clear_error(folder: Path, changes, says: str) -> None:
    write_cells(folder / "far.xml", Cells(np.array([[99, 99, 99.0]]), np.array([2])))
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=says):
        list_cubes(training_yaml(folder, cells(**changes), others()))


@pytest.mark.parametrize("text", ["", "data: nothing", "data: []", "- a", "[", "data: [3]"])
def test_what_is_no_training_yaml_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(InputError, match=r"t\.yaml"):
        list_cubes(tmp_path / "t.yaml")


def refused(folder: Path, *files: str) -> None:
    """Reading both folders is refused by an error that names these files."""
    with pytest.raises(CellsError) as error:
        read_cubes(training_yaml(folder, cells(), others()), TWO)
    for name in files:
        assert name in str(error.value)


def test_cubes_of_mixed_size_or_dtype_are_refused_with_two_of_them(folder: Path) -> None:
    cube(folder / "others", (6, 6, 6), shape=(20, 40, 50))
    refused(folder, "(20, 40, 50)", "pCellz6y6x6Ch0.tif", "pCellx1000_y20_z4Ch0.tif", str(SHAPE))
    cube(folder / "others", (6, 6, 6), dtype="float32")
    refused(folder, "float32", "pCellz6y6x6Ch0.tif", "uint16", "pCellx1000_y20_z4Ch0.tif")
    cube(folder / "others", (6, 6, 6), dtype="uint8")
    refused(folder, "uint8", "pCellz6y6x6Ch0.tif", "uint16", "pCellx1000_y20_z4Ch0.tif")


def test_a_background_of_another_dtype_is_refused_too(tmp_path: Path) -> None:
    cube(tmp_path / "cells", (1, 2, 3))
    cube(tmp_path / "cells", (1, 2, 3), channels=(1,), dtype="float32")
    cube(tmp_path / "others", (4, 5, 6))
    refused(tmp_path, "pCellz1y2x3Ch1.tif", "pCellz1y2x3Ch0.tif")


def test_cubes_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    cube(tmp_path / "others", (4, 5, 6), shape=(20, 40, 40))
    cube(tmp_path / "cells", (1, 2, 3), shape=(20, 40, 40))
    refused(tmp_path, "(20, 40, 40)", "the backbone takes (20, 50, 50)")
    cube(tmp_path / "cells", (1, 2, 3), dtype="float64")
    refused(tmp_path, "pCellz1y2x3Ch0.tif", "float64", "uint8, uint16, float32")
    broken = tmp_path / "cells" / "pCellz1y2x3Ch0.tif"
    cube(tmp_path / "cells", (1, 2, 3))
    broken.write_bytes(broken.read_bytes()[:5000])
    refused(tmp_path, "pCellz1y2x3Ch0.tif", "cannot be read as TIFF")
    broken.write_bytes(b"junk")
    refused(tmp_path, "pCellz1y2x3Ch0.tif", "cannot be read as TIFF")
    voxels = np.zeros(SHAPE, np.float32)
    voxels[3, 4, 5] = np.nan
    tifffile.imwrite(broken, voxels)
    refused(tmp_path, "pCellz1y2x3Ch0.tif", "not finite")
