"""The settings of this package's commands; imports no torch, so that `--help` answers at once."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """Write a simulated brain (two channels) with known cells and artefacts.

    OUT gets brain.ome.zarr (5×1×1 µm, signal and background), cells.xml (type 2 cell, type 1
    artefact or nothing) and preview.png.

    Parameters
    ----------
    out
        Folder to write.
    shape
        Voxels z y x, at least 20 50 50.
    cells
        Number of cells; about 1.7 times as many artefacts come with them.
    seed
        Which brain; the same seed gives the same bytes.
    overwrite
        Replace the folder if it exists.
    """

    out: Path
    shape: tuple[int, int, int] = (96, 384, 384)
    cells: int = 400
    seed: int = 0
    overwrite: bool = False


@dataclass(frozen=True)
class ConvertConfig:
    """Turn TIFF planes, TIFF stacks or a zarr into one OME-Zarr with a pyramid, bit by bit.

    Example: cubeclf-convert brain/ch0 brain/ch1 --out brain.ome.zarr --voxel-size-um 5 2 2

    When interrupted, run the same command again: it goes on from there.

    Parameters
    ----------
    inputs
        Signal, then optionally background; each a folder of TIFF planes (in natural order: plane2
        before plane10), a TIFF stack, or a zarr, which may be a URL.
    out
        The OME-Zarr to write, such as brain.ome.zarr.
    voxel_size_um
        Size of a voxel along z, y and x, in µm; wins over what the inputs say.
    overwrite
        Replace an existing OME-Zarr, once the new one is complete.
    verify
        Read back and compare with the inputs, bit by bit, and each lower level with the means of
        the next finer. If the output exists, only this, without writing.
    memory_gb
        Memory to take at most, in GB. Planes larger than it holds in slabs are decoded repeatedly:
        more is faster then.
    shard
        Many small chunks to a file of some tens of MB, each with a checksum. Without: a file for
        each chunk of 64×128×128 voxels.
    ome_version
        0.5; or 0.4 for older programs, which has neither shards nor checksums.
    """

    inputs: tuple[str, ...]
    _: KW_ONLY
    out: Path
    voxel_size_um: tuple[float, float, float]
    overwrite: bool = False
    verify: bool = False
    memory_gb: float = 4.0
    shard: bool = True
    ome_version: Literal["0.4", "0.5"] = "0.5"
