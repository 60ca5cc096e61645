"""What becomes of a vision transformer's tokens: an embedding of the cuboid."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cubeclf_core.axes import Shape3
from cubeclf_core.vit_config import Vit3dConfig

_HIDDEN = 256  # width of the projection's hidden layer


class PoolsTokens:
    """A network whose tokens are pooled; see `pool_tokens`."""

    config: Vit3dConfig
    projection: nn.Module

    def pool_tokens(
        self, tokens: Float[Tensor, "b token width"], grid: Shape3 | None = None
    ) -> Float[Tensor, "b feature"]:
        """Pool the tokens of cuboids: mean, mean of the inner ones, centre; then project.

        How tokens are pooled matters as much as their weights when the object in question sits at
        the centre and fills a small part of the cuboid. The projection is part of the network, not
        of an objective's head that is thrown away: it holds what was learned to be of no account,
        surroundings for instance, and a few labels go further with fewer, better numbers.

        Parameters
        ----------
        tokens
            What `forward` returned: the class token, which is left out, and all patch tokens.
        grid
            Patches along z y x, if it is not a whole cuboid.

        Returns
        -------
        Tensor
            Shape (b, 3 × width), or (b, projection) where the config has one; both, the projection
            first, where it says so.
        """
        grid = grid or self.config.grid
        tokens = tokens[:, 1:].unflatten(1, grid)
        inner = tokens[(slice(None), *(middle(n, 3 if n % 2 else 2) for n in grid))]
        centre = tokens[(slice(None), *(middle(n, 1 if n % 2 else 2) for n in grid))]
        pooled = torch.cat([part.mean(dim=(1, 2, 3)) for part in (tokens, inner, centre)], dim=1)
        projected: Tensor = self.projection(pooled)
        return torch.cat([projected, pooled], dim=1) if self.config.pooled_beside else projected


def make_projection(width: int, to: int) -> nn.Module:
    """Two layers as SimCLR's (Chen et al., arXiv:2002.05709), of normalised features, with GELU."""
    if not to:
        return nn.Identity()
    return nn.Sequential(
        nn.LayerNorm(width, elementwise_affine=False),
        nn.Linear(width, _HIDDEN),
        nn.GELU(),
        nn.Linear(_HIDDEN, to),
    )


def middle(n: int, width: int) -> slice:
    """Which of `n` in a row are the `width` in the middle, or all if there are fewer."""
    width = min(width, n)
    return slice((n - width) // 2, (n - width) // 2 + width)
