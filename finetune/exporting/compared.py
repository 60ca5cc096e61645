"""Cuboids on which an exported classifier is compared with the trained one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from cubeclf_core.axes import Shape3
from cubeclf_core.brains import load_brains
from cubeclf_core.errors import CellsError
from cubeclf_core.network_configs import BackboneConfig
from finetune.labels import join, read_labelled

_MOST = 2000  # labelled cuboids, 800 MB of two channels


@dataclass(frozen=True)
class Compared:
    """Raw cuboids, and what is known of them.

    Attributes
    ----------
    cuboids
        Of the channels that the network takes.
    what
        In words.
    labels
        Shape (n,), 1 for a cell; None of simulated ones.
    """

    cuboids: Float[Tensor, "n c z y x"]
    what: str
    labels: npt.NDArray[np.int64] | None = None


def read_compared(
    files: Sequence[Path], network: BackboneConfig, voxel_size_um: Sequence[float] | None
) -> Compared:
    """Read cuboids around the cells of brains, evenly chosen where they are very many.

    Raises
    ------
    InputError
        If the brains cannot be read, or have no cells.
    """
    brains = load_brains([str(file) for file in files], voxel_size_um=voxel_size_um)
    total = sum(len(brain.cells) for brain in brains if brain.cells is not None)
    step = max(1, ceil(total / _MOST))
    parts = []
    for brain in brains:
        if brain.cells is None:
            raise CellsError(f"brain {brain.name} has no cells; add a `cells` entry to its file")
        index = np.arange(0, len(brain.cells), step, dtype=np.int64)
        parts.append(read_labelled(brain, network, index))
    read = join(parts)
    what = f"{len(read):,} labelled candidates of {', '.join(brain.name for brain in brains)}"
    return Compared(read.cuboids, what, read.labels)


def simulate_compared(network: BackboneConfig) -> Compared:
    """Make cuboids as a camera gives them, and such as only a normalisation finds difficult."""
    cuboids = _counts_like_a_camera(network.channels, network.cuboid_shape)
    odd = cuboids[:4].clone()
    odd[0] = 200  # nothing there
    odd[1, -1] = 0  # a channel that is missing
    odd[2] -= odd[2].mean()  # the background was taken off
    odd[3] *= 100  # bright
    both = torch.cat([cuboids, odd])
    return Compared(both, f"{len(both)} simulated cuboids")


def _counts_like_a_camera(channels: int, shape: Shape3) -> Float[Tensor, "n c z y x"]:
    """Sixteen cuboids of raw counts: blobs of several sizes and heights on a noisy background."""
    random = torch.Generator().manual_seed(0)
    axes = [torch.linspace(-1, 1, n) for n in shape]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0)
    sizes = torch.linspace(0.01, 0.5, 16).view(16, 1, 1, 1, 1)
    heights = torch.logspace(1.5, 4, 16).view(16, 1, 1, 1, 1)
    rate = 200 + heights * torch.exp(-radius / sizes)
    return torch.poisson(rate.expand(16, channels, *shape).contiguous(), generator=random)
