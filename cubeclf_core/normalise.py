"""From raw counts to what a network sees: each channel of each cuboid to mean 0 and deviation 1.

The statistics are the cuboid's own, so a classifier needs no numbers from the brain it runs on and
a change of gain or offset between microscopes leaves its input as it was.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

NORMALISATION = "cuboid"
"""The name of this normalisation in a checkpoint's header."""


def standardise(cuboids: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
    """Subtract each cuboid's mean and divide by its standard deviation, per channel.

    A constant channel, a missing one for instance, becomes zero.

    Parameters
    ----------
    cuboids
        Raw counts.

    Returns
    -------
    Tensor
        Same shape, float32.
    """
    cuboids = cuboids.float()
    centred = cuboids - cuboids.mean(dim=(2, 3, 4), keepdim=True)
    deviation = centred.square().mean(dim=(2, 3, 4), keepdim=True).sqrt()
    return centred / deviation.clamp_min(1e-6)


def match_channels(
    cuboids: Float[Tensor, "b c z y x"], n_channels: int
) -> Float[Tensor, "b n_channels z y x"]:
    """Give cuboids the channels that a network takes.

    Surplus channels (a background that a one-channel network does not use) are left out, missing
    ones are zero, as the training's dropped channels were.
    """
    missing = n_channels - cuboids.shape[1]
    if missing <= 0:
        return cuboids[:, :n_channels]
    return torch.cat([cuboids, cuboids.new_zeros(len(cuboids), missing, *cuboids.shape[2:])], dim=1)
