"""Cell positions and types, in cellfinder's XML.

The file lists markers under their type: 2 is a cell, 1 is no cell or unknown, and -1 an artefact.
Positions in the file are x, y, z in voxels of the volume that they were found in; in this package
they are z, y, x.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cubeclf_core.errors import CellsError
from cubeclf_core.files import replacing

CELL = 2
NO_CELL = 1


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
    """Read a cells XML file.

    Parameters
    ----------
    path
        A file in cellfinder's (ImageJ cell counter's) format.

    Returns
    -------
    Cells
        At least one cell, in the order of the file.

    Raises
    ------
    CellsError
        If the file is missing, is no such XML, or lists no cell.
    """
    path = Path(path)
    try:
        root = ET.parse(path).getroot()
    except (OSError, ET.ParseError, UnicodeDecodeError) as error:
        raise CellsError(f"{path} cannot be read as a cells XML: {error}") from error
    positions: list[tuple[float, ...]] = []
    types: list[int] = []
    try:
        for group in root.iter("Marker_Type"):
            kind = int(_text(group, "Type"))
            for marker in group.iter("Marker"):
                positions.append(tuple(float(_text(marker, f"Marker{axis}")) for axis in "ZYX"))
                types.append(kind)
        kinds = np.array(types, np.int64)
    except (ValueError, OverflowError) as error:
        raise CellsError(f"{path} holds a marker that cannot be understood: {error}") from error
    if not positions:
        raise CellsError(f"{path} lists no cells; expected markers with MarkerX, MarkerY, MarkerZ")
    cells = Cells(np.array(positions, np.float64), kinds)
    if not np.isfinite(cells.positions).all():
        raise CellsError(f"{path} holds a position that is not finite")
    return cells


def write_cells(path: str | Path, cells: Cells) -> None:
    """Write a cells XML file that cellfinder, brainmapper and napari read.

    Parameters
    ----------
    path
        The file.
    cells
        Positions are rounded to whole voxels, as the format has integers only. Markers are grouped
        by type, and within a type keep their order.
    """
    assert np.isfinite(cells.positions).all()
    path = Path(path)
    root = ET.Element("CellCounter_Marker_File")
    image = ET.SubElement(root, "Image_Properties")
    ET.SubElement(image, "Image_Filename").text = "placeholder.tif"
    data = ET.SubElement(root, "Marker_Data")
    ET.SubElement(data, "Current_Type").text = "1"
    for kind in sorted(set(cells.types.tolist())):
        group = ET.SubElement(data, "Marker_Type")
        ET.SubElement(group, "Type").text = str(kind)
        for position in np.rint(cells.positions[cells.types == kind]).astype(int):
            marker = ET.SubElement(group, "Marker")
            for axis, value in zip("XYZ", position[::-1], strict=True):
                ET.SubElement(marker, f"Marker{axis}").text = str(value)
    ET.indent(root)
    with replacing(path) as temporary:
        ET.ElementTree(root).write(temporary, encoding="UTF-8", xml_declaration=True)


def _text(element: ET.Element, tag: str) -> str:
    text = element.findtext(tag)
    if text is None:
        raise ValueError(f"<{element.tag}> without <{tag}>")
    return text
