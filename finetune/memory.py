"""What a run remembers of its labels, so that the next ones can be chosen to differ from them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cubeclf_core.checkpoint import write_tensors
from cubeclf_core.errors import CheckpointError
from cubeclf_core.network_configs import one_vector
from cubeclf_core.trained import Classifier
from finetune.examples import in_parts
from finetune.labels import Labelled

FILE = "labelled.safetensors"


@dataclass(frozen=True)
class Memory:
    """Labels that a classifier has learned from.

    Attributes
    ----------
    features
        Shape (n, feature), by its trained backbone.
    positions_um
        Shape (n, 3), z y x; NaN where not known.
    volumes
        Where the volume of each is, as `Brain.signal` has it.
    """

    features: Float[Tensor, "n feature"]
    positions_um: Float[Tensor, "n 3"]
    volumes: list[str]


def save_memory(path: Path, classifier: Classifier, data: Labelled) -> Float[Tensor, "n feature"]:
    """Write what the classifier sees in its labels, beside its weights, and give it back."""
    everything = torch.arange(len(data))
    features = in_parts(partial(embed, classifier), lambda index: data.cuboids[index], everything)
    tensors = {"features": features, "positions_um": torch.from_numpy(data.positions_um)}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_tensors(path, tensors, {"volumes": json.dumps(data.volumes)})
    return tensors["features"]


def load_memory(path: Path) -> Memory:
    """Read what `save_memory` wrote.

    Raises
    ------
    CheckpointError
        If there is none, or it cannot be understood.
    """
    try:
        with safe_open(path, "pt") as opened:
            volumes = json.loads((opened.metadata() or {})["volumes"])
            features, positions = (opened.get_tensor(key) for key in ("features", "positions_um"))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} does not tell which labels the classifier has seen ({error}); expected the "
            "folder of a fine-tuning run"
        ) from error
    return Memory(features, positions, volumes)


def embed(
    classifier: Classifier, cuboids: Float[Tensor, "b c z y x"]
) -> Float[Tensor, "b feature"]:
    """Turn raw cuboids into one vector each; see `one_vector`."""
    return one_vector(classifier.features(cuboids), classifier.backbone.config)
