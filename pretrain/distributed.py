"""What concerns the batch as a whole, gathered over ranks; nothing happens where there is one.

Batches are of one size on all ranks, and gradients are averaged over ranks, as
`torch.nn.parallel.DistributedDataParallel` does.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


def n_ranks() -> int:
    """Count the processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Add up over ranks, without a gradient."""
    x = x.detach()
    if n_ranks() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def mean_over_ranks(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Average over ranks, without a gradient."""
    return sum_over_ranks(x) / n_ranks()


def gather_with_gradient(x: Float[Tensor, "b ..."]) -> Float[Tensor, "all_b ..."]:
    """Put together the rows of all ranks.

    For a loss that every rank computes alike from all rows. The gradient reaches a rank's own rows,
    as many times as there are ranks, so that its average over ranks is that of one process.
    """
    gathered: Tensor = _Gather.apply(x) if n_ranks() > 1 else x
    return gathered


class _Gather(torch.autograd.Function):
    """Communicates forward alone: no rank needs another's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(n_ranks())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].chunk(n_ranks())[dist.get_rank()] * n_ranks()
