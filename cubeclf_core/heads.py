"""What turns a backbone's output into classes: a linear layer, a small network, or attention.

A head standardises what it takes by numbers of the training labels, which are kept with the
weights, and divides its logits by a temperature, 1 until it has been calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cubeclf_core.errors import require

HeadKind = Literal["linear", "mlp", "attention"]
CELL_CLASS = 1
"""Index of "cell" among the classes, however many there are; 0 is what is no cell."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Everything that is needed to build a head.

    Attributes
    ----------
    kind
        linear: one layer on the embedding. mlp: two, with a GELU between. attention: a trained
        query pools the patch tokens (Lee et al., arXiv:1810.00825), and one layer follows.
    classes
        Names; the second is that of cells.
    hidden
        Width of mlp's hidden layer.
    """

    kind: HeadKind = "linear"
    classes: tuple[str, ...] = ("no cell", "cell")
    hidden: int = 64

    def __post_init__(self) -> None:
        require(len(self.classes) >= 2, "classes", ", ".join(self.classes), "two or more")
        require(self.hidden >= 1, "hidden", self.hidden, "at least 1")

    @property
    def takes_tokens(self) -> bool:
        """Whether it takes patch tokens, and not the backbone's embedding."""
        return self.kind == "attention"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> HeadConfig:
        """Read what `dataclasses.asdict` and JSON made of a config."""
        return cls(**{**values, "classes": tuple(values["classes"])})


class TwoClasses(nn.Module):
    """A network of several classes as one of two: cells, and all others together.

    Parameters
    ----------
    network
        Raw cuboids to logits.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, cuboids: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b 2"]:
        """Logits of [no cell, cell]; the softmax of a cell is what it was."""
        logits = self.network(cuboids)
        others = torch.cat([logits[:, :CELL_CLASS], logits[:, CELL_CLASS + 1 :]], dim=1)
        return torch.stack([others.logsumexp(1), logits[:, CELL_CLASS]], dim=1)


class Head(nn.Module):
    """Logits of what a backbone says of cuboids.

    Parameters
    ----------
    config
        The head; its weights come from torch's global generator.
    width
        Length of an embedding, or of a token.
    """

    mean: Tensor
    deviation: Tensor
    temperature: Tensor

    def __init__(self, config: HeadConfig, width: int) -> None:
        super().__init__()
        self.config = config
        n = len(config.classes)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.register_buffer("temperature", torch.ones(()))
        self.query = nn.Parameter(torch.zeros(width)) if config.takes_tokens else None
        if config.kind == "mlp":
            self.hidden: nn.Module = nn.Sequential(nn.Linear(width, config.hidden), nn.GELU())
            width = config.hidden
        else:
            self.hidden = nn.Identity()
        self.last = nn.Linear(width, n)

    @torch.no_grad()
    def fit_scale(self, features: Float[Tensor, "n *token width"]) -> None:
        """Take over mean and deviation of each feature."""
        flat = features.flatten(0, -2)
        self.mean.copy_(flat.mean(0))
        self.deviation.copy_(flat.std(0).clamp_min(1e-6))

    def forward(self, features: Float[Tensor, "b *token width"]) -> Float[Tensor, "b klass"]:
        """Logits of embeddings, or of patch tokens if the head takes those."""
        x = (features - self.mean) / self.deviation
        if self.query is not None:  # a query of zeros is the mean of the tokens
            weights = (x @ self.query / x.shape[-1] ** 0.5).softmax(1)
            x = (weights[..., None] * x).sum(1)
        return self.last(self.hidden(x)) / self.temperature  # type: ignore[no-any-return]
