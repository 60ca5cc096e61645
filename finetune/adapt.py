"""What of a network is trained: all of it, its last blocks, additions of low rank, or the head.

Additions of low rank are LoRA (Hu et al., arXiv:2106.09685) on the attention's projections; rates
that fall towards the input are those of BEiT (Bao et al., arXiv:2106.08254).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cubeclf_core.errors import InputError
from cubeclf_core.networks import Backbone, parameter_stages
from cubeclf_core.resnet import PlaneNorm
from cubeclf_core.trained import Classifier
from cubeclf_core.vit import Vit3d


class LowRank(nn.Module):
    """A weight, and a trained product of two narrow matrices added to it, which begins at zero."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(torch.empty(rank, columns))
        self.up = nn.Parameter(torch.zeros(rows, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """Add the product."""
        return weight + self.up @ self.down


def choose_trained(
    classifier: Classifier, *, freeze: bool, last: int | None, rank: int | None, seed: int
) -> None:
    """Mark what is trained; all else of the classifier stays bit-identical.

    Parameters
    ----------
    classifier
        Its head is always trained.
    freeze
        Nothing but the head.
    last
        Only so many of the backbone's last blocks, and what follows them.
    rank
        Of additions to the attention's projections, instead of the backbone's own weights.
    seed
        Of what the additions start from.

    Raises
    ------
    InputError
        If the backbone has fewer blocks, or no attention.
    """
    backbone = classifier.backbone
    stages = parameter_stages(backbone)
    if last is not None and not 1 <= last < len(stages):
        raise InputError(
            f"--unfreeze-last is {last}; this backbone has {len(stages) - 1} blocks (--no-freeze "
            "trains all of them)"
        )
    trained = [] if freeze or rank is not None else stages if last is None else stages[-last:]
    ids = {id(parameter) for stage in trained for parameter in stage}
    for parameter in backbone.parameters():
        # Sines and cosines are parameters that are never trained.
        parameter.requires_grad_(parameter.requires_grad and id(parameter) in ids)
    if rank is not None and not freeze:
        _add_low_rank(backbone, rank, seed)


def _add_low_rank(backbone: Backbone, rank: int, seed: int) -> None:
    if not isinstance(backbone, Vit3d):
        raise InputError("--lora-rank needs a vision transformer; this backbone has no attention")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for linear in _attention_projections(backbone):
            parametrize.register_parametrization(linear, "weight", LowRank(linear.weight, rank))


def _attention_projections(backbone: Vit3d) -> Iterator[nn.Linear]:
    for block in backbone.blocks:
        attention: Any = block.attn
        yield attention.qkv
        yield attention.proj


def merge_low_rank(classifier: Classifier) -> None:
    """Add what was trained of low rank to the weights, so that the network is an ordinary one."""
    for module in classifier.modules():
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def train_mode(classifier: Classifier) -> None:
    """Put a classifier into training mode, but for what keeps statistics and is not trained."""
    classifier.train()
    for module in classifier.modules():
        if isinstance(module, PlaneNorm):
            module.train(module.weight.requires_grad)


@torch.no_grad()
def settle_statistics(
    network: nn.Module, trained: Collection[str], batches: Iterable[Tensor]
) -> None:
    """Take the statistics of some normalisations anew, as plain means over batches.

    Running means follow the weights too slowly for trainings of some hundred steps, and are those
    of no weights in particular where weights are averaged (Izmailov et al., arXiv:1803.05407). Of
    random weights there are none, and those of other brains may be far from a batch's.

    Parameters
    ----------
    network
        In evaluation mode, before and afterwards.
    trained
        Names of the normalisations; nothing is done if there are none.
    batches
        Inputs of the network.
    """
    norms = [m for name, m in network.named_modules() if name in trained]
    if not norms:
        return
    for norm in norms:
        assert isinstance(norm, PlaneNorm)
        norm.train()
    for i, batch in enumerate(batches):
        for norm in norms:
            norm.momentum = 1 / (i + 1)
        network(batch)
    for norm in norms:
        norm.eval()
        norm.momentum = PlaneNorm.MOMENTUM


def trained_norms(network: nn.Module) -> list[str]:
    """Names of normalisations that keep statistics and are trained."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, PlaneNorm) and module.weight.requires_grad
    ]


def parameter_groups(
    classifier: Classifier,
    *,
    rate: float,
    head_rate: float | None = None,
    layer_decay: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Sort what is trained into groups for AdamW, with `scale` times the rate each.

    Parameters
    ----------
    classifier
        After `choose_trained`.
    rate
        Learning rate of what is next to the head.
    head_rate
        Learning rate of the head; `rate` if not given.
    layer_decay
        Factor of the rate from a block to the one before it.
    weight_decay
        Of matrices; vectors have none.
    """
    stages = parameter_stages(classifier.backbone)
    depth = {id(p): len(stages) - i for i, stage in enumerate(stages) for p in stage}
    of_head = 1.0 if head_rate is None else head_rate / rate
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in classifier.parameters():
        if parameter.requires_grad:
            own = depth.get(id(parameter))
            scale = of_head if own is None else layer_decay**own
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    return [
        {"params": params, "lr": rate * scale, "scale": scale, "weight_decay": decay}
        for (scale, decay), params in groups.items()
    ]
