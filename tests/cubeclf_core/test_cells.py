from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from cubeclf_core.cells import Cells, read_cells, write_cells
from cubeclf_core.errors import CellsError

VOXELS = st.integers(-5, 100_000)
TYPES = st.sampled_from([-1, 1, 2])


@st.composite
def cells(draw: st.DrawFn, elements: st.SearchStrategy[int] = VOXELS) -> Cells:
    n = draw(st.integers(1, 20))
    positions = draw(npst.arrays(np.int64, (n, 3), elements=elements)).astype(np.float64)
    types = np.array(draw(st.lists(TYPES, min_size=n, max_size=n)), np.int64)
    return Cells(positions, types)


def by_type(cells: Cells) -> Cells:
    return cells[np.argsort(cells.types, kind="stable")]


@settings(deadline=None)
@given(cells())
def test_what_is_written_is_read_back_grouped_by_type(written: Cells) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "cells.xml"
        write_cells(path, written)
        read = read_cells(path)
    expected = by_type(written)
    np.testing.assert_array_equal(read.positions, expected.positions)
    np.testing.assert_array_equal(read.types, expected.types)
    np.testing.assert_array_equal(read.labels, expected.types == 2)


def test_positions_are_rounded_to_the_nearest_voxel(tmp_path: Path) -> None:
    write_cells(tmp_path / "c.xml", Cells(np.array([[0.6, 1.4, 9.51]]), np.array([2])))
    assert read_cells(tmp_path / "c.xml").positions.tolist() == [[1, 1, 10]]


@settings(deadline=None)
@given(cells())
def test_brainglobe_reads_what_is_written(written: Cells) -> None:
    io = pytest.importorskip("brainglobe_utils.IO.cells")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "cells.xml"
        write_cells(path, written)
        theirs = io.get_cells(str(path))
    expected = by_type(written)
    assert [(c.z, c.y, c.x) for c in theirs] == [tuple(p) for p in expected.positions]
    assert [c.type for c in theirs] == expected.types.tolist()


@settings(deadline=None)
@given(cells(st.integers(1, 100_000)))  # brainglobe writes 0 as 1
def test_what_brainglobe_writes_is_read(cells: Cells) -> None:
    io = pytest.importorskip("brainglobe_utils.IO.cells")
    cell = pytest.importorskip("brainglobe_utils.cells.cells").Cell
    cells = Cells(cells.positions, np.where(cells.types == -1, 1, cells.types))
    theirs = [cell((x, y, z), t) for (z, y, x), t in zip(cells.positions, cells.types, strict=True)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "cells.xml"
        io.save_cells(theirs, path)
        read = read_cells(path)
    expected = by_type(cells)
    np.testing.assert_array_equal(read.positions, expected.positions)
    np.testing.assert_array_equal(read.types, expected.types)


MARKER = "<Marker><MarkerX>{}</MarkerX><MarkerY>1</MarkerY><MarkerZ>1</MarkerZ></Marker>"


def xml(markers: str, kind: str = "2") -> str:
    group = f"<Marker_Type><Type>{kind}</Type>{markers}</Marker_Type>"
    return f"<CellCounter_Marker_File><Marker_Data>{group}</Marker_Data></CellCounter_Marker_File>"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no xml", "cannot be read"),
        ("<a/>", "lists no cells"),
        (xml(""), "lists no cells"),
        (xml("<Marker><MarkerX>1</MarkerX></Marker>"), "without <MarkerZ>"),
        (xml(MARKER.format("one")), "'one'"),
        (xml(MARKER.format("nan")), "not finite"),
        (xml(MARKER.format("1e999")), "not finite"),
        (xml(MARKER.format("1"), kind="9" * 30), "cannot be understood"),
        (xml(MARKER.format("1"), kind=""), "cannot be understood"),
    ],
)
def test_a_bad_file_is_named_with_its_fault(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "cells.xml"
    path.write_text(text)
    with pytest.raises(CellsError, match=says) as error:
        read_cells(path)
    assert str(path) in str(error.value)


def test_a_missing_file_or_a_folder_is_a_cells_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.xml"):
        with pytest.raises(CellsError):
            read_cells(path)
