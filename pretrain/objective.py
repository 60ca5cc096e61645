"""What an objective is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor, nn

from cubeclf_core.axes import Shape3
from cubeclf_core.config import AugmentConfig
from cubeclf_core.draws import Draws
from cubeclf_core.vit import Vit3d


class Objective(nn.Module, ABC):
    """A loss on raw cuboids, with the networks that it trains.

    All that it learns or follows is in its state dict. `forward` may be called several times a step
    (accumulation) and on several ranks with a part of the batch each: what concerns the batch as a
    whole is gathered over ranks, and moves once a step, in `after_update`.

    Parameters
    ----------
    backbone
        To train.
    settings
        An instance of `Settings`.
    augment
        How strong the augmentation is.
    """

    Settings: ClassVar[type[Any]]
    """Frozen dataclass of this objective's own settings; it checks them itself."""

    canvas_shape: Shape3
    """What the stream has to cut, z y x, in voxels of the backbone."""

    compares_views: ClassVar[bool] = False
    """Whether it makes views whose surroundings are exchanged within the batch."""

    least_batch: ClassVar[int] = 1
    """Fewest cuboids that can be learned from at once."""

    @classmethod
    def projects(cls, settings: Any) -> bool:
        """Whether it trains the network's projection; the network has none where it does not."""
        del settings
        return True

    @abstractmethod
    def __init__(self, backbone: Vit3d, settings: Any, augment: AugmentConfig) -> None:
        super().__init__()

    @property
    @abstractmethod
    def exported(self) -> Vit3d:
        """The backbone that is the result."""

    @abstractmethod
    def forward(
        self, cuboids: Float[Tensor, "b c z y x"], draws: Draws, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss and what else is worth a line in the log.

        Parameters
        ----------
        cuboids
            Raw counts, of `canvas_shape`.
        draws
            Source of every random choice, an own sequence for each cuboid.
        progress
            Share of the training done, in [0, 1].

        Returns
        -------
        loss : Tensor
            Its gradient, averaged over ranks, is that of the whole batch.
        told : dict
            Numbers for the log, detached; and ``per_cuboid``, shape (b,), each cuboid's part of the
            loss, by which a cuboid that breaks the loss is found.
        """

    def before_update(self, progress: float) -> None:
        """Change gradients before the optimiser uses them."""

    def after_update(self, progress: float) -> None:
        """Follow the trained weights, as a teacher does."""

    def picture(self, cuboids: Float[Tensor, "b c z y x"], draws: Draws) -> Figure | None:
        """Show what has been learned, where it can be seen."""
        return None
