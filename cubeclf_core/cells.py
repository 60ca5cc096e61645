"""Cell positions and types, in the files that cellfinder and brainglobe-utils read and write.

A file is XML, YAML or CSV by its suffix. Type 2 is a cell, 1 is no cell or unknown, and -1 an
artefact. Positions in the files are x, y, z in voxels of the volume that they were found in; in
this package they are z, y, x.
"""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import yaml

from cubeclf_core.cells_tables import read_csv, read_yaml, write_csv, write_yaml
from cubeclf_core.cells_xml import read_xml, write_xml
from cubeclf_core.errors import CellsError
from cubeclf_core.files import replacing

CELL = 2
NO_CELL = 1

T = TypeVar("T")
_Row = tuple[float, float, float, int]  # z, y, x and type
_UNREADABLE = (OSError, UnicodeDecodeError, ET.ParseError, yaml.YAMLError, csv.Error)
_READERS: dict[str, Callable[[Path], Sequence[_Row]]] = {
    ".xml": read_xml,
    ".yml": read_yaml,
    ".yaml": read_yaml,
    ".csv": read_csv,
}
_AT_A_TIME = 8192  # rows in the making, as Python's numbers are large
Metadata = Iterable[Mapping[str, float | bool | None]]


@dataclass(frozen=True)
class Cells:
    """Positions and types of cells or candidates, in the order of their file.

    Attributes
    ----------
    positions
        Shape (n, 3), float64, z y x in voxels of the volume.
    types
        Shape (n,), int64: 2 cell, 1 no cell or unknown, -1 artefact.
    """

    positions: npt.NDArray[np.float64]
    types: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        assert self.positions.shape == (len(self.types), 3)

    def __len__(self) -> int:
        return len(self.types)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """1 for a cell, 0 for anything else; shape (n,)."""
        return np.asarray(self.types == CELL, np.int64)

    def __getitem__(self, index: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Cells:
        return Cells(self.positions[index], self.types[index])


def read_cells(path: str | Path) -> Cells:
    """Read a cells file.

    Parameters
    ----------
    path
        ``.xml`` (cellfinder's, ImageJ's cell counter), ``.yml``, ``.yaml`` or ``.csv``, as
        brainglobe-utils writes them. What YAML and CSV say of a cell besides is passed over.

    Returns
    -------
    Cells
        At least one cell, in the order of the file.

    Raises
    ------
    CellsError
        If the file is missing, is no such file, or lists no cell.
    """
    path = Path(path)
    reader = _by_suffix(_READERS, path)
    try:
        rows = reader(path)
        positions = np.array([row[:3] for row in rows], np.float64).reshape(-1, 3)
        types = np.array([row[3] for row in rows], np.int64)
    except _UNREADABLE as error:
        raise CellsError(f"{path} cannot be read: {error}") from error
    except (ValueError, OverflowError) as error:
        raise CellsError(f"{path} holds what cannot be understood: {error}") from error
    if not len(types):
        raise CellsError(f"{path} lists no cells; expected x, y, z and the type of each")
    if not np.isfinite(positions).all():
        raise CellsError(f"{path} holds a position that is not finite")
    return Cells(positions, types)


def write_cells(path: str | Path, cells: Cells, metadata: Metadata | None = None) -> None:
    """Write a cells file that cellfinder, brainmapper and napari read.

    Parameters
    ----------
    path
        The file; its suffix chooses the format, as in `read_cells`.
    cells
        In XML, positions are rounded to whole voxels, as that format has integers only, and are
        grouped by type, within a type in their order. YAML and CSV keep fractions and the order;
        brainglobe-utils cuts the fractions off where it reads YAML.
    metadata
        Of each cell, what else there is to say; only YAML has a place for it.

    Raises
    ------
    CellsError
        If the suffix is none of these.
    """
    assert np.isfinite(cells.positions).all()
    path = Path(path)
    suffix = _by_suffix({key: key for key in _READERS}, path)
    with replacing(path) as temporary:
        if suffix == ".xml":
            write_xml(temporary, _rows(cells[np.argsort(cells.types, kind="stable")]))
        elif suffix == ".csv":
            write_csv(temporary, _rows(cells))
        else:
            write_yaml(temporary, _rows(cells), len(cells), metadata)


def _rows(cells: Cells) -> Iterator[_Row]:
    for start in range(0, len(cells), _AT_A_TIME):
        part = slice(start, start + _AT_A_TIME)
        positions, types = cells.positions[part].tolist(), cells.types[part].tolist()
        for (z, y, x), kind in zip(positions, types, strict=True):
            yield z, y, x, kind


def _by_suffix(formats: dict[str, T], path: Path) -> T:
    if path.suffix.lower() not in formats:
        raise CellsError(f"{path} is no cells file; expected one of {', '.join(formats)}")
    return formats[path.suffix.lower()]
