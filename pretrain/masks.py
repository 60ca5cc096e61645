"""Which patches to hide: single ones, or contiguous blocks, in an exact number.

Random masks are those of MAE (He et al., arXiv:2111.06377). Blockwise ones are in the spirit of
BEiT (Bao et al., arXiv:2106.08254) and iBOT (Zhou et al., arXiv:2111.07832), which place rectangles
until about enough is covered; ours grow a few boxes alike until exactly enough is, in three
dimensions and without a loop.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cubeclf_core.axes import Shape3
from cubeclf_core.draws import Draws

Masks = Literal["random", "block"]
MOST_BLOCKS = 4
"""How many boxes hide patches of one cuboid at most."""

_STRETCH = 0.7  # a box is up to e^2·0.7, four times, as long along one axis as along another


def draw_mask(
    kind: Masks, grid: Shape3, count: int | Int[Tensor, " b"], draws: Draws
) -> Bool[Tensor, "b token"]:
    """Draw which patches are hidden.

    Parameters
    ----------
    kind
        random: all sets of that number alike. block: contiguous boxes.
    grid
        Patches along z y x; tokens are in that order.
    count
        How many are hidden in every cuboid, or in each.
    draws
        Source of the choices.

    Returns
    -------
    Tensor
        True where hidden.
    """
    tokens = grid[0] * grid[1] * grid[2]
    order = draws.uniform(tokens) if kind == "random" else _distance_to_blocks(grid, draws)
    rank = order.argsort(dim=1).argsort(dim=1)
    return rank < (count if isinstance(count, int) else count[:, None])


def visible_tokens(hidden: Bool[Tensor, "b token"], count: int) -> Int[Tensor, "b count"]:
    """Indices of the `count` tokens of each cuboid that are not hidden, in order."""
    return hidden.byte().argsort(dim=1, stable=True)[:, :count]


def _distance_to_blocks(grid: Shape3, draws: Draws) -> Float[Tensor, "b token"]:
    """How far each patch is from the nearest of some boxes, which grow in all directions.

    The distance is the largest of those along the axes, so that what is near is a box; a little of
    their sum decides which patches of a face come first.
    """
    places = torch.cartesian_prod(*(torch.arange(n, device=draws.device) for n in grid)).float()
    room = torch.tensor(grid, device=draws.device)
    centres = draws.uniform(MOST_BLOCKS, 3) * room - 0.5
    scale = draws.uniform(MOST_BLOCKS, 3, low=-_STRETCH, high=_STRETCH).exp()
    away = (places[:, None] - centres[:, None]).abs() * scale[:, None]  # b token block axis
    distance = away.amax(-1) + 1e-3 * away.sum(-1)
    used = 1 + (draws.uniform(1) * MOST_BLOCKS).long()
    unused = torch.arange(MOST_BLOCKS, device=draws.device) >= used
    return distance.masked_fill(unused[:, None], torch.inf).amin(-1)
