"""The YAML and CSV of cells files, as brainglobe-utils writes them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

import yaml

_LOADER: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # scalars stay text, whatever they say
_MARKER = "CellCounter_Marker_File"


def read_yaml(path: Path) -> list[tuple[float, float, float, int]]:
    """Read z, y, x and the type of each of ``candidate_cells``.

    Raises
    ------
    yaml.YAMLError
        If this is no YAML.
    ValueError
        If it is another YAML, or a cell lacks something.
    """
    content = yaml.load(path.read_text(encoding="utf-8"), _LOADER)
    cells = content.get("candidate_cells") if isinstance(content, dict) else None
    if not isinstance(cells, list) or content.get(_MARKER) != "true":
        raise ValueError(f"expected {_MARKER}: true, and a list under candidate_cells")
    return [_row(cell, f"cell {i}") for i, cell in enumerate(cells, 1)]


def write_yaml(
    path: Path,
    rows: Iterable[tuple[float, float, float, int]],
    n: int,
    metadata: Iterable[Mapping[str, float | bool | None]] | None = None,
) -> None:
    """Write z, y, x and types of `n` cells, with metadata of each where they are given."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f"{_MARKER}: true\nnum_candidates: {n}\n")
        file.write("candidate_cells:\n" if n else "candidate_cells: []\n")
        for (z, y, x, kind), of_it in zip(rows, metadata or repeat({}, n), strict=True):
            file.write(f"  - x: {_spell(x)}\n    y: {_spell(y)}\n    z: {_spell(z)}\n")
            # JSON is YAML too, and quicker to write.
            file.write(f"    type: {kind}\n    metadata: {json.dumps(of_it)}\n")


def read_csv(path: Path) -> list[tuple[float, float, float, int]]:
    """Read z, y, x and the type of each line, from columns of these names.

    Raises
    ------
    csv.Error
        If this is no CSV.
    ValueError
        If a column is missing, or a line lacks something.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file)
        columns = table.fieldnames or ()
        if missing := [name for name in ("x", "y", "z", "type") if name not in columns]:
            found = ", ".join(filter(None, columns)) or "nothing"
            raise ValueError(f"the column {missing[0]} is missing; found {found}")
        return [_row(line, f"line {table.line_num}") for line in table]


def write_csv(path: Path, rows: Iterable[tuple[float, float, float, int]]) -> None:
    """Write x, y, z and types, after a column that counts the lines."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["", "x", "y", "z", "type"])
        for i, (z, y, x, kind) in enumerate(rows):
            table.writerow([i, _spell(x), _spell(y), _spell(z), kind])


def _row(cell: Any, who: str) -> tuple[float, float, float, int]:
    if not isinstance(cell, Mapping):
        raise ValueError(f"{who} is {cell!r}, expected x, y, z and type")
    z, y, x, kind = (_number(cell, key, who) for key in ("z", "y", "x", "type"))
    if not kind.is_integer():
        raise ValueError(f"{who}: type is {kind:g}, expected a whole number")
    return z, y, x, int(kind)


def _number(cell: Mapping[str, Any], key: str, who: str) -> float:
    value = cell.get(key)
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"{who}: {key} is {value!r}, expected a number") from None


def _spell(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)
