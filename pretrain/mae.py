"""Masked autoencoding: see a quarter of the patches, reconstruct the rest.

MAE (He et al., arXiv:2111.06377). Ours departs in this: patches are three-dimensional; targets are
normalised per channel too, since a dim background would otherwise count for nothing, and by default
over the cuboid instead of the patch, since a patch without structure is photon noise alone; a
channel that was blanked counts for nothing; each cuboid weighs alike, however much of it counts, so
that parts of a batch add up to the whole; and patches may be hidden in blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from cubeclf_core.axes import Shape3
from cubeclf_core.config import AugmentConfig
from cubeclf_core.draws import Draws
from cubeclf_core.errors import require
from cubeclf_core.normalise import normalise
from cubeclf_core.pretraining_plots import reconstruction_mosaic
from cubeclf_core.vit import Vit3d, sincos_positions
from pretrain.masks import Masks, draw_mask, visible_tokens
from pretrain.objective import Objective
from pretrain.views import make_view

Patches = Float[Tensor, "b token channel voxel"]
_FLAT = 1e-4  # variance below which there is nothing to predict
_PICTURED = 4  # cuboids


@dataclass(frozen=True, kw_only=True)
class MaeSettings:
    """Settings of masked autoencoding.

    Parameters
    ----------
    mask_ratio
        Share of the patches that the encoder does not see.
    masks
        random: single patches, as the paper has it. block: contiguous boxes of them, which cannot
        be filled in from next door.
    target
        cuboid: voxels normalised over the cuboid, which keep how bright a patch is among its
        neighbours. patch: over each patch and channel, as the paper has it; where single photons
        count, that is mostly noise.
    decoder_width
        Width of the decoder; divisible by 6, as its positions and heads want it.
    decoder_depth
        Blocks of the decoder.
    """

    mask_ratio: float = 0.75
    masks: Masks = "random"
    target: Literal["cuboid", "patch"] = "cuboid"
    decoder_width: int = 96
    decoder_depth: int = 1

    def __post_init__(self) -> None:
        require(0.05 <= self.mask_ratio <= 0.95, "mae.mask_ratio", self.mask_ratio, "0.05 to 0.95")
        width = self.decoder_width
        require(width > 0 and width % 6 == 0, "mae.decoder_width", width, "a multiple of 6")
        require(self.decoder_depth >= 1, "mae.decoder_depth", self.decoder_depth, "at least 1")


class Mae(Objective):
    """The encoder sees only the visible tokens; a small decoder predicts the others."""

    Settings = MaeSettings
    positions: Tensor
    neighbours: Tensor

    @classmethod
    def projects(cls, settings: MaeSettings) -> bool:
        """What is reconstructed comes of patches, not of what they are pooled to."""
        del settings
        return False

    def __init__(self, backbone: Vit3d, settings: MaeSettings, augment: AugmentConfig) -> None:
        super().__init__(backbone, settings, augment)
        self.backbone = backbone
        self.canvas_shape = backbone.config.cuboid_shape
        self._settings = settings
        self._augment = augment
        self._n_tokens = int(backbone.patch_embed.num_patches)
        self._n_masked = min(
            self._n_tokens - 1, max(1, round(settings.mask_ratio * self._n_tokens))
        )
        width = settings.decoder_width
        patch = backbone.patch_embed.proj.weight[0].numel()  # voxels of all channels
        self.embed = nn.Linear(backbone.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.register_buffer("positions", sincos_positions(backbone.config.grid, width))
        self.register_buffer("neighbours", neighbours(backbone.config.grid))
        self.blocks = nn.Sequential(
            *(Block(width, num_heads=3, qkv_bias=True) for _ in range(settings.decoder_depth))
        )
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, patch)

    @property
    def exported(self) -> Vit3d:
        """The encoder."""
        return self.backbone

    def forward(
        self, cuboids: Float[Tensor, "b c z y x"], draws: Draws, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error on the masked patches.

        The log gets `neighbour_mean` too, the error of predicting each masked patch from the mean
        of its visible neighbours: a model that has learned what images look like is below it.
        """
        del progress
        config = self.backbone.config
        x = make_view(
            cuboids, config.cuboid_shape, draws.fork(0), self._augment, config.voxel_size_um
        )
        masked = self._mask(draws.fork(1))
        target, counts = self._target(x)
        counts = counts * masked[..., None]
        error = masked_error(self.reconstruct(x, masked), target, counts)
        with torch.no_grad():
            guess = neighbour_mean(target, masked, self.neighbours)
            baseline = masked_error(guess, target, counts).mean()
        return error.mean(), {"neighbour_mean": baseline, "per_cuboid": error.detach()}

    def reconstruct(
        self, x: Float[Tensor, "b c z y x"], masked: Bool[Tensor, "b token"]
    ) -> Patches:
        """Predict all patches of normalised cuboids from those that are not masked.

        As many are masked in each cuboid as the settings say.
        """
        keep = visible_tokens(masked, self._n_tokens - self._n_masked)
        seen = self.embed(self.backbone(x, keep)[:, 1:])
        tokens = self.mask_token.to(seen.dtype).expand(len(x), self._n_tokens, -1)
        tokens = tokens.scatter(1, keep[..., None].expand_as(seen), seen) + self.positions
        predicted: Tensor = self.predict(self.norm(self.blocks(tokens)))
        patches: Tensor = predicted.float().unflatten(2, (x.shape[1], -1))
        return patches

    def picture(self, cuboids: Float[Tensor, "b c z y x"], draws: Draws) -> Figure | None:
        """Input, what the encoder saw, and the reconstruction, of the first few."""
        config = self.backbone.config
        x = normalise(cuboids[:_PICTURED])
        masked = self._mask(draws)[:_PICTURED]
        raw, filled = patchify(x, config.patch_shape), self.reconstruct(x, masked)
        if self._settings.target == "patch":  # which leaves mean and contrast open: take the true
            filled = filled * raw.std(3, keepdim=True) + raw.mean(3, keepdim=True)
        where = masked[:, :, None, None]
        rows = (raw, raw.masked_fill(where, torch.nan), torch.where(where, filled, raw))
        inputs, seen, reconstructed = (
            unpatchify(row, config.patch_shape, config.grid).cpu().numpy() for row in rows
        )
        return reconstruction_mosaic(inputs, seen, reconstructed, config.voxel_size_um)

    def _mask(self, draws: Draws) -> Bool[Tensor, "b token"]:
        return draw_mask(self._settings.masks, self.backbone.config.grid, self._n_masked, draws)

    def _target(
        self, x: Float[Tensor, "b c z y x"]
    ) -> tuple[Patches, Float[Tensor, "b token channel"]]:
        """What to predict of normalised cuboids, and where there is something to predict."""
        patches = patchify(x, self.backbone.config.patch_shape)
        if self._settings.target == "patch":
            return normalise_patches(patches)
        present = patches.square().mean(dim=(1, 3)) > _FLAT
        return patches, present[:, None].expand(-1, self._n_tokens, -1).float()


