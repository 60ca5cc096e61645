"""Batched augmentation on the device; every random choice is a function of the generator given.

Geometry keeps what the microscope fixes: z is never exchanged with y or x, since voxels and blur
differ between them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Cuboids = Float[Tensor, "b c z y x"]


def generator(seed: int, *keys: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a generator that is a pure function of a seed and keys (a step, a rank, a purpose)."""
    state = seed
    for key in keys:  # splitmix64, so that neighbouring keys give unrelated streams
        state = (state * 0x9E3779B97F4A7C15 + key + 1) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return torch.Generator(device).manual_seed(state % 2**63)


def flip_and_rotate(cuboids: Cuboids, random: torch.Generator) -> Cuboids:
    """Flip each cuboid along z, y and x and transpose y with x, each with probability ½.

    These are the 16 symmetries of a cuboid whose y and x voxels are alike; values are only moved.
    """
    square = cuboids.shape[3] == cuboids.shape[4]
    for axis in (2, 3, 4):
        cuboids = torch.where(_coin(cuboids, 0.5, random), cuboids.flip(axis), cuboids)
    if square:
        cuboids = torch.where(_coin(cuboids, 0.5, random), cuboids.transpose(3, 4), cuboids)
    return cuboids


def jitter_intensity(
    cuboids: Cuboids, random: torch.Generator, *, gamma: float = 0.25, noise: float = 0.2
) -> Cuboids:
    """Bend the intensity scale of each channel and add read noise.

    Parameters
    ----------
    cuboids
        Raw counts.
    random
        Source of the choices.
    gamma
        The exponent is drawn log-uniformly from e^±gamma, on counts scaled to the cuboid's range,
        which it leaves unchanged.
    noise
        The largest standard deviation of the noise, as a share of the channel's own.
    """
    low = cuboids.amin(dim=(2, 3, 4), keepdim=True)
    span = (cuboids.amax(dim=(2, 3, 4), keepdim=True) - low).clamp_min(1e-6)
    exponent = torch.exp(gamma * (2 * _uniform(cuboids, random) - 1))
    bent = low + span * ((cuboids - low) / span).clamp(0, 1) ** exponent
    share = noise * _uniform(cuboids, random)
    deviation = bent.std(dim=(2, 3, 4), keepdim=True)
    grain = torch.randn(cuboids.shape, generator=random, device=cuboids.device)
    return bent + share * deviation * grain


def drop_background(cuboids: Cuboids, random: torch.Generator, probability: float = 0.2) -> Cuboids:
    """Blank all channels but the signal, at random, so that a network can do without them."""
    if cuboids.shape[1] == 1:
        return cuboids
    dropped = torch.where(_coin(cuboids, probability, random), 0.0, cuboids[:, 1:])
    return torch.cat([cuboids[:, :1], dropped], dim=1)


def _coin(cuboids: Cuboids, probability: float, random: torch.Generator) -> Tensor:
    shape = (len(cuboids), 1, 1, 1, 1)
    return torch.rand(shape, generator=random, device=cuboids.device) < probability


def _uniform(cuboids: Cuboids, random: torch.Generator) -> Tensor:
    shape = (*cuboids.shape[:2], 1, 1, 1)
    return torch.rand(shape, generator=random, device=cuboids.device)
