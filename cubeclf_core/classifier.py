"""From raw counts to the probability of a cell: a backbone, its pooled features, a linear head."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cubeclf_core.candidates import read_candidates
from cubeclf_core.cells import Cells
from cubeclf_core.checkpoint import Header, load_checkpoint, save_checkpoint
from cubeclf_core.errors import CheckpointError, InputError
from cubeclf_core.exported import is_exported, load_exported
from cubeclf_core.normalise import match_channels, normalise
from cubeclf_core.vit import Vit3d, Vit3dConfig
from cubeclf_core.volumes import Volume


class Classifier(nn.Module):
    """A network that takes raw counts and returns logits of [no cell, cell].

    Features are standardised before the linear head, by statistics of the training cuboids that are
    kept with the weights.

    Parameters
    ----------
    backbone
        Encoder; its config gives cuboid, voxel size and channels.
    n_classes
        Outputs of the head.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, backbone: Vit3d, n_classes: int = 2) -> None:
        super().__init__()
        self.backbone = backbone
        width = backbone.embedding_width
        self.register_buffer("feature_mean", torch.zeros(width))
        self.register_buffer("feature_std", torch.ones(width))
        self.head = nn.Linear(width, n_classes)

    def features(self, cuboids: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b feature"]:
        """Pooled features of raw cuboids, before they are standardised."""
        x = match_channels(normalise(cuboids), self.backbone.config.channels)
        return self.backbone.embed(x)

    def forward(self, cuboids: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b klass"]:
        """Logits of raw cuboids."""
        features = (self.features(cuboids) - self.feature_mean) / self.feature_std
        return self.head(features)  # type: ignore[no-any-return]


@runtime_checkable
class Network(Protocol):
    """Raw cuboids to logits, ours or an exported program."""

    def __call__(self, cuboids: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b klass"]:
        """Logits of raw cuboids."""


@dataclass(frozen=True)
class Scored:
    """Some candidates with their probability of being a cell; see `CandidateCuboids`."""

    index: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float64]
    padded: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LoadedClassifier:
    """A classifier ready for use, however it was stored.

    Attributes
    ----------
    network
        Raw cuboids to logits.
    config
        Cuboid, voxel size and channels that it takes.
    """

    network: Network
    config: Vit3dConfig

    @torch.inference_mode()
    def predict(
        self, cuboids: Tensor | npt.NDArray[Any], batch_size: int = 64
    ) -> npt.NDArray[np.float64]:
        """Probability of each class.

        Parameters
        ----------
        cuboids
            Shape (b, c, z, y, x): raw counts at the classifier's voxel size, z y x as in its
            config; an array or a tensor of any real dtype.
        batch_size
            Cuboids that go through the network at a time.

        Returns
        -------
        numpy.ndarray
            Shape (b, 2): no cell, cell.

        Raises
        ------
        InputError
            If the cuboids have another shape.
        """
        if cuboids.ndim != 5 or tuple(cuboids.shape[2:]) != self.config.cuboid_shape:
            raise InputError(
                f"cuboids have the shape {tuple(cuboids.shape)}; expected (b, c, z, y, x) with "
                f"z y x = {self.config.cuboid_shape}"
            )
        logits = [
            self.network(match_channels(part.float(), self.config.channels))
            for part in torch.as_tensor(cuboids).split(batch_size)
        ]
        probabilities: npt.NDArray[np.float64] = torch.cat(logits).double().softmax(1).numpy()
        return probabilities

    def classify(self, volume: Volume, cells: Cells) -> Iterator[Scored]:
        """Score candidates of a volume, in the order of reading; together every one once.

        Parameters
        ----------
        volume
            One or two channels, of any voxel size.
        cells
            Candidates; their types are not looked at.
        """
        parts = read_candidates(
            volume,
            cells.positions,
            shape=self.config.cuboid_shape,
            voxel_size_um=self.config.voxel_size_um,
            n_channels=min(volume.n_channels, self.config.channels),
        )
        for part in parts:
            yield Scored(part.index, self.predict(part.cuboids)[:, 1], part.padded)


def load_classifier(path: str | Path) -> LoadedClassifier:
    """Load a classifier from a fine-tuning run's folder, its safetensors, or an exported program.

    Parameters
    ----------
    path
        The folder or file.

    Raises
    ------
    CheckpointError
        If it is none of these.

    Examples
    --------
    >>> load_classifier("no/such/file")
    Traceback (most recent call last):
        ...
    cubeclf_core.errors.CheckpointError: no classifier at no/such/file; expected ...
    """
    path = Path(path)
    if is_exported(path):
        program, header = load_exported(path)
        return LoadedClassifier(program, Vit3dConfig.from_dict(header.backbone))
    classifier, _ = load_trained(path)
    return LoadedClassifier(classifier, classifier.backbone.config)


def load_trained(path: Path) -> tuple[Classifier, Header]:
    """Load the network of a fine-tuning run, in evaluation mode, with what its file says.

    Raises
    ------
    CheckpointError
        If there is no classifier of ours at `path`.
    """
    header, tensors = load_checkpoint(path, "classifier")
    backbone = Vit3d(Vit3dConfig.from_dict(header.backbone))
    classifier = Classifier(backbone, header.head["n_classes"])
    try:
        classifier.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not hold the weights its header tells of") from error
    return classifier.eval().requires_grad_(False), header


def save_classifier(path: Path, classifier: Classifier, training: dict[str, Any]) -> None:
    """Write a classifier with its config and the settings it was trained with."""
    header = Header(
        kind="classifier",
        backbone=dataclasses.asdict(classifier.backbone.config),
        head={"kind": "linear", "n_classes": classifier.head.out_features},
        training=training,
    )
    save_checkpoint(path, header, classifier.state_dict())
