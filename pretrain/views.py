"""Views of a canvas, cut without resizing: the size of a cell tells what it is."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from cubeclf_core.augment import (
    change_intensities,
    drop_background,
    flip_and_rotate,
    rescale_channels,
)
from cubeclf_core.axes import Shape3, Size3
from cubeclf_core.config import AugmentConfig
from cubeclf_core.draws import Draws, send
from cubeclf_core.normalise import normalise
from cubeclf_core.surroundings import swap_surroundings
from cubeclf_core.vit import Vit3dConfig
from cubeclf_core.warp import warp

_SWAPPING = 1 << 11  # apart from what the views draw


def canvas_shape(network: Vit3dConfig, margin: Shape3) -> Shape3:
    """Size of what views are cut from: the network's cuboid, and so many voxels more."""
    z, y, x = (n + more for n, more in zip(network.cuboid_shape, margin, strict=True))
    return z, y, x


@torch.no_grad()
def make_global_views(
    canvas: Float[Tensor, "b c z y x"],
    n: int,
    network: Vit3dConfig,
    draws: Draws,
    augment: AugmentConfig,
) -> list[Float[Tensor, "b c vz vy vx"]]:
    """Make n views of the network's size of each canvas, with exchanged surroundings.

    Parameters
    ----------
    canvas
        Raw counts; as large as the network's cuboid, or larger.
    n
        Views of a canvas.
    network
        What the views are for.
    draws
        Source of the choices; its forks 0 … n-1 are the views', and 2048 is used too.
    augment
        How strong the changes are; with `surroundings`, what is around the object is another
        canvas's, a different one in each view (see `swap_surroundings`).
    """
    size = network.voxel_size_um
    whole = dataclasses.replace(augment, drop_background=0.0)
    views = []
    for i in range(n):
        drawn = draws.fork(i)
        view = make_view(canvas, network.cuboid_shape, drawn, whole, size)
        if augment.surroundings:
            view = swap_surroundings(
                view,
                draws.fork(_SWAPPING),
                probability=augment.surroundings,
                radius_um=augment.surroundings_um,
                voxel_size_um=size,
                view=i,
            )
        # Last, so that what is missing is missing everywhere: zero is that also when normalised.
        views.append(_without_background(view, drawn, augment))
    return views


@torch.no_grad()
def make_view(
    canvas: Float[Tensor, "b c z y x"],
    shape: Shape3,
    draws: Draws,
    augment: AugmentConfig,
    voxel_size_um: Size3,
) -> Float[Tensor, "b c vz vy vx"]:
    """Cut a view at a random place of each canvas, change it, and normalise it.

    Parameters
    ----------
    canvas
        Raw counts; as large as the view, or larger.
    shape
        Of the view, z y x, in voxels.
    draws
        Source of the choices; give each view of a canvas a fork of its own.
    augment
        How strong the changes are.
    voxel_size_um
        Of the canvas, z y x.

    Returns
    -------
    Tensor
        float32, also under autocast.
    """
    with torch.autocast(canvas.device.type, enabled=False):
        view = cut_view(canvas, shape, draws.fork(0), augment, voxel_size_um)
        if augment.flip:
            view = flip_and_rotate(view, draws.fork(1), voxel_size_um=voxel_size_um)
        view = change_intensities(view, draws.fork(2), augment, voxel_size_um)
        view = normalise(_without_background(view, draws, augment))
        if augment.rescale:
            view = rescale_channels(view, draws.fork(4), strength=augment.rescale)
        return view


def _without_background(
    view: Float[Tensor, "b c z y x"], draws: Draws, augment: AugmentConfig
) -> Float[Tensor, "b c z y x"]:
    if not augment.drop_background or view.shape[1] == 1:
        return view
    return drop_background(view, draws.fork(3), probability=augment.drop_background)


def cut_view(
    canvas: Float[Tensor, "b c z y x"],
    shape: Shape3,
    draws: Draws,
    augment: AugmentConfig,
    voxel_size_um: Size3,
) -> Float[Tensor, "b c vz vy vx"]:
    """Cut a view of `shape` at a random place of each canvas, all places alike.

    The share `augment.warp` of the views is warped as it is cut; the others are plain copies.
    """
    room = torch.tensor(canvas.shape[2:]) - torch.tensor(shape)
    starts = (draws.fork(0, host=True).uniform(3) * (room + 1)).long()
    view = _cut(canvas, shape, send(starts, canvas.device))
    which = draws.fork(1, host=True).coin(augment.warp).nonzero()[:, 0]
    if not len(which):
        return view
    there = send(which, canvas.device)
    middles = starts[which] + (torch.tensor(shape) - 1) / 2
    view[there] = warp(
        canvas[there],
        shape,
        send(middles, canvas.device),
        draws.fork(2).take(which),
        rotation_deg=augment.rotation_deg,
        scale=augment.scale,
        elastic_um=augment.elastic_um,
        voxel_size_um=voxel_size_um,
    )
    return view


def _cut(
    canvas: Float[Tensor, "b c z y x"], shape: Shape3, starts: Tensor
) -> Float[Tensor, "b c vz vy vx"]:
    """Copy a view from each canvas, in one go: index the windows that it could be cut from."""
    windows = canvas
    for axis, n in enumerate(shape, start=2):
        windows = windows.unfold(axis, n, 1)
    each = torch.arange(len(canvas), device=canvas.device)
    return windows[each, :, starts[:, 0], starts[:, 1], starts[:, 2]]
