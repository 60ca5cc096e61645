"""From raw counts to the probability of a cell: a backbone and a head."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
from cubeclf_core.heads import CELL_CLASS, Head, HeadConfig
from cubeclf_core.networks import (
    Backbone,
    BackboneConfig,
    make_network,
    prepare,
    read_backbone_config,
)
from cubeclf_core.normalise import match_channels
from cubeclf_core.vit import Vit3d
from cubeclf_core.volumes import Volume


class Classifier(nn.Module):
    """A network that takes raw counts and returns logits of [no cell, cell, …].

    Parameters
    ----------
    backbone
        Encoder; its config gives cuboid, voxel size and channels.
    head
        What kind of head; its weights come from torch's global generator.

    Raises
    ------
    InputError
        If the head takes tokens and the backbone has none.
    """

    def __init__(self, backbone: Backbone, head: HeadConfig | None = None) -> None:
        super().__init__()
        head = head or HeadConfig()
        self.backbone = backbone
        width = backbone.embedding_width
        if head.takes_tokens:
            if not isinstance(backbone, Vit3d):
                raise InputError(
                    "--head attention needs a vision transformer; expected linear, mlp"
                )
            width = int(backbone.embed_dim)
        self.head = Head(head, width)

    def features(self, cuboids: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b *token feature"]:
        """What the head takes of raw cuboids: embeddings, or patch tokens."""
        x = prepare(cuboids, self.backbone.config)
        if self.head.config.takes_tokens:
            return self.backbone(x)[:, 1:]  # type: ignore[no-any-return]
        return self.backbone.embed(x)

    def forward(self, cuboids: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b klass"]:
        """Logits of raw cuboids."""
        return self.head(self.features(cuboids))  # type: ignore[no-any-return]


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
    threshold
        Probability from which on a candidate is a cell, as chosen in training.
    classes
        Names, in the order of `predict`'s columns; the second is that of cells.
    training
        What its file tells of the training.
    """

    network: Network
    config: BackboneConfig
    threshold: float = 0.5
    classes: tuple[str, ...] = HeadConfig.classes
    training: Mapping[str, Any] = field(default_factory=dict)

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
            Shape (b, class): no cell, cell, and further ones if it was trained on them.

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
            yield Scored(part.index, self.predict(part.cuboids)[:, CELL_CLASS], part.padded)


def load_classifier(path: str | Path, *, exact: bool = False) -> LoadedClassifier:
    """Load a classifier from a fine-tuning run's folder, its safetensors, or an exported program.

    Parameters
    ----------
    path
        The folder or file.
    exact
        Take the network as it was trained, in float32, and not the fastest way that is nearly so.

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
        network, header = load_exported(path)
    else:
        network, header = load_trained(path)
    threshold = float(header.training.get("threshold", 0.5))
    try:
        classes = HeadConfig.from_dict(header.head).classes
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is of an earlier cubeclf; export it again") from error
    config = read_backbone_config(header.backbone)
    return LoadedClassifier(network, config, threshold, classes, header.training)


def load_trained(path: Path) -> tuple[Classifier, Header]:
    """Load the network of a fine-tuning run, in evaluation mode, with what its file says.

    Raises
    ------
    CheckpointError
        If there is no classifier of ours at `path`.
    """
    header, tensors = load_checkpoint(path, "classifier")
    try:
        backbone = make_network(read_backbone_config(header.backbone))
        classifier = Classifier(backbone, HeadConfig.from_dict(header.head))
        classifier.load_state_dict(tensors)
    except (RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not hold the weights its header tells of") from error
    return classifier.eval().requires_grad_(False), header


def save_classifier(path: Path, classifier: Classifier, training: dict[str, Any]) -> None:
    """Write a classifier with its config and the settings it was trained with."""
    header = Header(
        kind="classifier",
        backbone=dataclasses.asdict(classifier.backbone.config),
        head=dataclasses.asdict(classifier.head.config),
        training=training,
        normalisation=classifier.backbone.config.normalisation,
    )
    save_checkpoint(path, header, classifier.state_dict())
