"""A classifier as a folder for a hub or a colleague: weights, config and card.

The weights are safetensors whose header says all that is needed to load them; config.json says the
same to people and programs that do not read such headers. Other classifiers may start from the
backbone in it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from cubeclf_core.checkpoint import BUNDLED, Header, load_checkpoint, save_checkpoint
from cubeclf_core.errors import CheckpointError
from cubeclf_core.files import replacing
from cubeclf_core.network_configs import read_backbone_config
from cubeclf_core.networks import Backbone, make_network
from cubeclf_core.trained import Classifier
from cubeclf_core.vit_config import Vit3dConfig

CARD = "README.md"
_CONFIG = "config.json"
_BACKBONE = "backbone."


def save_bundle(folder: Path, classifier: Classifier, header: Header) -> None:
    """Write weights and config; the card is for whoever knows more to add.

    Parameters
    ----------
    folder
        Replaced as a whole.
    classifier
        Its weights are written as they are.
    header
        What they are.
    """
    with replacing(folder) as temporary:
        temporary.mkdir()
        save_checkpoint(temporary / BUNDLED, header, classifier.state_dict())
        values = json.dumps(dataclasses.asdict(header), indent=2, default=str)
        (temporary / _CONFIG).write_text(values + "\n", encoding="utf-8")


def is_bundle(path: Path) -> bool:
    """Whether a path is such a folder."""
    return (path / BUNDLED).is_file()


def load_bundled_backbone(folder: Path) -> tuple[Backbone, dict[str, Any]]:
    """Take the backbone out of a bundle's classifier.

    Returns
    -------
    backbone : Vit3d or ResNet3d
        In evaluation mode, on the CPU.
    origin : dict
        What the classifier was trained on: its labels have been seen.

    Raises
    ------
    CheckpointError
        If the bundle is damaged.
    """
    header, tensors = load_checkpoint(folder, "classifier")
    weights = {
        name.removeprefix(_BACKBONE): tensor
        for name, tensor in tensors.items()
        if name.startswith(_BACKBONE)
    }
    config = read_backbone_config(header.backbone)
    if isinstance(config, Vit3dConfig):  # which was for the head
        config = dataclasses.replace(config, pooled_beside=False)
    backbone = make_network(config)
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{folder} does not hold the weights its header tells of") from error
    return backbone.eval(), {"backbone": str(folder), "classifier": header.training}
