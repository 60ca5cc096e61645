from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
import zarr
from hypothesis import given
from hypothesis import strategies as st

from cubeclf_core.brains import load_brains
from cubeclf_core.cells import Cells, write_cells
from cubeclf_core.errors import (
    BrainsFileError,
    CellsError,
    CellsOutside,
    VolumeError,
    VoxelSizeMissing,
)
from cubeclf_core.inside import check_inside
from cubeclf_core.volumes import ArraySource, Volume

SHAPE = (5, 20, 30)
UM = (5.0, 2.0, 2.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two channels and three cells, all in one folder."""
    for channel in (0, 1):
        tifffile.imwrite(tmp_path / f"ch{channel}.tif", np.full(SHAPE, channel, "uint16"))
    cells = Cells(np.array([[0, 0, 0], [4, 19, 29], [2, 3, 4]], float), np.array([1, 2, 2]))
    write_cells(tmp_path / "cells.xml", cells)
    return tmp_path


def brains_file(folder: Path, *entries: Any) -> Path:
    path = folder / "brains.yaml"
    path.write_text(yaml.safe_dump(list(entries)))
    return path


def entry(**more: Any) -> dict[str, Any]:
    return {"name": "one", "signal": "ch0.tif", "voxel_size_um": list(UM)} | more


def test_a_brains_file_names_its_parts_relative_to_itself(folder: Path) -> None:
    file = brains_file(
        folder, entry(background="ch1.tif", cells="cells.xml"), entry(name=695, cells=None)
    )
    one, two = load_brains([file])
    assert (one.name, one.volume.name, two.name) == ("one", "one", "695")
    assert one.volume.n_channels == 2
    assert one.volume.voxel_size_um == UM
    assert one.cells is not None
    assert folder / "cells.xml" in one.paths
    assert one.cells.positions.tolist() == [[0, 0, 0], [4, 19, 29], [2, 3, 4]]
    assert (two.volume.n_channels, two.cells) == (1, None)


@pytest.mark.parametrize("name", ["c.yml", "c.yaml", "c.csv"])
def test_cells_come_in_any_format_that_can_be_read(folder: Path, name: str) -> None:
    cells = Cells(np.array([[4, 3.5, 29]]), np.array([2]))
    write_cells(folder / name, cells)
    (brain,) = load_brains([brains_file(folder, entry(cells=name))])
    assert brain.cells is not None
    assert brain.cells.positions.tolist() == [[4, 3.5, 29]]
    assert brain.cells_path == folder / name
    write_cells(folder / name, Cells(np.array([[4, 20, 29.0]]), np.array([2])))
    with pytest.raises(CellsOutside, match=name):
        load_brains([brains_file(folder, entry(cells=name))])


def test_volumes_of_one_animal_may_be_grouped(folder: Path) -> None:
    second = entry(name="two", signal="ch1.tif", group=12)
    one, two = load_brains([brains_file(folder, entry(), second)])
    assert (one.group, two.group) == (None, "12")
    with pytest.raises(BrainsFileError, match="group is"):
        load_brains([brains_file(folder, entry(group=["12"]))])


def test_a_brains_file_may_choose_channels(folder: Path) -> None:
    array = np.arange(3, dtype="uint8")[:, None, None, None] * np.ones(SHAPE, "uint8")
    zarr.create_array(folder / "a.zarr", data=array)
    for chosen in ([2, 0], [1]):
        (brain,) = load_brains([brains_file(folder, entry(signal="a.zarr", channels=chosen))])
        assert brain.volume.read((0, 0, 0), (1, 1, 1)).ravel().tolist() == chosen
    with pytest.raises(VolumeError, match="holds 3 channels"):
        load_brains([brains_file(folder, entry(signal="a.zarr"))])
    with pytest.raises(VolumeError, match=r"channels is \[0, 3\]"):
        load_brains([brains_file(folder, entry(signal="a.zarr", channels=[0, 3]))])


def test_one_signal_has_one_name_however_it_is_written(folder: Path) -> None:
    (a,) = load_brains([folder / "ch0.tif"], voxel_size_um=UM)
    (b,) = load_brains([f"{folder}/../{folder.name}/ch0.tif"], voxel_size_um=UM)
    (c,) = load_brains([brains_file(folder, entry())])
    (d,) = load_brains([folder / "ch1.tif"], voxel_size_um=UM)
    assert a.signal == b.signal == c.signal != d.signal


def test_volumes_and_brains_files_mix(folder: Path) -> None:
    file = brains_file(folder, entry())
    brains = load_brains([folder / "ch1.tif", file], voxel_size_um=(9, 9, 9))
    assert [(b.name, b.volume.voxel_size_um) for b in brains] == [
        ("ch1", (9, 9, 9)),
        ("one", UM),  # its own wins
    ]
    without = entry()
    del without["voxel_size_um"]
    file = brains_file(folder, without)
    assert load_brains([file], voxel_size_um=(9, 9, 9))[0].volume.voxel_size_um == (9, 9, 9)
    with pytest.raises(VoxelSizeMissing, match="voxel_size_um in a brains file"):
        load_brains([file])


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (entry(singal="x"), r"brain 1 \(one\) has the unknown key 'singal'; allowed: name, signal"),
        ({"name": "one"}, r"\(one\) lacks signal; allowed: name, signal, background"),
        ({"signal": "ch0.tif"}, "brain 1 lacks name"),
        ("ch0.tif", "expected a mapping"),
        (entry(signal=["ch0.tif"]), "signal is .* expected a path"),
        (entry(cells=3), "cells is 3; expected a path"),
        (entry(voxel_size_um=5), r"voxel_size_um is 5; expected \[z, y, x\]"),
        (entry(voxel_size_um=["5", 2, 2]), "voxel_size_um is"),
        (entry(name={"a": 1}), "expected a name"),
        (entry(name="a/b"), "expected a name without slashes"),
        (entry(channels=0), r"channels is 0; expected \[signal\]"),
        (entry(channels=["0"]), "channels is"),
        (entry(channels=[True]), "channels is"),
    ],
)
def test_a_wrong_entry_is_named_with_its_fault(folder: Path, bad: Any, says: str) -> None:
    with pytest.raises(BrainsFileError, match=says) as error:
        load_brains([brains_file(folder, bad)])
    assert "brains.yaml" in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "a: 1", "[", "\xff\xfe"])
def test_a_file_that_is_no_list_of_brains(tmp_path: Path, text: str) -> None:
    (tmp_path / "brains.yml").write_bytes(text.encode("latin1"))
    with pytest.raises(BrainsFileError):
        load_brains([tmp_path / "brains.yml"])


def test_a_missing_brains_file(tmp_path: Path) -> None:
    with pytest.raises(BrainsFileError):
        load_brains([tmp_path / "brains.yml"])


def test_two_brains_of_one_name(folder: Path) -> None:
    with pytest.raises(BrainsFileError, match="two brains are named 'one'"):
        load_brains([brains_file(folder, entry(), entry())])
    with pytest.raises(BrainsFileError, match="two brains are named 'ch0'"):
        load_brains([folder / "ch0.tif", folder / "ch0.tif"], voxel_size_um=UM)


def test_cells_outside_say_how_many_of_how_many_and_why(folder: Path) -> None:
    cells = Cells(np.array([[0, 0, 0], [5, 0, 0], [0, 29, 19]], float), np.array([1, 2, 2]))
    write_cells(folder / "cells.xml", cells)
    with pytest.raises(CellsOutside, match=r"2 of 3 .*5 × 20 × 30.*another resolution"):
        load_brains([brains_file(folder, entry(cells="cells.xml"))])
    write_cells(folder / "cells.xml", cells[np.array([2])])
    swapped = Cells(np.array([[29.0, 19, 4]]), np.array([2]))
    write_cells(folder / "cells.xml", swapped)
    with pytest.raises(CellsOutside, match=r"cells\.xml: 1 of 1 .*x and z swapped"):
        load_brains([brains_file(folder, entry(cells="cells.xml"))])


def test_cells_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(CellsError, match=r"none\.xml"):
        load_brains([brains_file(folder, entry(cells="none.xml"))])


@given(st.tuples(*(st.floats(-3, n + 3) for n in SHAPE)))
def test_inside_means_within_the_voxels_after_rounding(position: tuple[float, ...]) -> None:
    volume = Volume("a", (ArraySource(np.zeros(SHAPE, "uint8")),), UM)
    cells = Cells(np.array([position]), np.array([2]))
    if all(0 <= round(p) <= n - 1 for p, n in zip(position, SHAPE, strict=True)):
        check_inside(cells, volume, "cells.xml")
    else:
        with pytest.raises(CellsOutside):
            check_inside(cells, volume, "cells.xml")


@pytest.mark.parametrize(
    ("scale", "says"),
    [
        ((1, 2, 2), r"divided by 2 along y x .* voxels of about 5 × 1 × 1 µm"),
        ((4, 4, 4), r"divided by 4 along z y x .* voxels of about 1\.25 × 0\.5 × 0\.5 µm"),
        (UM, "seem to be in µm"),
    ],
)
def test_positions_of_another_resolution_are_told_by_what_factor(scale, says: str) -> None:
    volume = Volume("a", (ArraySource(np.zeros((50, 200, 300), "uint8")),), UM)
    own = np.random.default_rng(0).uniform(0.55, 0.95, (40, 3)) * volume.shape
    positions = np.rint(own * scale)
    cells = Cells(positions, np.ones(40, np.int64))
    with pytest.raises(CellsOutside, match=says):
        check_inside(cells, volume, "cells.xml")
