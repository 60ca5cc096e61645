"""The XML of cells files: markers under their type, with x, y and z, in whole voxels."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

_HEAD = """<?xml version='1.0' encoding='UTF-8'?>
<CellCounter_Marker_File>
  <Image_Properties>
    <Image_Filename>placeholder.tif</Image_Filename>
  </Image_Properties>
  <Marker_Data>
    <Current_Type>1</Current_Type>
"""


def read_xml(path: Path) -> list[tuple[float, float, float, int]]:
    """Read z, y, x and the type of each marker.

    Raises
    ------
    xml.etree.ElementTree.ParseError
        If this is no XML.
    ValueError
        If a marker lacks something.
    """
    rows: list[tuple[float, float, float, int]] = []
    group: ET.Element | None = None
    with path.open("rb") as file:
        places: list[tuple[float, float, float]] = []
        # Markers are forgotten one by one: a tree of a million takes gigabytes.
        for event, element in ET.iterparse(file, ("start", "end")):
            if element.tag == "Marker_Type":
                if event == "end":
                    kind = int(_text(element, "Type"))
                    rows += [(*place, kind) for place in places]
                group = element if event == "start" else None
                places = []
            elif element.tag == "Marker" and event == "end" and group is not None:
                z, y, x = (float(_text(element, f"Marker{axis}")) for axis in "ZYX")
                places.append((z, y, x))
                group.remove(element)
    return rows


def write_xml(path: Path, rows: Iterable[tuple[float, float, float, int]]) -> None:
    """Write z, y, x, rounded, and types; rows of one type come together."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(_HEAD)
        for kind, group in groupby(rows, key=lambda row: row[3]):
            file.write(f"    <Marker_Type>\n      <Type>{kind}</Type>\n")
            for z, y, x, _ in group:
                file.write(
                    "      <Marker>\n"
                    f"        <MarkerX>{round(x)}</MarkerX>\n"
                    f"        <MarkerY>{round(y)}</MarkerY>\n"
                    f"        <MarkerZ>{round(z)}</MarkerZ>\n"
                    "      </Marker>\n"
                )
            file.write("    </Marker_Type>\n")
        file.write("  </Marker_Data>\n</CellCounter_Marker_File>\n")


def _text(element: ET.Element, tag: str) -> str:
    text = element.findtext(tag)
    if text is None:
        raise ValueError(f"<{element.tag}> without <{tag}>")
    return text
