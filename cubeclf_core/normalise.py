"""From raw counts to what a network sees: each channel of each cuboid by its own numbers.

Two ways suggest themselves, and both lose something. Divided by its standard deviation, a cuboid
with a bright cell looks like one with a dim one, though contrast tells cells from artefacts.
Divided by its mean, tissue with more texture looks as if it had more contrast. What a network sees
is divided by the geometric mean of the two: the root of the contrast is left, and the root of how
far the object stands out.

The statistics are the cuboid's own, so a classifier needs no numbers from the brain it runs on, and
another gain of the microscope leaves its input as it was. Another offset does not: with a higher
one the same cell has less contrast.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

NORMALISATION = "contrast"
"""The name of this normalisation in a checkpoint's header."""

TEXTURE = 0.12  # usual deviation of tissue as a share of its mean, so that 1 is usual here too
LEAST = 0.1  # deviations that the mean's share counts as at least: it may be 0 without background


def normalise(cuboids: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
    """Subtract each cuboid's mean, and divide by the root of deviation × 0.12 mean, per channel.

    A constant channel, a missing one for instance, becomes zero. Where the background was taken
    off, so that the mean is small or negative, a tenth of the deviation stands for 0.12 mean.

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
    mean = cuboids.mean(dim=(2, 3, 4), keepdim=True)
    centred = cuboids - mean
    deviation = centred.square().mean(dim=(2, 3, 4), keepdim=True).sqrt()
    return centred / unit(mean, deviation)


def unit(mean: Float[Tensor, "*any"], deviation: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """What a channel of a cuboid is divided by, of its mean and its deviation."""
    share = torch.maximum(TEXTURE * mean, LEAST * deviation)
    return (deviation * share).sqrt().clamp_min(1e-6)


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
