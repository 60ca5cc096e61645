"""Brains and their candidates, made once and kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.classifying.config import Effort
from benchmarks.volume import Tissue
from cubeclf_core.axes import Shape3, Size3
from cubeclf_core.cells import NO_CELL, Cells, read_cells, write_cells
from cubeclf_core.config import SimulateConfig
from cubeclf_core.console import say
from cubeclf_core.geometry import source_shape, starts_around
from cubeclf_core.pyramid import write_ome_zarr
from cubeclf_core.simulate import simulate
from cubeclf_core.simulate_tissue import VOXEL_SIZE_UM
from cubeclf_core.vit_config import Vit3dConfig
from cubeclf_core.volumes import Volume, open_volume

CROP_UM: Size3 = (5.0, 2.0, 2.0)


@dataclass(frozen=True)
class Subject:
    """A brain with candidates.

    Attributes
    ----------
    name
        Of its figures.
    signal, background
        The volume; an OME-Zarr may have both channels in the first.
    voxel_size_um
        z y x.
    cells
        XML.
    n
        How many there are.
    """

    name: str
    signal: Path
    background: Path | None
    voxel_size_um: Size3
    cells: Path
    n: int

    @property
    def arguments(self) -> list[object]:
        """How `cubeclf-classify` is told of it."""
        words: list[object] = [self.signal, "--cells", self.cells]
        if self.background is not None:
            words += ["--background", self.background]
        return [*words, "--voxel-size-um", *self.voxel_size_um]


def crop(data: Path, folder: Path, n: int) -> Subject:
    """Take the real crop, and random candidates in it, none of which cellfinder would drop."""
    signal, background = (data / "serial2p_crop" / channel for channel in ("ch0", "ch1"))
    volume = open_volume(signal, background=background, voxel_size_um=CROP_UM)
    cells = _random(volume, n)
    return _subject("crop", signal, background, CROP_UM, cells, folder)


def simulated(folder: Path, effort: Effort) -> Subject:
    """Simulate a brain of two channels; its own candidates that cellfinder would not drop."""
    shape, n_cells = effort.simulated
    made = folder / f"simulated-{_by(shape)}-{n_cells}"
    if not made.exists():
        simulate(SimulateConfig(out=made, shape=shape, cells=n_cells))
    volume = open_volume(made / "brain.ome.zarr")
    cells = read_cells(made / "cells.xml")
    inside = np.random.default_rng(0).permutation(np.flatnonzero(_fit(volume, cells.positions)))
    cells = cells[np.sort(inside[: effort.candidates])]
    size = volume.voxel_size_um
    return _subject("simulated", made / "brain.ome.zarr", None, size, cells, folder)


def many(folder: Path, n: int, shape: Shape3) -> Subject:
    """Make a brain of smooth tissue and noise, one channel, and candidates anywhere in it."""
    path = folder / f"tissue-{_by(shape)}.ome.zarr"
    if not path.exists():
        say(f"making a brain of {_by(shape)} voxels in {folder}")
        write_ome_zarr(path, [Tissue(shape, 0)], VOXEL_SIZE_UM)
    positions = np.random.default_rng(0).integers(0, shape, (n, 3)).astype(np.float64)
    cells = Cells(positions, np.full(n, NO_CELL))
    return _subject(f"tissue {n}", path, None, VOXEL_SIZE_UM, cells, folder)


def _random(volume: Volume, n: int) -> Cells:
    random = np.random.default_rng(0)
    anywhere = random.integers(0, volume.shape, (40 * n, 3)).astype(np.float64)
    positions = anywhere[_fit(volume, anywhere)][:n]
    return Cells(positions, np.full(len(positions), NO_CELL))


def _fit(volume: Volume, positions: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Whether the cuboid around each lies within the volume, with a voxel to spare."""
    taken = Vit3dConfig()
    extent = source_shape(taken.cuboid_shape, taken.voxel_size_um, volume)
    starts = starts_around(positions, extent)
    room = np.subtract(volume.shape, extent)
    return np.asarray(((starts > 0) & (starts < room)).all(axis=1))


def _subject(
    name: str, signal: Path, background: Path | None, um: Size3, cells: Cells, folder: Path
) -> Subject:
    file = folder / f"{name.replace(' ', '-')}.xml"
    write_cells(file, cells)
    return Subject(name, signal, background, um, file, len(cells))


def _by(shape: Shape3) -> str:
    return "x".join(map(str, shape))
