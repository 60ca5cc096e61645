"""Small affine and elastic changes, and the cutting of a view, in one resampling."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cubeclf_core.augment import hats
from cubeclf_core.axes import Shape3, Size3
from cubeclf_core.draws import Draws

_KNOTS = 3  # control points along each axis: the faces of the view and its middle


def warp(
    canvas: Float[Tensor, "b c z y x"],
    shape: Shape3,
    middles: Float[Tensor, "b 3"],
    draws: Draws,
    *,
    rotation_deg: float,
    scale: float,
    elastic_um: float,
    voxel_size_um: Size3,
) -> Float[Tensor, "b c vz vy vx"]:
    """Cut a view out of each canvas as if the tissue were turned, stretched and bent a little.

    The map is made in µm, since voxels are longer along z, at 3×3×3 control points; between them
    it is linear, which for its affine part is exact. Values are interpolated trilinearly, once, and
    beyond the canvas its border goes on.

    Parameters
    ----------
    canvas
        Raw counts.
    shape
        Of a view, in voxels; it is not resized.
    middles
        The middle of each view in its canvas, z y x, in voxels; it stays where it is.
    draws
        Source of the choices.
    rotation_deg
        The angle about z is drawn from ±rotation_deg.
    scale
        The elements of the strain, which stretches each axis and shears them against each other,
        are drawn from ±scale.
    elastic_um
        Each control point but the middle one is moved by up to this along each axis.
    voxel_size_um
        Of the canvas, z y x.
    """
    device = canvas.device
    size = torch.tensor(voxel_size_um, device=device)
    knots = torch.cartesian_prod(*[torch.linspace(-0.5, 0.5, _KNOTS, device=device)] * 3)
    knots = knots * torch.tensor(shape, device=device) * size
    moved_um = knots @ _affine(draws, rotation_deg, scale).mT
    moved_um += _jolts(draws, elastic_um)
    source = middles[:, None] + moved_um / size
    extent = torch.tensor(canvas.shape[2:], device=device)
    share = ((2 * source + 1) / extent - 1).flip(2)  # as grid_sample counts, in order x y z
    share = share.unflatten(1, (_KNOTS,) * 3)
    along = [hats(_KNOTS, n, device) for n in shape]
    everywhere = torch.einsum("bkijd,kz,iy,jx->bzyxd", share, *along)
    return F.grid_sample(canvas, everywhere, padding_mode="border", align_corners=False)


def _affine(draws: Draws, rotation_deg: float, scale: float) -> Float[Tensor, "b 3 3"]:
    """Draw a rotation about z after a strain, as matrices of positions z y x."""
    angle = draws.uniform(low=-rotation_deg, high=rotation_deg) * (math.pi / 180)
    rotation = torch.zeros(len(draws), 3, 3, device=draws.device)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = angle.cos()
    rotation[:, 1, 2] = angle.sin()
    rotation[:, 2, 1] = -angle.sin()
    strain = draws.uniform(3, 3, low=-scale, high=scale)
    strain = (strain + strain.mT) / 2
    return rotation @ (torch.eye(3, device=draws.device) + strain)


def _jolts(draws: Draws, elastic_um: float) -> Float[Tensor, "b knot 3"]:
    """Draw how control points are moved, in µm; the middle one is not."""
    jolts = draws.uniform(_KNOTS**3, 3, low=-elastic_um, high=elastic_um)
    jolts[:, _KNOTS**3 // 2] = 0
    return jolts
