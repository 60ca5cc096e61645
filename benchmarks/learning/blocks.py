"""The c-Fos blocks: their labels, and what of them a backbone may see without any.

Two backbones an objective serve both protocols. A has seen 695 and 753, B has seen 969: labels of
other brains are tried on a block that the backbone has not seen, labels of a lab's own brain on one
that it has seen, unlabelled. Both have seen what else there is without labels: another c-Fos block
and six of microglia, a stain with other shapes, as a lab has brains of other projects.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from jaxtyping import Float
from torch import Tensor

from benchmarks.learning.config import LABELLED
from cubeclf_core.axes import Size3
from cubeclf_core.brains import Brain, load_brains
from cubeclf_core.cells import NO_CELL, Cells, read_cells, write_cells
from cubeclf_core.errors import InputError
from cubeclf_core.rules import density
from cubeclf_core.vit import Vit3dConfig
from finetune.labels import draw, read_labelled

MICROGLIA = ("1874", "4923", "6003", "6506", "7082", "7466")
UNLABELLED = ("1230", *MICROGLIA)  # 1230 has 38 labels and much bright debris
CLOSED = "969"  # it is counted how often its labels are read; half a head's rule was found on them
SEEN: Mapping[str, tuple[str, ...]] = {"A": ("695", "753", *UNLABELLED), "B": (CLOSED, *UNLABELLED)}
"""Which blocks each backbone is pretrained on."""
VOXEL_SIZE_UM: Size3 = (6.0, 1.62, 1.62)


@dataclass(frozen=True)
class Block:
    """A block's candidates, in the order of its cells file.

    Attributes
    ----------
    name
        Such as "695".
    positions
        Shape (n, 3), z y x in voxels of the block.
    labels
        Shape (n,), 1 inside an annotated nucleus, 0 far from any.
    cuboids
        Raw counts around them, in the network's voxels.
    crowding
        Shape (n,), the number of candidates around each, whether they are looked at or not.
    """

    name: str
    positions: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    cuboids: Float[Tensor, "n 1 z y x"]
    crowding: npt.NDArray[np.float64]


def data_folder() -> Path:
    """Find the real data: CUBECLF_REAL_DATA, or ../shared/data.

    Raises
    ------
    InputError
        If a block or its labels are missing.
    """
    root = Path(__file__).parents[2]
    folder = Path(os.environ.get("CUBECLF_REAL_DATA", root / ".." / "shared" / "data"))
    images = [_image(folder, name) for name in (*LABELLED, *UNLABELLED)]
    for file in (*images, *(_labels(folder, name) for name in LABELLED)):
        if not file.is_file():
            raise InputError(
                f"no {file.name} in {file.parent}; set CUBECLF_REAL_DATA to the folder of the real "
                "data, in which cfos/ and microglia/ hold the blocks"
            )
    return folder.resolve()


def _image(data: Path, name: str) -> Path:
    return data / ("microglia" if name in MICROGLIA else "cfos") / f"{name}.tif"


def _labels(data: Path, name: str) -> Path:
    return _image(data, name).with_suffix(".xml")


def write_brains_file(data: Path, seen: str, folder: Path) -> Path:
    """Write what a backbone sees: blocks, and positions of candidates without their types.

    Parameters
    ----------
    data
        Folder of the real data.
    seen
        Key of `SEEN`.
    folder
        To write into.

    Returns
    -------
    Path
        A YAML brains file.
    """
    return write_unlabelled(data, SEEN[seen], folder / f"{seen}.yaml")


def write_unlabelled(data: Path, names: Sequence[str], file: Path) -> Path:
    """Write a brains file of some blocks with positions of candidates, without their types."""
    entries = []
    for name in names:
        cells = None
        if name in LABELLED:
            cells = file.parent / f"{name}_candidates.xml"
            write_cells(cells, _without_types(read_cells(_labels(data, name))))
        entries.append(_entry(data, name, cells))
    return _write(entries, file)


def write_labelled(data: Path, names: Sequence[str], file: Path) -> Path:
    """Write a brains file of some blocks with their labels."""
    return _write([_entry(data, name, _labels(data, name)) for name in names], file)


def _without_types(cells: Cells) -> Cells:
    """Make all candidates of one type, in an order that does not tell what it was."""
    order = np.lexsort(cells.positions.T)
    return Cells(cells.positions[order], np.full(len(cells), NO_CELL))


def open_block(data: Path, name: str, folder: Path) -> Brain:
    """Open a block with its labels."""
    entry = _entry(data, name, _labels(data, name))
    return load_brains([_write([entry], folder / f"{name}_labelled.yaml")])[0]


def _entry(data: Path, name: str, cells: Path | None) -> dict[str, Any]:
    entry = {"name": name, "signal": str(_image(data, name))}
    entry |= {} if cells is None else {"cells": str(cells.resolve())}
    return {**entry, "voxel_size_um": list(VOXEL_SIZE_UM)}


def _write(entries: Sequence[dict[str, Any]], file: Path) -> Path:
    file.write_text(yaml.safe_dump(list(entries)), encoding="utf-8")
    return file


def read_block(brain: Brain, network: Vit3dConfig, most: int | None, seed: int = 0) -> Block:
    """Read the cuboids around a block's candidates, or around `most` of them."""
    assert brain.cells is not None
    n = len(brain.cells)
    index = draw(brain.cells.labels, n if most is None else most, seed)
    cuboids = read_labelled(brain, network, index).cuboids
    crowding = density(brain.cells.positions, brain.volume.voxel_size_um)
    cells = brain.cells[index]
    return Block(brain.name, cells.positions, cells.labels, cuboids, crowding[index])


def count_opening(folder: Path, blocks: Sequence[str], contenders: Sequence[str]) -> int:
    """Write down that the labels of 969 are read now, if they are; give how often they were.

    Parameters
    ----------
    folder
        Where the count is kept, a line of ``opened_969.jsonl`` each time.
    blocks
        Whose labels are read.
    contenders
        Which objectives are tried on them.
    """
    file = folder / f"opened_{CLOSED}.jsonl"
    if CLOSED in blocks:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"when": when, "objectives": list(contenders)}) + "\n")
    return len(file.read_text(encoding="utf-8").splitlines()) if file.exists() else 0
