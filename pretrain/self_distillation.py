"""What a student that learns from its own slower self needs: heads, centres, losses.

Shared by DINO and DINOv2. lightly's losses are not used, since they move their centre at every
forward and see one rank only; its head is.
"""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightly.models.modules.heads import DINOProjectionHead
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pretrain.distributed import gather_with_gradient, sum_over_ranks

STUDENT_TEMPERATURE = 0.1
_NEAREST = 1e-6  # squared distance below which KoLeo pushes no harder
_TINY = 1e-36  # keeps a division by nothing finite


def projection_head(width: int, prototypes: int) -> DINOProjectionHead:
    """Build the head of DINO, smaller than the paper's, as the data is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # lightly 1.6 uses torch's old weight_norm
        return DINOProjectionHead(width, hidden_dim=512, bottleneck_dim=128, output_dim=prototypes)


def copy_head(head: DINOProjectionHead, width: int, prototypes: int) -> DINOProjectionHead:
    """Copy a head, which `copy.deepcopy` cannot (torch's old weight_norm)."""
    copied = projection_head(width, prototypes)
    copied.load_state_dict(head.state_dict())
    return copied


def follow(student: nn.Module, teacher: nn.Module, momentum: float) -> None:
    """Move a teacher's weights towards its student's."""
    move = get_ema_multi_avg_fn(momentum)
    move(list(teacher.parameters()), list(student.parameters()), None)


def rising(momentum: float, progress: float) -> float:
    """Momentum at a share of the training, in [0, 1]: it rises to 1 along a cosine."""
    return 1 - (1 - momentum) * (1 + math.cos(math.pi * progress)) / 2


class MovingMean(nn.Module):
    """The mean of what is added, followed over the steps of a training.

    A plain mean over the first steps, an exponential one from then on. It moves once a step, when
    told to, by all that was added since on all ranks.

    Parameters
    ----------
    start
        Value before the first move, which it does not outlast.
    momentum
        Share of the value that a later move keeps.
    """

    value: Tensor
    moves: Tensor

    def __init__(self, start: Float[Tensor, "*any"], momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", start.detach().clone())
        self.register_buffer("moves", torch.zeros((), dtype=torch.int64))
        # Not a buffer: data-parallel training would copy the first rank's to all.
        self._added: list[tuple[Tensor, int]] = []

    @torch.no_grad()
    def add(self, rows: Float[Tensor, "n ..."]) -> None:
        """Take rows into account at the next move."""
        self._added.append((rows.float().sum(0), len(rows)))

    @torch.no_grad()
    def move(self) -> None:
        """Follow what was added; stays where it is if that was nothing."""
        total = torch.stack([rows for rows, _ in self._added]).sum(0).flatten()
        count = total.new_full((1,), sum(n for _, n in self._added))
        summed = sum_over_ranks(torch.cat([total, count]))
        mean = (summed[:-1] / summed[-1].clamp_min(1)).view_as(self.value)
        kept = (self.moves / (self.moves + 1)).clamp(max=self.momentum)
        some = summed[-1] > 0
        self.value.lerp_(mean, torch.where(some, 1 - kept, 0.0))
        self.moves += some
        self._added.clear()


def view_cross_entropy(
    targets: Float[Tensor, "teacher_view b k"], logits: Float[Tensor, "student_view b k"]
) -> Float[Tensor, " b"]:
    """Cross-entropy of each cuboid, averaged over all pairs of two different views.

    Parameters
    ----------
    targets
        Distributions of the teacher; its views are the first of the student's.
    logits
        Of the student, before its temperature.
    """
    with torch.autocast(logits.device.type, enabled=False):
        scaled = logits.float() / STUDENT_TEMPERATURE
        agreement = torch.einsum("tbk,sbk->bts", targets, scaled)
        cross = scaled.logsumexp(-1).T[:, None] - agreement
        different = ~torch.eye(len(targets), len(logits), dtype=torch.bool, device=cross.device)
        return (cross * different).sum(dim=(1, 2)) / different.sum()


def koleo(tokens: Float[Tensor, "b width"]) -> Float[Tensor, ""]:
    """Minus the mean logarithm of the distance to the nearest of the batch, over all ranks.

    Kozachenko and Leonenko's estimate of entropy, as a loss (Sablayrolles et al.,
    arXiv:1806.03198). Zero for a single token, and finite where two are equal. Under accumulation
    of gradients it sees each part of the batch alone.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        x = F.normalize(gather_with_gradient(tokens.float()), dim=-1)
        if len(x) < 2:
            return x.sum() * 0
        with torch.no_grad():
            nearest = (x @ x.T).fill_diagonal_(-2).argmax(1)
        squared = (x - x[nearest]).square().sum(-1)
        return -(squared + _NEAREST).log().mean() / 2


@torch.no_grad()
def sinkhorn(
    logits: Float[Tensor, "n k"], temperature: float, iterations: int = 3
) -> Float[Tensor, "n k"]:
    """Turn cosines into distributions that use all prototypes alike, over all ranks.

    Sinkhorn and Knopp's balancing as in SwAV (Caron et al., arXiv:2006.09882), in place of a
    centre. Under accumulation of gradients it balances each part of the batch alone.
    """
    shares = ((logits.float() - 1) / temperature).exp()  # cosines: none is above 1
    n = sum_over_ranks(shares.new_full((), len(logits)))
    for _ in range(iterations):
        shares = shares / sum_over_ranks(shares.sum(0)).clamp_min(_TINY) / logits.shape[1]
        shares = shares / shares.sum(1, keepdim=True).clamp_min(_TINY) / n
    return shares * n
