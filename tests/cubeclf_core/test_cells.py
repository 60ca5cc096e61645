from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from cubeclf_core.cells import Cells, read_cells, write_cells
from cubeclf_core.errors import CellsError

# brainglobe-utils calls functions of rapidyaml that newer versions of it call deprecated.
RYML = pytest.mark.filterwarnings("ignore:(compute_)?emit_:DeprecationWarning")

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


def as_brainglobe(cells: Cells, **metadata: object) -> list:
    cell = pytest.importorskip("brainglobe_utils.cells.cells").Cell
    found = [cell((0, 0, 0), kind, dict(metadata)) for kind in cells.types.tolist()]
    for theirs, (z, y, x) in zip(found, cells.positions.tolist(), strict=True):
        theirs.z, theirs.y, theirs.x = z, y, x  # the constructor would cut off fractions
    return found


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


@pytest.mark.parametrize("suffix", [".yml", ".YAML", ".csv"])
@given(
    npst.arrays(np.float64, (4, 3), elements=st.floats(-1e9, 1e9)),
    st.lists(TYPES, min_size=4, max_size=4),
)
def test_tables_keep_fractions_and_the_order(suffix: str, positions, types) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"cells{suffix}"
        write_cells(path, Cells(positions, np.array(types)))
        read = read_cells(path)
    np.testing.assert_array_equal(read.positions, positions)
    assert read.types.tolist() == types


@RYML
@given(cells())
def test_brainglobe_reads_the_yaml_that_is_written(written: Cells) -> None:
    io = pytest.importorskip("brainglobe_utils.IO.cells")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "cells.yml"
        write_cells(path, written)
        theirs = io.get_cells(str(path))
        assert io.is_brainglobe_yaml(path)
    assert [(c.z, c.y, c.x) for c in theirs] == [tuple(p) for p in written.positions]
    assert [c.type for c in theirs] == written.types.tolist()


METADATA = {"note": "a: b, 'c'", "day": "2026-13-45", "p": 0.5, "deep": {"list": [1, None, "no"]}}


@RYML
@pytest.mark.parametrize("suffix", [".yml", ".csv"])
@given(cells(), st.floats(-0.4, 0.4))
def test_tables_that_brainglobe_writes_are_read(suffix: str, cells: Cells, shift: float) -> None:
    io = pytest.importorskip("brainglobe_utils.IO.cells")
    cells = Cells(cells.positions + shift, cells.types)
    theirs = as_brainglobe(cells, **METADATA)
    theirs[0].metadata = {}
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"cells{suffix}"
        io.save_cells(theirs, path.with_suffix(".yml"), save_csv=True)
        read = read_cells(path)
    np.testing.assert_array_equal(read.positions, cells.positions)
    kept = cells.types if suffix == ".csv" else np.where(cells.types == -1, 1, cells.types)
    np.testing.assert_array_equal(read.types, kept)  # its YAML has no artefacts, its CSV has


def test_a_table_of_candidates_as_classify_writes_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "candidates.csv"
    path.write_text("\ufeffz,y,x,type_in,probability,type,padded\n1,2,3.5,1,0.9,2,0\n")
    assert read_cells(path).positions.tolist() == [[1, 2, 3.5]]
    assert read_cells(path).types.tolist() == [2]


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


def yml(cells: str, marker: str = "true") -> str:
    return f"CellCounter_Marker_File: {marker}\ncandidate_cells: {cells}\n"


@pytest.mark.parametrize(
    ("suffix", "text", "says"),
    [
        (".yml", "a: [", "cannot be read"),
        (".yml", "- just a list", "expected CellCounter_Marker_File: true"),
        (".yml", yml("[]", "false"), "expected CellCounter_Marker_File: true"),
        (".yml", yml("[]"), "lists no cells"),
        (".yml", yml("[{x: 1, y: 1, type: 2}]"), "cell 1: z is None"),
        (".yml", yml("[{x: 1, y: 1, z: [1], type: 2}]"), r"cell 1: z is \['1'\]"),
        (".yml", yml("[{x: one, y: 1, z: 1, type: 2}]"), "cell 1: x is 'one'"),
        (".yml", yml("[{x: 1, y: 1, z: 1, type: 1.5}]"), "type is 1.5"),
        (".yml", yml("[{x: 1, y: 1, z: NaN, type: 2}]"), "not finite"),
        (".yml", yml("[3]"), "cell 1 is '3'"),
        (".csv", "", "the column x is missing; found nothing"),
        (".csv", ",x,y,z\n0,1,1,1\n", "the column type is missing; found x, y, z"),
        (".csv", "x,y,z,type\n", "lists no cells"),
        (".csv", "x,y,z,type\n1,1,1,2\n1,1\n", "line 3: z is None"),
        (".csv", "x,y,z,type\n1,1,,2\n", "line 2: z is ''"),
        (".csv", "x,y,z,type\n1,1,inf,2\n", "not finite"),
        (".csv", "x,y,z,type\n1,1,1,inf\n", "line 2: type is inf"),
        (".csv", "x,y,z,type\n" + "1" * 200_000, "cannot be read"),
        (".txt", "x", r"expected one of \.xml, \.yml, \.yaml, \.csv"),
    ],
)
def test_a_bad_table_is_named_with_its_fault(tmp_path: Path, suffix, text: str, says: str) -> None:
    path = tmp_path / f"cells{suffix}"
    path.write_text(text)
    with pytest.raises(CellsError, match=says) as error:
        read_cells(path)
    assert str(path) in str(error.value)


def test_cells_are_not_written_where_they_could_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(CellsError, match="no cells file"):
        write_cells(tmp_path / "cells.txt", Cells(np.zeros((1, 3)), np.array([2])))
    assert not list(tmp_path.iterdir())


def test_a_missing_file_or_a_folder_is_a_cells_error(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes(b"x,y,z,type\n\xff")
    (tmp_path / "folder.yml").mkdir()
    missing = [tmp_path / f"none{suffix}" for suffix in (".xml", ".yml", ".yaml", ".csv")]
    for path in (tmp_path, tmp_path / "folder.yml", tmp_path / "latin.csv", *missing):
        with pytest.raises(CellsError):
            read_cells(path)
