"""A 3D vision transformer for cuboids of anisotropic voxels.

Blocks, initialisation and class token are timm's `VisionTransformer` (Dosovitskiy et al.,
arXiv:2010.11929), as are register tokens (Darcet et al., arXiv:2309.16588), LayerScale (Touvron et
al., arXiv:2103.17239) and drop path (Huang et al., arXiv:1603.09382). The patch embedding and the
positions are three-dimensional, and a patch is given in µm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cubeclf_core.axes import Shape3, Size3
from cubeclf_core.errors import InputError, require
from cubeclf_core.normalise import NORMALISATION

SIZES: dict[str, tuple[int, int, int]] = {  # width, depth, heads
    "nano": (96, 4, 3),
    "micro": (192, 6, 3),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
}
POSITIONS = ("sincos", "learned")
_HIDDEN = 256  # width of the projection's hidden layer


@dataclass(frozen=True, kw_only=True)
class Vit3dConfig:
    """Everything that is needed to build the network and to cut cuboids for it.

    Attributes
    ----------
    size
        One of `SIZES`.
    channels
        1 for signal alone, 2 for signal and background.
    cuboid_shape
        z y x, in voxels of `voxel_size_um`.
    voxel_size_um
        z y x; all data is resampled to it.
    patch_um
        z y x; a whole number of voxels, which divides the cuboid.
    positions
        One of `POSITIONS`: fixed sines and cosines, or trained from small random values.
    register_tokens
        Tokens without a place or an output, in which the network keeps what concerns the whole
        cuboid; without them a large network uses patches of empty tissue for it.
    layer_scale
        Where the trained gains of the blocks' branches start; no gains if None.
    projection
        Length of an embedding: what a small network makes of the pooled tokens; 0 for these
        themselves. It is what objectives that compare views train, see `Vit3d.pool_tokens`.
    drop_path
        How often the last block's branches are left out in training, in [0, 1); the rate rises
        linearly from 0 at the first block. Drawn from torch's global generator.
    """

    size: str = "tiny"
    channels: int = 2
    cuboid_shape: Shape3 = (20, 50, 50)
    voxel_size_um: Size3 = (5.0, 1.0, 1.0)
    patch_um: Size3 = (20.0, 10.0, 10.0)
    positions: str = "sincos"
    register_tokens: int = 0
    layer_scale: float | None = None
    projection: int = 0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise InputError(f"no size {self.size!r}; expected one of {', '.join(SIZES)}")
        for length, patch, patch_um, voxel_um in zip(
            self.cuboid_shape, self.patch_shape, self.patch_um, self.voxel_size_um, strict=True
        ):
            if abs(patch * voxel_um - patch_um) > 1e-6 or length % patch:
                raise InputError(
                    f"a patch of {self.patch_um} µm is no whole number of voxels of "
                    f"{self.voxel_size_um} µm that divides a cuboid of {self.cuboid_shape} voxels"
                )
        expected = " or ".join(POSITIONS)
        require(self.positions in POSITIONS, "positions", repr(self.positions), expected)
        require(self.register_tokens >= 0, "register_tokens", self.register_tokens, "0 or more")
        gains = self.layer_scale is None or self.layer_scale > 0
        require(gains, "layer_scale", self.layer_scale, "a positive number, 1e-5 for instance")
        require(self.projection >= 0, "projection", self.projection, "0 or more")
        require(0 <= self.drop_path < 1, "drop_path", self.drop_path, "a number in [0, 1)")

    @property
    def normalisation(self) -> str:
        """What the network takes, always that of `cubeclf_core.normalise`."""
        return NORMALISATION

    @property
    def patch_shape(self) -> Shape3:
        """Patch in voxels, z y x."""
        z, y, x = (
            max(1, round(patch / voxel))
            for patch, voxel in zip(self.patch_um, self.voxel_size_um, strict=True)
        )
        return z, y, x

    @property
    def grid(self) -> Shape3:
        """Patches along z y x."""
        z, y, x = (n // patch for n, patch in zip(self.cuboid_shape, self.patch_shape, strict=True))
        return z, y, x

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Vit3dConfig:
        """Read what `dataclasses.asdict` and JSON made of a config; what is missing is default.

        Raises
        ------
        TypeError
            If a key is unknown: what it asks for would be left out without a word.
        """
        lists: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**lists)


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


class Vit3d(VisionTransformer):
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
        self.projection = _projection(3 * width, config.projection)

    @property
    def embedding_width(self) -> int:
        """Length of what `embed` returns."""
        return self.config.projection or 3 * int(self.embed_dim)

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
            Shape (b, 3 × width), or (b, projection) where the config has one.
        """
        grid = grid or self.config.grid
        tokens = tokens[:, 1:].unflatten(1, grid)
        inner = tokens[(slice(None), *(middle(n, 3 if n % 2 else 2) for n in grid))]
        centre = tokens[(slice(None), *(middle(n, 1 if n % 2 else 2) for n in grid))]
        pooled = torch.cat([part.mean(dim=(1, 2, 3)) for part in (tokens, inner, centre)], dim=1)
        return self.projection(pooled)  # type: ignore[no-any-return]

    def positions(self, grid: tuple[int, ...]) -> Float[Tensor, "1 token width"]:
        """Position embedding for a grid of patches, resampled if it is not the network's own."""
        if grid == self.config.grid:
            return self.pos_embed
        own = self.pos_embed.unflatten(1, self.config.grid).permute(0, 4, 1, 2, 3)
        return F.interpolate(own, size=grid, mode="trilinear").flatten(2).transpose(1, 2)


def _projection(width: int, to: int) -> nn.Module:
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
