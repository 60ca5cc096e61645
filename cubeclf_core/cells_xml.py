"""The XML of cells files: markers under their type, with x, y and z, in whole voxels."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path


def read_xml(path: Path) -> list[tuple[float, float, float, int]]:
    """Read z, y, x and the type of each marker.

    Raises
    ------
    xml.etree.ElementTree.ParseError
        If this is no XML.
    ValueError
        If a marker lacks something.
    """
    rows = []
    for group in ET.parse(path).iter("Marker_Type"):
        kind = int(_text(group, "Type"))
        for marker in group.iter("Marker"):
            z, y, x = (float(_text(marker, f"Marker{axis}")) for axis in "ZYX")
            rows.append((z, y, x, kind))
    return rows


def write_xml(path: Path, rows: Sequence[tuple[float, float, float, int]]) -> None:
    """Write z, y, x and types, rounded and grouped by type."""
    root = ET.Element("CellCounter_Marker_File")
    image = ET.SubElement(root, "Image_Properties")
    ET.SubElement(image, "Image_Filename").text = "placeholder.tif"
    data = ET.SubElement(root, "Marker_Data")
    ET.SubElement(data, "Current_Type").text = "1"
    for kind in sorted({row[3] for row in rows}):
        group = ET.SubElement(data, "Marker_Type")
        ET.SubElement(group, "Type").text = str(kind)
        for z, y, x, other in rows:
            if other == kind:
                marker = ET.SubElement(group, "Marker")
                for axis, value in zip("XYZ", (x, y, z), strict=True):
                    ET.SubElement(marker, f"Marker{axis}").text = str(round(value))
    ET.indent(root)
    ET.ElementTree(root).write(path, encoding="UTF-8", xml_declaration=True)


def _text(element: ET.Element, tag: str) -> str:
    text = element.findtext(tag)
    if text is None:
        raise ValueError(f"<{element.tag}> without <{tag}>")
    return text
