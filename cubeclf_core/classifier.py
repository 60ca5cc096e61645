"""From raw counts to the probability of a cell, by whatever a classifier is stored as."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from cubeclf_core import zoo
from cubeclf_core.candidates import read_candidates
from cubeclf_core.cells import Cells
from cubeclf_core.checkpoint import Header
from cubeclf_core.errors import CheckpointError, InputError
from cubeclf_core.exported import is_exported, load_exported
from cubeclf_core.fast import load_fast
from cubeclf_core.heads import CELL_CLASS, HeadConfig
from cubeclf_core.keras_file import is_keras, load_keras
from cubeclf_core.network_configs import BackboneConfig, read_backbone_config
from cubeclf_core.normalise import match_channels
from cubeclf_core.onnx_file import is_onnx, load_onnx
from cubeclf_core.volumes import Volume


@runtime_checkable
class Network(Protocol):
    """Raw cuboids to logits, ours or an exported program."""

    def __call__(self, cuboids: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b klass"]:
        """Logits of raw cuboids."""


_FORMATS: tuple[tuple[Callable[[Path], bool], Callable[[Path], tuple[Network, Header]]], ...] = (
    (is_keras, load_keras),
    (is_onnx, load_onnx),
    (is_exported, load_exported),  # any other zip archive
)


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
        probabilities: npt.NDArray[np.float64] = torch.cat(logits).double().softmax(1).cpu().numpy()
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
    """Load a classifier from a fine-tuning run's folder, its safetensors, or what was exported.

    Parameters
    ----------
    path
        The folder or file; of exported ones ``.keras``, ``.onnx``, ``.pt2`` or a bundle; or the
        name of one that comes with cubeclf, see `cubeclf_core.zoo`.
    exact
        Compute in float32 on the CPU, as it was trained. Otherwise, a network in safetensors
        computes where and as the machine is fastest: see `cubeclf_core.fast`. Exported programs
        compute as they were exported.

    Raises
    ------
    CheckpointError
        If it is none of these.
    InputError
        If it needs a package that is not installed.

    Examples
    --------
    >>> load_classifier("no/such/file")
    Traceback (most recent call last):
        ...
    cubeclf_core.errors.CheckpointError: no classifier at no/such/file; expected ...
    """
    path = zoo.find(path, "classifier") or Path(path)
    network, header = _load_network(path, exact=exact)
    threshold = float(header.training.get("threshold", 0.5))
    try:
        classes = HeadConfig.from_dict(header.head).classes
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is of an earlier cubeclf; export it again") from error
    config = read_backbone_config(header.backbone)
    return LoadedClassifier(network, config, threshold, classes, header.training)


def _load_network(path: Path, *, exact: bool) -> tuple[Network, Header]:
    for recognised, load in _FORMATS:
        if recognised(path):
            return load(path)
    if exact:
        from cubeclf_core.trained import load_trained  # which imports timm, and takes seconds

        return load_trained(path)
    return load_fast(path)
