"""Labelled cuboids in memory: from brains with cells, joined, checked, and drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from cubeclf_core.brains import Brain
from cubeclf_core.candidates import read_all_candidates
from cubeclf_core.cells import CELL, Cells
from cubeclf_core.errors import CellsError
from cubeclf_core.network_configs import BackboneConfig
from cubeclf_core.normalise import match_channels


@dataclass(frozen=True)
class Labelled:
    """Raw cuboids as a network takes them, with their class and where they are from.

    Attributes
    ----------
    cuboids
        Float32 raw counts.
    labels
        Shape (n,), the class, counted from 0: 1 cell and 0 no cell where they come from files.
    brains
        The group that each belongs to: its brain, or the animal that brain is of. Labels of one
        group are never split apart without a guard.
    volumes
        Which volume each is in: `Brain.signal`; of cubes nothing is known but their group.
    positions
        Shape (n, 3), float64, z y x in voxels of that volume; NaN where it is not known.
    voxels_um
        Shape (n, 3), size of these voxels.
    sources
        What to call each when speaking to a person: file, and z,y,x in voxels.
    """

    cuboids: Float[Tensor, "n c z y x"]
    labels: npt.NDArray[np.int64]
    brains: list[str]
    volumes: list[str]
    positions: npt.NDArray[np.float64]
    voxels_um: npt.NDArray[np.float64]
    sources: list[str]

    def __post_init__(self) -> None:
        n = len(self.labels)
        each = (self.cuboids, self.brains, self.volumes, self.sources)
        assert all(len(part) == n for part in each)
        assert self.positions.shape == self.voxels_um.shape == (n, 3)

    @property
    def positions_um(self) -> npt.NDArray[np.float64]:
        """Shape (n, 3), z y x in the volume; NaN where it is not known."""
        return self.positions * self.voxels_um

    @property
    def names(self) -> list[str]:
        """Of the groups, sorted."""
        return sorted(set(self.brains))

    @property
    def brain_numbers(self) -> npt.NDArray[np.int64]:
        """Shape (n,): the group of each, as its number among `names`."""
        return np.unique(self.brains, return_inverse=True)[1].astype(np.int64)

    @classmethod
    def unplaced(
        cls, cuboids: Float[Tensor, "n c z y x"], labels: npt.NDArray[np.int64], brain: str
    ) -> Labelled:
        """Labels of one brain whose places are not known, named by their number from 0."""
        n = len(labels)
        sources = [f"{brain} {i}" for i in range(n)]
        nowhere = np.full((n, 3), np.nan)
        return cls(cuboids, labels, [brain] * n, [brain] * n, nowhere, nowhere, sources)

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: npt.NDArray[np.int64]) -> Labelled:
        """Some of them, in the order given."""
        return Labelled(
            self.cuboids[torch.from_numpy(index)],
            self.labels[index],
            [self.brains[i] for i in index],
            [self.volumes[i] for i in index],
            self.positions[index],
            self.voxels_um[index],
            [self.sources[i] for i in index],
        )


def read_labelled(
    brain: Brain,
    network: BackboneConfig,
    index: npt.NDArray[np.int64] | None = None,
    further: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> Labelled:
    """Read the cuboids around a brain's cells, or around some of them.

    Parameters
    ----------
    brain
        Its cells are the labels.
    network
        What the cuboids are for.
    index
        Which of the cells; all if not given.
    further
        Classes beside "no cell" and "cell"; see `classes_of`.

    Raises
    ------
    CellsError
        If the brain has no cells.
    VolumeTooSmall
        If it is smaller than one cuboid.
    """
    if brain.cells is None:
        raise CellsError(f"brain {brain.name} has no cells; add a `cells` entry to its brains file")
    cells = brain.cells if index is None else brain.cells[index]
    read = read_all_candidates(
        brain.volume,
        cells.positions,
        shape=network.cuboid_shape,
        voxel_size_um=network.voxel_size_um,
        n_channels=min(network.channels, brain.volume.n_channels),
    )
    return Labelled(
        match_channels(read.cuboids, network.channels),
        classes_of(cells.types, further),
        [group_of(brain)] * len(cells),
        [brain.signal] * len(cells),
        cells.positions,
        np.tile(np.array(brain.volume.voxel_size_um, np.float64), (len(cells), 1)),
        name_cells(brain, cells),
    )


def group_of(brain: Brain) -> str:
    """Give the group of a brain: its own name, if it was given none."""
    return brain.name if brain.group is None else brain.group


def name_cells(brain: Brain, cells: Cells) -> list[str]:
    """Name some of a brain's cells: ``mouse 1/cells.xml 12,340,220``, z,y,x in voxels."""
    where = brain.name if brain.cells_path is None else f"{brain.name}/{brain.cells_path.name}"
    return [where + " " + ",".join(f"{p:g}" for p in zyx) for zyx in cells.positions.tolist()]


def join(parts: Sequence[Labelled]) -> Labelled:
    """Put labelled cuboids of several sources together."""
    return Labelled(
        torch.cat([part.cuboids for part in parts]),
        np.concatenate([part.labels for part in parts]),
        [brain for part in parts for brain in part.brains],
        [volume for part in parts for volume in part.volumes],
        np.concatenate([part.positions for part in parts]),
        np.concatenate([part.voxels_um for part in parts]),
        [source for part in parts for source in part.sources],
    )


def classes_of(
    types: npt.NDArray[np.int64], further: Mapping[str, Sequence[int]]
) -> npt.NDArray[np.int64]:
    """Tell the class of cells by their types.

    Parameters
    ----------
    types
        Shape (n,), as in a cells file.
    further
        Classes beside "no cell" and "cell", and the types of each.

    Returns
    -------
    numpy.ndarray
        Shape (n,): 1 cell, 2 and on the further ones in their order, 0 anything else.
    """
    labels = np.where(types == CELL, 1, 0)
    for number, own in enumerate(further.values(), 2):
        labels[np.isin(types, list(own))] = number
    return labels.astype(np.int64)


def check_both_classes(labels: npt.NDArray[np.int64], source: str) -> None:
    """Raise unless there are cells and others, at least two of each.

    Raises
    ------
    CellsError
        If there is one class only, or but one label of a class: nothing could be learned from it
        and tested too.
    """
    cells = int(np.count_nonzero(labels == 1))
    others = len(labels) - cells
    if min(cells, others) >= 2:
        return
    if min(cells, others) == 1:
        found = f"{cells} of {len(labels)} labels {'is a cell' if cells == 1 else 'are cells'}"
        raise CellsError(
            f"{source}: {found}; a classifier needs at least two cells and two others "
            "(type 2 is a cell, any other type is none)"
        )
    kind = "cells" if cells else "non-cells"
    raise CellsError(
        f"{source}: all {len(labels)} labels are {kind}; a classifier needs both "
        "(type 2 is a cell, any other type is none)"
    )


def draw(labels: npt.NDArray[np.int64], n: int, seed: int) -> npt.NDArray[np.int64]:
    """Choose `n` labels at random, cells and others in proportion and at least one of each.

    Returns
    -------
    numpy.ndarray
        Sorted indices; all of them if there are no more than `n`.
    """
    if n >= len(labels):
        return np.arange(len(labels))
    random = np.random.default_rng((seed, 0x1ABE15))
    cells = random.permutation(np.flatnonzero(labels == 1))
    others = random.permutation(np.flatnonzero(labels != 1))
    n_cells = int(np.clip(round(n * len(cells) / len(labels)), 1, n - 1))
    n_cells = max(n_cells, n - len(others))
    return np.sort(np.concatenate([cells[:n_cells], others[: n - n_cells]]))
