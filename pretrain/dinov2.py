"""DINOv2: DINO, and the student guesses of hidden patches what the teacher says who sees them.

DINOv2 (Oquab et al., arXiv:2304.07193), whose masks and patch loss are those of iBOT (Zhou et al.,
arXiv:2111.07832). Ours departs where `pretrain.dino` does, and in this: whether and how much of a
view is hidden is drawn for each cuboid on its own; the teacher's mean token is taken off patches
too, place by place, since a head could otherwise tell a patch by its place alone; and by default a
moving centre and not Sinkhorn-Knopp keeps the teacher's targets spread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cubeclf_core.config import AugmentConfig
from cubeclf_core.draws import Draws
from cubeclf_core.vit import Vit3d
from pretrain.dino import Dino, DinoSettings, tokens_of_noise
from pretrain.masks import Masks, draw_mask
from pretrain.self_distillation import (
    STUDENT_TEMPERATURE,
    MovingMean,
    copy_head,
    projection_head,
    sinkhorn,
)


@dataclass(frozen=True, kw_only=True)
class DinoV2Settings(DinoSettings):
    """Settings of DINOv2: those of DINO, and these.

    Parameters
    ----------
    masks
        block: contiguous boxes of patches are hidden. random: single patches.
    mask_probability
        That patches of a global view are hidden from the student at all.
    mask_share
        Least and largest share of its patches that are hidden then.
    ibot_weight
        Of the loss on hidden patches.
    centring
        What keeps the teacher from saying the same of all: softmax, with a moving centre; or
        sinkhorn, which balances each batch.
    """

    masks: Masks = "block"
    mask_probability: float = 0.5
    mask_share: tuple[float, float] = (0.1, 0.5)
    ibot_weight: float = 1.0
    centring: Literal["softmax", "sinkhorn"] = "softmax"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("mask_probability", 0 <= self.mask_probability <= 1, "0 to 1")
        least, largest = self.mask_share
        self.check("mask_share", 0 < least <= largest < 1, "two rising shares between 0 and 1")
        self.check("ibot_weight", self.ibot_weight >= 0, "0 or more")
        self.check("student_keep", self.student_keep == 1, "1: masks hide patches already")


class DinoV2(Dino):
    """DINO on embeddings, iBOT on the patches that are hidden from the student."""

    Settings = DinoV2Settings
    _settings: DinoV2Settings

    def __init__(self, backbone: Vit3d, settings: DinoV2Settings, augment: AugmentConfig) -> None:
        super().__init__(backbone, settings, augment)
        width, prototypes = int(backbone.embed_dim), settings.prototypes
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_head = projection_head(width, prototypes)
        self.teacher_patch_head = copy_head(self.patch_head, width, prototypes)
        self.teacher_patch_head.requires_grad_(False)
        self.patch_centre = MovingMean(torch.zeros(prototypes))
        self.patch_feature_centre = MovingMean(tokens_of_noise(self.teacher)[1:])

    def forward(
        self, cuboids: Float[Tensor, "b c z y x"], draws: Draws, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """DINO's loss on embeddings, and iBOT's on hidden patches.

        `ibot` in the log is over views of which something is hidden; the loss has the others too,
        as zeros.
        """
        views, local = self._views(cuboids, draws)
        hidden = torch.cat([self._hide(drawn) for drawn in self._hiding(draws)])
        with torch.no_grad():
            taught = self.teacher(views)
        learned = self.backbone(views, masked=hidden, mask_token=self.mask_token)
        loss, told = self._view_loss(taught, learned, local, progress)
        ibot = self._patch_loss(taught[:, 1:], learned[:, 1:], hidden, progress)
        weight = self._settings.ibot_weight
        told["per_cuboid"] = told["per_cuboid"] + weight * ibot.detach()
        share = hidden.any(1).float().mean().clamp_min(1e-9)  # of the views with something hidden
        return loss + weight * ibot.mean(), told | {"ibot": ibot.detach().mean() / share}

    @property
    def _pairs(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        return (*super()._pairs, (self.patch_head, self.teacher_patch_head))

    def _hide(self, draws: Draws) -> Bool[Tensor, "b token"]:
        """Draw what is hidden of one view of each cuboid."""
        grid, (least, largest) = self.backbone.config.grid, self._settings.mask_share
        share = draws.uniform(low=least, high=largest)
        count = (share * math.prod(grid)).round().long().clamp_min(1)
        count = count * draws.coin(self._settings.mask_probability)
        return draw_mask(self._settings.masks, grid, count, draws)

    def _patch_loss(
        self,
        taught: Float[Tensor, "view_b token width"],
        learned: Float[Tensor, "view_b token width"],
        hidden: Bool[Tensor, "view_b token"],
        progress: float,
    ) -> Float[Tensor, " b"]:
        """Cross-entropy on hidden patches, averaged over those of a view, then over views."""
        temperature = self._temperature(progress)
        view, token = hidden.nonzero(as_tuple=True)
        with torch.no_grad():
            self.patch_feature_centre.add(taught)
            seen = self._centred(taught, self.patch_feature_centre)[view, token]
            logits = self.teacher_patch_head(seen).float()
            self.patch_centre.add(logits)
            targets = self._targets(logits, self.patch_centre, temperature)
        guessed = self._centred(learned, self.patch_feature_centre)[view, token]
        said = self.patch_head(guessed).float() / STUDENT_TEMPERATURE
        cross = F.cross_entropy(said, targets, reduction="none") / hidden.sum(1)[view]
        each = cross.new_zeros(len(hidden)).index_add(0, view, cross)
        mean: Tensor = each.unflatten(0, (2, -1)).mean(0)
        return mean

    def _targets(
        self, logits: Float[Tensor, "n k"], centre: MovingMean, temperature: float
    ) -> Float[Tensor, "n k"]:
        if self._settings.centring == "sinkhorn":
            return sinkhorn(logits, temperature)
        return super()._targets(logits, centre, temperature)
