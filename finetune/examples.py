"""What a classifier learns from in one step: cuboids with augmentation, or features kept of them.

Features of a frozen backbone are computed once, of each cuboid as it is and of copies that are
turned in the plane and flipped along z; a head on a thousand labels then trains in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cubeclf_core.augment import bend, drop_background, flip_and_rotate, photon_noise, turns
from cubeclf_core.axes import Size3
from cubeclf_core.config import AugmentConfig
from cubeclf_core.console import progress
from cubeclf_core.draws import Draws
from cubeclf_core.trained import Classifier

_GAMMA, _NOISE = AugmentConfig.gamma, AugmentConfig.noise  # contrast tells what a cell is
_BACKGROUND_DROPPED = 0.1
_AT_A_TIME = 64


@runtime_checkable
class Examples(Protocol):
    """Input of a network, by the number of a label."""

    def training(self, index: Tensor, draws: Draws) -> Tensor:
        """As a step learns from them, another way each time; on the device of the draws."""

    def plain(self, index: Tensor) -> Tensor:
        """As they are."""


@dataclass(frozen=True)
class Cuboids:
    """Raw cuboids, augmented as they are learned from.

    Attributes
    ----------
    cuboids
        Raw counts, on the CPU.
    voxel_size_um
        z y x.
    along_z
        With which probability one that is learned from is flipped along z.
    """

    cuboids: Float[Tensor, "n c z y x"]
    voxel_size_um: Size3
    along_z: float = 0.5

    def training(self, index: Tensor, draws: Draws) -> Tensor:
        """Change what tells nothing of a cell: where it points, how it was photographed."""
        cuboids = self.cuboids[index].to(draws.device)
        cuboids = flip_and_rotate(
            cuboids, draws.fork(0), voxel_size_um=self.voxel_size_um, along_z=self.along_z
        )
        cuboids = bend(cuboids, draws.fork(1), gamma=_GAMMA)
        cuboids = photon_noise(cuboids, draws.fork(2), noise=_NOISE)
        return drop_background(cuboids, draws.fork(3), probability=_BACKGROUND_DROPPED)

    def plain(self, index: Tensor) -> Tensor:
        """Raw counts."""
        return self.cuboids[index]


@dataclass(frozen=True)
class Features:
    """What a frozen backbone says of each cuboid, and of copies of it.

    Attributes
    ----------
    copies
        On the CPU: first the cuboids as they are, then turned in the plane, then flipped along z.
        Embeddings, or patch tokens for a head that takes those.
    along_z
        With which probability one that is learned from is flipped along z.
    """

    copies: Float[Tensor, "copy n *token width"]
    along_z: float = 0.5

    @property
    def n_in_plane(self) -> int:
        """How many of the copies, the first, are not flipped along z."""
        return -(-len(self.copies) // 2)

    def training(self, index: Tensor, draws: Draws) -> Tensor:
        """Take one of the copies of each."""
        n = len(self.copies)
        ends = (0.0, 1 - self.along_z, 1.0), (0, self.n_in_plane, n)
        which = np.interp(draws.uniform().flatten().cpu().numpy(), *ends).astype(np.int64)
        copies = torch.from_numpy(which.clip(max=n - 1))  # where there is but one
        return self.copies[copies, index].to(draws.device)

    def plain(self, index: Tensor) -> Tensor:
        """Features of the cuboids as they are."""
        return self.copies[0, index]


@torch.no_grad()
def in_parts(
    network: Callable[[Tensor], Tensor], inputs: Callable[[Tensor], Tensor], index: Tensor
) -> Tensor:
    """Ask a network about many examples, a few at a time; the answers are on the CPU."""
    return torch.cat([network(inputs(part)).cpu() for part in index.split(_AT_A_TIME)])


def keep_features(
    classifier: Classifier,
    cuboids: Float[Tensor, "n c z y x"],
    *,
    copies: int,
    device: torch.device | str = "cpu",
) -> Features:
    """Compute the features of a backbone as it is, once for all that is learned from them.

    Parameters
    ----------
    classifier
        Its backbone; it is in evaluation mode, and on `device`, afterwards.
    cuboids
        Raw counts.
    copies
        Of each cuboid: itself, and others; see `turns`.
    device
        Where to compute.
    """
    classifier.to(device).eval()
    voxel_size_um = classifier.backbone.config.voxel_size_um
    kept = []
    with progress("embedding", len(cuboids), unit="cuboids") as advance, torch.no_grad():
        for part in cuboids.split(_AT_A_TIME):
            turned = turns(part.to(device), copies, voxel_size_um=voxel_size_um)
            kept.append(torch.stack([classifier.features(one).cpu() for one in turned]))
            advance(len(part))
    return Features(torch.cat(kept, dim=1))
