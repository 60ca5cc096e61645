"""Views of a canvas, cut without resizing: the size of a cell tells what it is."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cubeclf_core.augment import drop_background, flip_and_rotate, jitter_intensity
from cubeclf_core.axes import Shape3
from cubeclf_core.normalise import standardise


def cut_view(
    canvas: Float[Tensor, "b c z y x"], shape: Shape3, random: torch.Generator
) -> Float[Tensor, "b c vz vy vx"]:
    """Cut a view of `shape` at a random place of each canvas, all places alike."""
    room = torch.tensor([have - want for have, want in zip(canvas.shape[2:], shape, strict=True)])
    share = torch.rand(len(canvas), 3, generator=random, device=random.device).cpu()
    starts = (share * (room + 1)).long().tolist()
    return torch.stack(
        [
            item[:, z : z + shape[0], y : y + shape[1], x : x + shape[2]]
            for item, (z, y, x) in zip(canvas, starts, strict=True)
        ]
    )


def make_view(
    canvas: Float[Tensor, "b c z y x"], shape: Shape3, random: torch.Generator
) -> Float[Tensor, "b c vz vy vx"]:
    """Cut, flip, rotate and bend a view of raw counts, and standardise it."""
    view = jitter_intensity(flip_and_rotate(cut_view(canvas, shape, random), random), random)
    return standardise(drop_background(view, random))
