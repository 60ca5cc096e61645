"""DINO: a student learns to say of any view what a slower teacher says of the larger ones.

DINO (Caron et al., arXiv:2104.14294), with lightly's head. Ours departs in this: all views are cut
unresized from a canvas larger than the cuboid, because size is diagnostic; augmentation is that of
a microscope; the head is small, as the data is; it gets the embedding on which a classifier is
later built (`Vit3d.pool_tokens`), and by a setting the class token as in the paper; and the
teacher's mean embedding is taken off before the head. Embeddings of a fresh network differ little
between cuboids, and a head that sees mostly what they share says the same of all, from which a
short run does not recover. Both centres are plain means over the first steps. KoLeo (Sablayrolles
et al., arXiv:1806.03198), as in DINOv2, keeps embeddings apart: on few small volumes the loss alone
makes do with a few directions. Global views get the surroundings of another cuboid
(`cubeclf_core.surroundings`).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightly.models.modules.heads import DINOProjectionHead
from torch import Tensor, nn

from cubeclf_core.axes import Shape3
from cubeclf_core.config import AugmentConfig
from cubeclf_core.draws import Draws
from cubeclf_core.errors import require
from cubeclf_core.vit import Vit3d
from pretrain.distributed import mean_over_ranks
from pretrain.masks import draw_mask, visible_tokens
from pretrain.objective import Objective
from pretrain.self_distillation import (
    MovingMean,
    copy_head,
    follow,
    koleo,
    projection_head,
    rising,
    view_cross_entropy,
)
from pretrain.views import canvas_shape, make_global_views, make_view

_GLOBAL_VIEWS = 2
_HIDING = 1 << 10  # apart from what the views draw


@dataclass(frozen=True, kw_only=True)
class DinoSettings:
    """Settings of DINO.

    Parameters
    ----------
    prototypes
        Width K of the projection head's output; small data wants few.
    local_views
        Number of small views of each canvas.
    local_patches
        Size of a local view in patches, z y x.
    canvas_margin
        How many voxels (z y x) the canvas, out of which views are cut, exceeds the cuboid.
    teacher_temperature
        At the start and, after the warm-up, to the end.
    temperature_warm_up
        Share of the steps in which the teacher's temperature goes from the one to the other.
    momentum
        Of the teacher, at the start; it rises to 1 along a cosine.
    koleo_weight
        Of the term that keeps embeddings apart.
    freeze_last_layer
        Share of the steps, at the start, in which the head's last layer stays as it is.
    student_keep
        Share of the patches of a global view that the student sees; fewer make a cheaper step, as
        in masked siamese networks (arXiv:2204.07141).
    features
        What goes to the head. pooled: what a classifier is later built on, see
        `Vit3d.pool_tokens`. class: the class token, as the paper has it.
    """

    prototypes: int = 2048
    local_views: int = 4
    local_patches: tuple[int, int, int] = (3, 3, 3)
    canvas_margin: tuple[int, int, int] = (1, 4, 4)
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    temperature_warm_up: float = 0.3
    momentum: float = 0.99
    koleo_weight: float = 0.1
    freeze_last_layer: float = 0.05
    student_keep: float = 1.0
    features: Literal["class", "pooled"] = "pooled"

    def __post_init__(self) -> None:
        self.check("prototypes", self.prototypes >= 2, "at least 2")
        self.check("local_views", self.local_views >= 0, "0 or more")
        self.check("local_patches", min(self.local_patches) >= 1, "at least 1 each")
        self.check("canvas_margin", min(self.canvas_margin) >= 0, "0 or more each")
        self.check("teacher_temperature", min(self.teacher_temperature) > 0, "above 0")
        self.check("momentum", 0 <= self.momentum < 1, "at least 0 and below 1")
        self.check("koleo_weight", self.koleo_weight >= 0, "0 or more")
        whole = self.features == "class" or self.student_keep == 1
        self.check("student_keep", whole, "1 where features are pooled")
        self.check("student_keep", 0 < self.student_keep <= 1, "above 0, and 1 at most")
        for share in ("temperature_warm_up", "freeze_last_layer"):
            self.check(share, 0 <= getattr(self, share) <= 1, "0 to 1")

    def check(self, name: str, holds: bool, expected: str) -> None:
        """Raise an `InputError` about a setting unless a condition holds."""
        method = type(self).__name__.removesuffix("Settings").lower()
        require(holds, f"{method}.{name}", getattr(self, name), expected)


class Dino(Objective):
    """Two global views for teacher and student, and local ones for the student alone."""

    Settings = DinoSettings
    compares_views = True
    least_batch = 2

    @classmethod
    def projects(cls, settings: DinoSettings) -> bool:
        """The class token goes past it."""
        return settings.features == "pooled"

    def __init__(self, backbone: Vit3d, settings: DinoSettings, augment: AugmentConfig) -> None:
        super().__init__(backbone, settings, augment)
        config, width = backbone.config, int(backbone.embed_dim)
        local = settings.local_patches
        fits = all(n <= most for n, most in zip(local, config.grid, strict=True))
        settings.check("local_patches", fits, f"no more than the cuboid's {config.grid}")
        self._settings = settings
        self._augment = augment
        self._local_shape = _product(local, config.patch_shape)
        self.canvas_shape = canvas_shape(config, settings.canvas_margin)
        self.backbone = backbone
        features = width if settings.features == "class" else backbone.embedding_width
        self.head = projection_head(features, settings.prototypes)
        self.teacher = copy.deepcopy(backbone).requires_grad_(False)
        self.teacher_head = copy_head(self.head, features, settings.prototypes)
        self.teacher_head.requires_grad_(False)
        self.centre = MovingMean(torch.zeros(settings.prototypes))
        noise = tokens_of_noise(self.teacher)[None]
        self.feature_centre = MovingMean(self._features(self.teacher, noise, config.grid)[0])

    @property
    def exported(self) -> Vit3d:
        """The teacher, an average of the student over time, and the better of the two."""
        return self.teacher

    def train(self, mode: bool = True) -> Dino:
        """Set the mode of all but the teacher, which leaves nothing out at random."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(
        self, cuboids: Float[Tensor, "b c z y x"], draws: Draws, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the student's views against the teacher's, and a little KoLeo.

        A student that says nothing has a cross-entropy of ln K, `uniform` in the log.
        `teacher_entropy` near it means that the teacher has collapsed to saying nothing;
        `marginal_entropy`, that of its mean over the batch, near 0 that it says the same of all.
        """
        views, local = self._views(cuboids, draws)
        keep = None
        if self._settings.student_keep < 1:
            n_tokens = math.prod(self.backbone.config.grid)
            kept = max(1, round(self._settings.student_keep * n_tokens))
            hidden = [
                draw_mask("random", self.backbone.config.grid, n_tokens - kept, drawn)
                for drawn in self._hiding(draws)
            ]
            keep = visible_tokens(torch.cat(hidden), kept)
        with torch.no_grad():
            taught = self.teacher(views)
        return self._view_loss(taught, self.backbone(views, keep), local, progress)

    def before_update(self, progress: float) -> None:
        """Hold the last layer of the heads at the start."""
        if progress < self._settings.freeze_last_layer:
            for module in self.modules():
                if isinstance(module, DINOProjectionHead):
                    for parameter in module.last_layer.parameters():
                        parameter.grad = None

    @torch.no_grad()
    def after_update(self, progress: float) -> None:
        """Move the teacher towards the student, and the centres to where the teacher was."""
        for student, teacher in self._pairs:
            follow(student, teacher, self._momentum(progress))
        for module in self.modules():
            if isinstance(module, MovingMean):
                module.move()

    @property
    def _pairs(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        """Students and their teachers."""
        return (self.backbone, self.teacher), (self.head, self.teacher_head)

    def _views(
        self, cuboids: Float[Tensor, "b c z y x"], draws: Draws
    ) -> tuple[Float[Tensor, "view_b c gz gy gx"], Float[Tensor, "local_b c lz ly lx"] | None]:
        """Cut global and local views; of each kind, the first view's batch comes first."""
        config = self.backbone.config
        views = make_global_views(cuboids, _GLOBAL_VIEWS, config, draws, self._augment)
        parts = [
            make_view(
                cuboids, self._local_shape, draws.fork(view), self._augment, config.voxel_size_um
            )
            for view in range(_GLOBAL_VIEWS, _GLOBAL_VIEWS + self._settings.local_views)
        ]
        return torch.cat(views), torch.cat(parts) if parts else None

    def _hiding(self, draws: Draws) -> list[Draws]:
        """Draws for what is hidden of each global view."""
        return [draws.fork(_HIDING + view) for view in range(_GLOBAL_VIEWS)]

    def _features(
        self, network: Vit3d, tokens: Float[Tensor, "n token width"], grid: Shape3
    ) -> Float[Tensor, "n feature"]:
        """What a network's head gets of a view's tokens; pooling has weights of its own."""
        if self._settings.features == "class":
            return tokens[:, 0]
        return network.pool_tokens(tokens, grid)

    def _view_loss(
        self,
        taught: Float[Tensor, "view_b token width"],
        learned: Float[Tensor, "view_b kept width"],
        local: Float[Tensor, "local_b c z y x"] | None,
        progress: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare what teacher and student say of views, the local ones among them."""
        temperature, grid = self._temperature(progress), self.backbone.config.grid
        with torch.no_grad():
            known = self._features(self.teacher, taught, grid)
            self.feature_centre.add(known)
            logits = self.teacher_head(self._centred(known, self.feature_centre)).float()
            self.centre.add(logits)
            targets = self._targets(logits, self.centre, temperature)
            marginal = mean_over_ranks(targets.mean(0))
            entropy = torch.special.entr(targets).sum(-1).mean()
        features = seen = self._features(self.backbone, learned, grid)
        if local is not None:
            tokens = self.backbone(local)
            parts = self._features(self.backbone, tokens, self._settings.local_patches)
            features = torch.cat([seen, parts])
        said = self.head(self._centred(features, self.feature_centre)).float()
        b = len(learned) // _GLOBAL_VIEWS
        cross = view_cross_entropy(targets.unflatten(0, (-1, b)), said.unflatten(0, (-1, b)))
        apart = torch.stack([koleo(view) for view in seen.split(b)]).mean()
        loss = cross.mean() + self._settings.koleo_weight * apart
        cross = cross.detach()
        told = {
            "cross_entropy": cross.mean(),
            "koleo": apart.detach(),
            "teacher_entropy": entropy,
            "marginal_entropy": torch.special.entr(marginal).sum(),
            "kl": cross.mean() - entropy,
            "uniform": torch.full_like(entropy, math.log(self._settings.prototypes)),
            "teacher_temperature": torch.full_like(entropy, temperature),
            "momentum": torch.full_like(entropy, self._momentum(progress)),
            "per_cuboid": cross,
        }
        return loss, told

    def _targets(
        self, logits: Float[Tensor, "n k"], centre: MovingMean, temperature: float
    ) -> Float[Tensor, "n k"]:
        """Turn what the teacher says into distributions."""
        return ((logits - centre.value) / temperature).softmax(-1)

    @staticmethod
    def _centred(tokens: Tensor, centre: MovingMean) -> Tensor:
        """Take off what tokens share, and bring what is left to one scale."""
        return F.layer_norm(tokens - centre.value, tokens.shape[-1:])

    def _momentum(self, progress: float) -> float:
        return rising(self._settings.momentum, progress)

    def _temperature(self, progress: float) -> float:
        start, end = self._settings.teacher_temperature
        warm_up = self._settings.temperature_warm_up
        return start + (end - start) * (min(1.0, progress / warm_up) if warm_up else 1.0)


@torch.no_grad()
def tokens_of_noise(backbone: Vit3d) -> Float[Tensor, "token width"]:
    """Mean tokens of noise, near enough to those of cuboids to centre the first step by."""
    config = backbone.config
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(16, config.channels, *config.cuboid_shape, generator=random)
    tokens: Tensor = backbone.eval()(noise)
    return tokens.mean(0)


def _product(a: Shape3, b: Shape3) -> Shape3:
    return a[0] * b[0], a[1] * b[1], a[2] * b[2]
