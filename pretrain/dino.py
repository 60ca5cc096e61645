"""DINO: a student learns to say of any view what a slower teacher says of the larger ones.

DINO (Caron et al., arXiv:2104.14294), with lightly's loss and head. Ours departs in this: all views
are cut unresized from a canvas larger than the cuboid, because size is diagnostic; augmentation is
that of a microscope; the head is small, as the data is; and the teacher's mean class token is taken
off before the head. Class tokens of a fresh network differ little between cuboids, and a head that
sees mostly what they share says the same of all, from which a short run does not recover. KoLeo
(Sablayrolles et al., arXiv:1806.03198), as in DINOv2, keeps class tokens apart: on few small
volumes the loss alone makes do with a few directions.
"""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightly.loss import DINOLoss, KoLeoLoss
from lightly.models.modules.heads import DINOProjectionHead
from lightly.models.utils import update_momentum
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn

from cubeclf_core.axes import Shape3
from cubeclf_core.backbones import build_backbone
from cubeclf_core.vit import Vit3d
from pretrain.config import DinoConfig
from pretrain.objective import Objective
from pretrain.views import make_view


class Dino(Objective):
    """Two global views for teacher and student, and local ones for the student alone."""

    feature_centre: Tensor
    updates: Tensor

    def __init__(self, backbone: Vit3d, config: DinoConfig) -> None:
        super().__init__()
        shape, patch = backbone.config.cuboid_shape, backbone.config.patch_shape
        self._config = config
        self._local_shape = _product(config.local_patches, patch)
        self.canvas_shape = _sum(shape, config.canvas_margin)
        self.backbone = backbone
        self.head = _head(backbone.embed_dim, config.prototypes)
        self.teacher = build_backbone(backbone.config, seed=0)
        self.teacher_head = _head(backbone.embed_dim, config.prototypes)
        self.teacher.load_state_dict(backbone.state_dict())
        self.teacher_head.load_state_dict(self.head.state_dict())
        self.teacher.requires_grad_(False)
        self.teacher_head.requires_grad_(False)
        self.loss = DINOLoss(output_dim=config.prototypes)
        self.koleo = KoLeoLoss()
        self.register_buffer("feature_centre", torch.zeros(backbone.embed_dim))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @property
    def exported(self) -> Vit3d:
        """The teacher, an average of the student over time, and the better of the two."""
        return self.teacher

    def forward(
        self, cuboids: Float[Tensor, "b c z y x"], random: torch.Generator, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the student's views against the teacher's, and a little KoLeo.

        A student that says nothing has a cross-entropy of ln K, `uniform` in the log.
        `teacher_entropy` near it means that the teacher has collapsed to saying nothing, near 0
        that it says the same of all.
        """
        shape = self.backbone.config.cuboid_shape
        views = [make_view(cuboids, shape, random) for _ in range(2)]
        local = [
            make_view(cuboids, self._local_shape, random) for _ in range(self._config.local_views)
        ]
        with torch.no_grad():
            tokens = _class_tokens(self.teacher, views)
            self._follow_centre(tokens)
            teacher = self._project(self.teacher_head, tokens, 2)
        tokens = _class_tokens(self.backbone, views)
        student = self._project(self.head, tokens, 2)
        if local:
            student += self._project(self.head, _class_tokens(self.backbone, local), len(local))
        temperature = self._temperature(progress)
        probabilities = ((torch.stack(teacher) - self.loss.center) / temperature).softmax(-1)
        cross_entropy = self.loss(teacher, student, teacher_temp=temperature)
        koleo = torch.stack([self.koleo(view) for view in tokens.float().chunk(2)]).mean()
        loss = cross_entropy + self._config.koleo_weight * koleo
        entropy = torch.special.entr(probabilities).sum(-1).mean()
        uniform = loss.new_tensor(math.log(self._config.prototypes))
        return loss, {
            "cross_entropy": cross_entropy,
            "koleo": koleo,
            "teacher_entropy": entropy,
            "uniform": uniform,
        }

    def before_update(self, progress: float) -> None:
        """Hold the head's last layer at the start."""
        if progress < self._config.freeze_last_layer:
            for parameter in self.head.last_layer.parameters():
                parameter.grad = None

    @torch.no_grad()
    def after_update(self, progress: float) -> None:
        """Move the teacher towards the student."""
        momentum = cosine_schedule(
            step=round(progress * 10_000),
            max_steps=10_001,
            start_value=self._config.momentum,
            end_value=1.0,
        )
        update_momentum(self.backbone, self.teacher, m=momentum)
        update_momentum(self.head, self.teacher_head, m=momentum)

    def _project(self, head: nn.Module, tokens: Tensor, n_views: int) -> list[Tensor]:
        """What a head says of each view, shape (b, prototypes) each."""
        projected: Tensor = head(F.layer_norm(tokens - self.feature_centre, tokens.shape[-1:]))
        return list(projected.float().chunk(n_views))

    def _follow_centre(self, tokens: Tensor) -> None:
        """Move the centre to the teacher's mean token: a plain mean at first, then a moving one."""
        momentum = torch.clamp(self.updates / (self.updates + 1), max=0.9)
        self.feature_centre.lerp_(tokens.mean(0).float(), 1 - momentum)
        self.updates += 1

    def _temperature(self, progress: float) -> float:
        start, end = self._config.teacher_temperature
        warmed = min(1.0, progress / 0.3)
        return start + (end - start) * warmed


def _head(width: int, prototypes: int) -> DINOProjectionHead:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # lightly 1.6 uses torch's old weight_norm
        return DINOProjectionHead(width, hidden_dim=512, bottleneck_dim=128, output_dim=prototypes)


def _class_tokens(backbone: Vit3d, views: list[Tensor]) -> Float[Tensor, "view_b width"]:
    """Class tokens of views of one size, in one pass; the first view's batch first."""
    tokens: Tensor = backbone(torch.cat(views))
    return tokens[:, 0]


def _product(a: Shape3, b: Shape3) -> Shape3:
    return a[0] * b[0], a[1] * b[1], a[2] * b[2]


def _sum(a: Shape3, b: Shape3) -> Shape3:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]