def patchify(cuboids: Float[Tensor, "b c z y x"], patch: Shape3) -> Patches:
    """Cut cuboids into patches, in z y x order like the tokens; a patch's voxels likewise."""
    (pz, py, px) = patch
    cut = cuboids.unflatten(4, (-1, px)).unflatten(3, (-1, py)).unflatten(2, (-1, pz))
    patches: Tensor = cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(5).flatten(1, 3)
    return patches


def unpatchify(patches: Patches, patch: Shape3, grid: Shape3) -> Float[Tensor, "b c z y x"]:
    """Put patches together again; the inverse of `patchify`."""
    cut = patches.unflatten(3, patch).unflatten(1, grid)
    cuboids: Tensor = cut.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6).flatten(4, 5).flatten(2, 3)
    return cuboids


def normalise_patches(patches: Patches) -> tuple[Patches, Float[Tensor, "b token channel"]]:
    """Bring each patch and channel to mean 0 and variance 1; also say which are not flat."""
    centred = patches - patches.mean(3, keepdim=True)
    variance = centred.square().mean(3, keepdim=True)
    counts = (variance > _FLAT).float()
    return centred / (variance + _FLAT / 100).sqrt() * counts, counts[..., 0]


def masked_error(
    guess: Float[Tensor, "b token channel #voxel"],
    target: Patches,
    counts: Float[Tensor, "b token channel"],
) -> Float[Tensor, " b"]:
    """Mean squared error of each cuboid, over the patches and channels that count."""
    error = (guess - target).square().mean(3)
    return (error * counts).sum(dim=(1, 2)) / counts.sum(dim=(1, 2)).clamp_min(1)


def neighbours(grid: Shape3) -> Float[Tensor, "token token"]:
    """Which patches touch which, at a face, an edge or a corner: 1 where they do."""
    axes = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    places = torch.stack(axes, dim=-1).flatten(0, 2)
    distance = (places[:, None] - places).abs().amax(-1)
    return (distance == 1).float()


def neighbour_mean(
    target: Patches, masked: Bool[Tensor, "b token"], touching: Float[Tensor, "token token"]
) -> Float[Tensor, "b token channel 1"]:
    """Guess all voxels of a patch as the mean over its visible neighbours, zero if it has none.

    One value a patch and channel: voxel by voxel, the neighbours' noise would make a worse guess.
    """
    weight = touching * ~masked[:, None, :]
    weight = weight / weight.sum(2, keepdim=True).clamp_min(1)
    return (weight @ target.mean(3))[..., None]
