"""SimCLR: two views of one object are to be more alike than views of different objects.

SimCLR (Chen et al., arXiv:2002.05709), with the loss InfoNCE (van den Oord et al.,
arXiv:1807.03748). Ours departs in this: what is compared is the object at the centre, since each
view gets the surroundings of another cuboid (`cubeclf_core.surroundings`); views are cut without
resizing, because size is diagnostic; negatives are the other cuboids' other views alone; the
projection stays a part of the network, because what it leaves out is what a classifier is to leave
out (`Vit3d.pool_tokens`); and what is exported is an average of the network over time, as in MoCo
(He et al., arXiv:1911.05722), which here serves for nothing else.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cubeclf_core.config import AugmentConfig
from cubeclf_core.draws import Draws
from cubeclf_core.errors import require
from cubeclf_core.vit import Vit3d
from pretrain.distributed import gather_with_gradient, n_ranks
from pretrain.objective import Objective
from pretrain.self_distillation import follow, rising
from pretrain.views import canvas_shape, make_global_views


@dataclass(frozen=True, kw_only=True)
class SimclrSettings:
    """Settings of SimCLR.

    Parameters
    ----------
    temperature
        Cosines of embeddings are divided by it; a lower one looks at the nearest negatives.
    canvas_margin
        How many voxels (z y x) the canvas, out of which views are cut, exceeds the cuboid.
    momentum
        Of the average that is exported, at the start; it rises to 1 along a cosine.
    """

    temperature: float = 0.2
    canvas_margin: tuple[int, int, int] = (1, 4, 4)
    momentum: float = 0.98

    def __post_init__(self) -> None:
        for name, holds, expected in (
            ("temperature", self.temperature > 0, "above 0"),
            ("canvas_margin", min(self.canvas_margin) >= 0, "0 or more each"),
            ("momentum", 0 <= self.momentum < 1, "at least 0 and below 1"),
        ):
            require(holds, f"simclr.{name}", getattr(self, name), expected)


class Simclr(Objective):
    """Two views of each cuboid, told apart from the views of all others in the batch.

    Under accumulation of gradients the others are those of a part of the batch; over several ranks,
    of all.
    """

    Settings = SimclrSettings
    compares_views = True
    least_batch = 2

    def __init__(self, backbone: Vit3d, settings: SimclrSettings, augment: AugmentConfig) -> None:
        super().__init__(backbone, settings, augment)
        self.canvas_shape = canvas_shape(backbone.config, settings.canvas_margin)
        self._settings = settings
        self._augment = augment
        self.backbone = backbone
        self.average = copy.deepcopy(backbone).requires_grad_(False)

    @property
    def exported(self) -> Vit3d:
        """The network averaged over time."""
        return self.average

    def train(self, mode: bool = True) -> Simclr:
        """Set the mode of all but the average, which leaves nothing out at random."""
        super().train(mode)
        self.average.eval()
        return self

    def forward(
        self, cuboids: Float[Tensor, "b c z y x"], draws: Draws, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of finding the other view of a cuboid among those of the batch.

        The log gets `found`, how often it is the nearest, and `chance`, the loss of a network that
        says the same of all: ln of the batch.
        """
        del progress
        views = make_global_views(cuboids, 2, self.backbone.config, draws, self._augment)
        embedded = self.backbone.embed(torch.cat(views)).float().unflatten(0, (2, -1))
        loss, found = info_nce(embedded.transpose(0, 1), self._settings.temperature)
        told = {
            "found": found.mean(),
            "chance": torch.full_like(found[0], math.log(len(loss))),
            "per_cuboid": _own_rows(loss.detach()),
        }
        return loss.mean(), told

    @torch.no_grad()
    def after_update(self, progress: float) -> None:
        """Move the average towards the network."""
        follow(self.backbone, self.average, rising(self._settings.momentum, progress))


def info_nce(
    pairs: Float[Tensor, "b 2 width"], temperature: float
) -> tuple[Float[Tensor, " all_b"], Float[Tensor, " all_b"]]:
    """InfoNCE between first and second views, both ways, over all ranks.

    Parameters
    ----------
    pairs
        Embeddings of two views of each of this rank's cuboids, of any length.
    temperature
        Cosines are divided by it.

    Returns
    -------
    loss : Tensor
        Of each cuboid of all ranks; every rank computes it alike, so that its mean has the gradient
        of one process, see `gather_with_gradient`.
    found : Tensor
        How often the other view is the nearest, 0, ½ or 1 of each; without a gradient.
    """
    with torch.autocast(pairs.device.type, enabled=False):
        first, second = F.normalize(gather_with_gradient(pairs.float()), dim=-1).unbind(1)
        cosines = first @ second.T / temperature
        own = torch.arange(len(cosines), device=cosines.device)
        ways = (cosines, cosines.T)
        loss = torch.stack([F.cross_entropy(way, own, reduction="none") for way in ways]).mean(0)
        found = torch.stack([(way.argmax(1) == own).float() for way in ways]).mean(0)
        return loss, found


def _own_rows(rows: Float[Tensor, " all_b"]) -> Float[Tensor, " b"]:
    return rows.chunk(n_ranks())[dist.get_rank()] if n_ranks() > 1 else rows
