"""What a classifier learns from in one step: cuboids with augmentation, or features kept of them.

Features of a frozen backbone are computed once, of each cuboid as it is and of copies that are
flipped and rotated; a head on a thousand labels then trains in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from cubeclf_core.augment import bend, drop_background, flip_and_rotate, photon_noise
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
    """

    cuboids: Float[Tensor, "n c z y x"]
    voxel_size_um: Size3

    def training(self, index: Tensor, draws: Draws) -> Tensor:
        """Change what tells nothing of a cell: where it points, how it was photographed."""
        cuboids = self.cuboids[index].to(draws.device)
        cuboids = flip_and_rotate(cuboids, draws.fork(0), voxel_size_um=self.voxel_size_um)
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
        On the CPU: first the cuboids as they are, then those that are flipped and rotated.
        Embeddings, or patch tokens for a head that takes those.
    """

    copies: Float[Tensor, "copy n *token width"]

    @property
    def embeddings(self) -> Float[Tensor, "n feature"]:
        """One vector for each cuboid as it is: the mean, of tokens."""
        plain = self.copies[0]
        return plain if plain.ndim == 2 else plain.mean(1)

    def training(self, index: Tensor, draws: Draws) -> Tensor:
        """Take one of the copies of each."""
        which = (draws.uniform().flatten() * len(self.copies)).long().cpu()
        return self.copies[which, index].to(draws.device)

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
    seed: int,
    device: torch.device | str = "cpu",
) -> Features:
    """Compute the features of a frozen backbone, once for all that is learned from them.

    Parameters
    ----------
    classifier
        Its backbone; it is in evaluation mode, and on `device`, afterwards.
    cuboids
        Raw counts.
    copies
        Of each cuboid: itself, and others flipped and rotated.
    seed
        Of how they are turned.
    device
        Where to compute.
    """
    classifier.to(device).eval()
    voxel_size_um = classifier.backbone.config.voxel_size_um
    everything = torch.arange(len(cuboids))
    kept = []
    with progress("embedding", copies * len(cuboids), unit="cuboids") as advance:
        for copy in range(copies):

            def inputs(index: Tensor, copy: int = copy) -> Tensor:
                advance(len(index))
                part = cuboids[index].to(device)
                draws = Draws(seed, copy, index.tolist(), device)
                if not copy:
                    return part
                return flip_and_rotate(part, draws, voxel_size_um=voxel_size_um)

            kept.append(in_parts(classifier.features, inputs, everything))
    return Features(torch.stack(kept))
