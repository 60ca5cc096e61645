"""Labelled cuboids in memory: from brains with cells, joined, checked, and drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from cubeclf_core.brains import Brain
from cubeclf_core.candidates import read_all_candidates
from cubeclf_core.errors import CellsError
from cubeclf_core.normalise import match_channels
from cubeclf_core.vit import Vit3dConfig


@dataclass(frozen=True)
class Labelled:
    """Raw cuboids as a network takes them, with their class.

    Attributes
    ----------
    cuboids
        Float32 raw counts.
    labels
        Shape (n,), 1 cell, 0 no cell.
    sources
        Name of the brain or file that each is from.
    """

    cuboids: Float[Tensor, "n c z y x"]
    labels: npt.NDArray[np.int64]
    sources: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: npt.NDArray[np.int64]) -> Labelled:
        """Some of them, in the order given."""
        sources = [self.sources[i] for i in index]
        return Labelled(self.cuboids[torch.from_numpy(index)], self.labels[index], sources)


def read_labelled(
    brain: Brain, network: Vit3dConfig, index: npt.NDArray[np.int64] | None = None
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
    cuboids = match_channels(read.cuboids, network.channels)
    return Labelled(cuboids, cells.labels, [brain.name] * len(cells))


def join(parts: Sequence[Labelled]) -> Labelled:
    """Put labelled cuboids of several sources together."""
    return Labelled(
        torch.cat([part.cuboids for part in parts]),
        np.concatenate([part.labels for part in parts]),
        [source for part in parts for source in part.sources],
    )


def check_both_classes(labels: npt.NDArray[np.int64], source: str) -> None:
    """Raise unless there are cells and others.

    Raises
    ------
    CellsError
        If there is one class only.
    """
    cells = int(labels.sum())
    if cells in (0, len(labels)):
        kind = "cells" if cells else "non-cells"
        raise CellsError(
            f"{source}: all {len(labels)} labels are {kind}; a classifier needs both "
            "(type 2 is a cell, any other type is none)"
        )


def draw(labels: npt.NDArray[np.int64], n: int, seed: int) -> npt.NDArray[np.int64]:
    """Choose `n` labels at random, in the classes' proportion and at least one of each.

    Returns
    -------
    numpy.ndarray
        Sorted indices; all of them if there are no more than `n`.
    """
    if n >= len(labels):
        return np.arange(len(labels))
    random = np.random.default_rng((seed, 0x1ABE15))
    cells = random.permutation(np.flatnonzero(labels == 1))
    others = random.permutation(np.flatnonzero(labels == 0))
    n_cells = int(np.clip(round(n * len(cells) / len(labels)), 1, n - 1))
    n_cells = max(n_cells, n - len(others))
    return np.sort(np.concatenate([cells[:n_cells], others[: n - n_cells]]))
