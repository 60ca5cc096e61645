"""A 3D vision transformer for cuboids of anisotropic voxels.

Blocks, initialisation and class token are timm's `VisionTransformer` (Dosovitskiy et al.,
arXiv:2010.11929), as are register tokens (Darcet et al., arXiv:2309.16588), LayerScale (Touvron et
al., arXiv:2103.17239) and drop path (Huang et al., arXiv:1603.09382). The patch embedding and the
positions are three-dimensional, and a patch is given in µm.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cubeclf_core.axes import Shape3
from cubeclf_core.pooling import PoolsTokens, make_projection
from cubeclf_core.vit_config import SIZES as SIZES  # with the network, whoever has use for it
from cubeclf_core.vit_config import Vit3dConfig as Vit3dConfig


class PatchEmbed3d(nn.Module):
    """Cut a cuboid into patches and project each linearly; the grid is flattened z y x."""

    def __init__(
        self, img_size: Shape3, patch_size: Shape3, in_chans: int, embed_dim: int, **_: Any
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.grid_size = tuple(n // p for n, p in zip(img_size, patch_size, strict=True))
        self.num_patches = self.grid_size[0] * self.grid_size[1] * self.grid_size[2]
        self.proj = nn.Conv3d(in_chans, embed_dim, patch_size, patch_size)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b token width"]:
        """Project patches to tokens."""
        return self.proj(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class Vit3d(PoolsTokens, VisionTransformer):
    """Encoder from normalised cuboids to a class token, then patch tokens in z y x order.

    Patches alone have positions; a view of another size gets them resampled trilinearly. Input is
    what `cubeclf_core.normalise.normalise` returns.

    Parameters
    ----------
    config
        The network; its weights come from torch's global generator, see `build_backbone`.
    """

    cls_token: nn.Parameter
    reg_token: nn.Parameter | None
    pos_embed: nn.Parameter

    def __init__(self, config: Vit3dConfig) -> None:
        width, depth, heads = SIZES[config.size]
        super().__init__(
            img_size=config.cuboid_shape,  # type: ignore[arg-type]  # timm writes pairs
            patch_size=config.patch_shape,  # type: ignore[arg-type]
            in_chans=config.channels,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            num_classes=0,
            global_pool="",
            no_embed_class=True,
            reg_tokens=config.register_tokens,
            init_values=config.layer_scale,
            drop_path_rate=config.drop_path,
            embed_layer=PatchEmbed3d,
        )
        self.config = config
        if config.positions == "sincos":  # learned ones are as timm made them
            fixed = sincos_positions(config.grid, width)[None]
            self.pos_embed = nn.Parameter(fixed, requires_grad=False)
        self.projection = make_projection(3 * width, config.projection)

    @property
    def embedding_width(self) -> int:
        """Length of what `embed` returns."""
        return self.config.embedding_width

    def forward(  # type: ignore[override]  # timm's takes an attention mask, of no use here
        self,
        x: Float[Tensor, "b c z y x"],
        keep: Int[Tensor, "b kept"] | None = None,
        masked: Bool[Tensor, "b patch"] | None = None,
        mask_token: Float[Tensor, "1 1 width"] | None = None,
    ) -> Float[Tensor, "b token width"]:
        """Encode cuboids.

        Parameters
        ----------
        x
            Normalised cuboids; their shape a multiple of the patch.
        keep
            Indices of the patches to encode (masked autoencoding); all if not given.
        masked
            Patches whose content is hidden from the network, but not their place (iBOT). Not
            together with `keep`.
        mask_token
            What it sees in their stead; given where `masked` is.

        Returns
        -------
        Tensor
            Class token, then the (kept) patch tokens; register tokens are left out.
        """
        assert keep is None or masked is None, "keep leaves patches out, masked hides them"
        assert (masked is None) == (mask_token is None), "masked goes with a mask token"
        grid = tuple(n // p for n, p in zip(x.shape[2:], self.config.patch_shape, strict=True))
        tokens = self.patch_embed(x)
        if masked is not None and mask_token is not None:
            tokens = torch.where(masked[..., None], mask_token.to(tokens.dtype), tokens)
        tokens = tokens + self.positions(grid)
        if keep is not None:
            tokens = tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1]))
        n_tokens = 1 + tokens.shape[1]
        # x.shape[0], not len(x): an exported program takes batches of any size.
        parts = [self.cls_token.expand(x.shape[0], -1, -1), tokens]
        if self.reg_token is not None:  # last, where leaving them out takes no copy
            parts.append(self.reg_token.expand(x.shape[0], -1, -1))
        tokens = self.blocks(torch.cat(parts, dim=1))
        return self.norm(tokens[:, :n_tokens])  # type: ignore[no-any-return]

    def embed(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b feature"]:
        """Encode whole cuboids and pool their tokens; see `pool_tokens`."""
        return self.pool_tokens(self(x))

    def positions(self, grid: tuple[int, ...]) -> Float[Tensor, "1 token width"]:
        """Position embedding for a grid of patches, resampled if it is not the network's own."""
        if grid == self.config.grid:
            return self.pos_embed
        own = self.pos_embed.unflatten(1, self.config.grid).permute(0, 4, 1, 2, 3)
        return F.interpolate(own, size=grid, mode="trilinear").flatten(2).transpose(1, 2)


def sincos_positions(grid: Shape3, width: int) -> Float[Tensor, "token width"]:
    """Fixed sine-cosine positions, a third of the width to each of z y x.

    Departs from the 2D form of MAE (arXiv:2111.06377) only in the number of axes.

    Parameters
    ----------
    grid
        Patches along z y x.
    width
        Divisible by 6.
    """
    assert width % 6 == 0, width
    frequencies = 1.0 / 10_000 ** (torch.arange(width // 6, dtype=torch.float64) / (width // 6))
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in axes]
    return torch.cat([part for a in angles for part in (a.sin(), a.cos())], dim=1).float()
