"""What an objective is."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor, nn

from cubeclf_core.axes import Shape3
from cubeclf_core.vit import Vit3d


class Objective(nn.Module, ABC):
    """A loss on raw cuboids, with the networks that it trains."""

    canvas_shape: Shape3
    """What the stream has to cut, z y x, in voxels of the backbone."""

    @property
    @abstractmethod
    def exported(self) -> Vit3d:
        """The backbone that is the result."""

    @abstractmethod
    def forward(
        self, cuboids: Float[Tensor, "b c z y x"], random: torch.Generator, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss and what else is worth a line in the log.

        Parameters
        ----------
        cuboids
            Raw counts, of `canvas_shape`.
        random
            Source of every random choice.
        progress
            Share of the training done, in [0, 1].
        """

    def before_update(self, progress: float) -> None:
        """Change gradients before the optimiser uses them."""

    def after_update(self, progress: float) -> None:
        """Follow the trained weights, as a teacher does."""

    def picture(
        self, cuboids: Float[Tensor, "b c z y x"], random: torch.Generator
    ) -> Figure | None:
        """Show what has been learned, where it can be seen."""
        return None
