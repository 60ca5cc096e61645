"""What lies around the object at the centre, exchanged between cuboids.

Two views of one cuboid share everything around the candidate too, and telling cuboids apart by that
is easier than by the object. With other surroundings in each view only the object is left. As
CutMix (Yun et al., arXiv:1905.04899) exchanges boxes of labelled images, with a soft ball instead.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cubeclf_core.axes import Size3
from cubeclf_core.draws import Draws

GROUP = 4
"""Consecutive cuboids that exchange: they are on one rank wherever its share is a multiple."""

_EDGE_UM = 2.5  # softness of the ball's edge
_AXIAL = 1.5  # how much longer the ball is along z, where the point spread is longer


def swap_surroundings(
    cuboids: Float[Tensor, "b c z y x"],
    draws: Draws,
    *,
    probability: float,
    radius_um: tuple[float, float],
    voxel_size_um: Size3,
    view: int = 0,
) -> Float[Tensor, "b c z y x"]:
    """Give cuboids the surroundings of another one in their group of four.

    Views of one cuboid, up to three, get those of different ones. Where the batch is no multiple of
    four but even, they exchange in pairs, and all views get the same.

    Parameters
    ----------
    cuboids
        Normalised, so that brightness does not tell one from the other.
    draws
        Source of the choices; the same for all views of a cuboid.
    probability
        Of a cuboid to get other surroundings.
    radius_um
        Least and largest radius, in y and x, of the ball around the centre that stays.
    voxel_size_um
        z y x.
    view
        Which of the views of each cuboid these are.
    """
    group = next(n for n in (GROUP, 2, 1) if len(cuboids) % n == 0)
    if group == 1:
        return cuboids
    index = torch.arange(len(cuboids), device=cuboids.device)
    first = (draws.fork(0).uniform() * (group - 1)).long()
    step = 1 + (first + view) % (group - 1)
    partner = (index // group) * group + (index % group + step) % group
    draws = draws.fork(1 + view)
    radius = draws.uniform(1, 1, 1, 1, low=radius_um[0], high=radius_um[1])
    size = (voxel_size_um[0] / _AXIAL, *voxel_size_um[1:])
    distance = _distances(cuboids, size)
    kept = torch.sigmoid((radius - distance) / _EDGE_UM)
    kept = torch.where(draws.coin(probability, 1, 1, 1, 1), kept, 1.0)
    return torch.lerp(cuboids[partner], cuboids, kept)


def _distances(cuboids: Float[Tensor, "b c z y x"], size_um: Size3) -> Float[Tensor, "z y x"]:
    """How far each voxel's middle is from the centre, in µm."""
    axes = [
        (torch.arange(n, device=cuboids.device) - (n - 1) / 2) * size
        for n, size in zip(cuboids.shape[2:], size_um, strict=True)
    ]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return (z.square() + y.square() + x.square()).sqrt()
