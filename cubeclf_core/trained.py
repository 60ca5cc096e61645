"""Classifiers as they are trained, a backbone and a head, and their files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from cubeclf_core import zoo
from cubeclf_core.checkpoint import Header, load_checkpoint, save_checkpoint
from cubeclf_core.errors import CheckpointError, InputError
from cubeclf_core.heads import Head, HeadConfig
from cubeclf_core.network_configs import prepare, read_backbone_config
from cubeclf_core.networks import Backbone, make_network
from cubeclf_core.vit import Vit3d


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


def fresh_classifier(backbone: Backbone, head: HeadConfig | None = None) -> Classifier:
    """Put a new head on a backbone; a linear one takes what a projection is made of, too.

    Parameters
    ----------
    backbone
        Its config is changed to say so: no other classifier can have it then.
    head
        See `Classifier`.
    """
    head = head or HeadConfig()
    if isinstance(backbone, Vit3d):
        both = head.kind == "linear" and backbone.config.projection > 0
        backbone.config = dataclasses.replace(backbone.config, pooled_beside=both)
    return Classifier(backbone, head)


def load_trained(path: Path) -> tuple[Classifier, Header]:
    """Load the network of a fine-tuning run, in evaluation mode, with what its file says.

    Parameters
    ----------
    path
        Of the run or its file; or the name of one that comes with cubeclf, see `cubeclf_core.zoo`.

    Raises
    ------
    CheckpointError
        If there is no classifier of ours at `path`.
    """
    path = zoo.find(path, "classifier") or path
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
