"""What goes around a network that is exported, so that whoever calls it needs to know less."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class SignalAlone(nn.Module):
    """A network of one channel that may be given others too: the first is the signal.

    Parameters
    ----------
    network
        Raw cuboids of one channel to logits.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, cuboids: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b klass"]:
        """Logits of the first channel."""
        return self.network(cuboids[:, :1])  # type: ignore[no-any-return]


class Probabilities(nn.Module):
    """A network whose output needs no softmax.

    Parameters
    ----------
    network
        Raw cuboids to logits.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, cuboids: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b klass"]:
        """Probability of each class."""
        return torch.softmax(self.network(cuboids), dim=1)
