"""What networks are told, and what they take; without the networks, for who only classifies.

A config has cuboid, voxel size, channels and normalisation.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from cubeclf_core.normalise import NORMALISATION, match_channels, normalise
from cubeclf_core.resnet import KIND, ResNet3dConfig
from cubeclf_core.vit_config import Vit3dConfig

BackboneConfig = Vit3dConfig | ResNet3dConfig


def read_backbone_config(values: dict[str, Any]) -> BackboneConfig:
    """Read the config of a network of any kind from a header.

    Raises
    ------
    TypeError
        If a key is unknown.
    """
    if values.get("kind") == KIND:
        return ResNet3dConfig.from_dict(values)
    return Vit3dConfig.from_dict(values)


def prepare(
    cuboids: Float[Tensor, "b c z y x"], config: BackboneConfig
) -> Float[Tensor, "b channel z y x"]:
    """Make of raw counts what a network takes: its normalisation, its channels."""
    seen = normalise(cuboids) if config.normalisation == NORMALISATION else cuboids.float()
    return match_channels(seen, config.channels)


def n_projected(config: BackboneConfig) -> int:
    """How many features of an embedding, the first, are a projection of the others; 0 if none."""
    both = isinstance(config, Vit3dConfig) and config.pooled_beside
    return config.projection if both else 0  # type: ignore[union-attr]  # both says which


def one_vector(
    features: Float[Tensor, "b *token feature"], config: BackboneConfig
) -> Float[Tensor, "b kept"]:
    """What to compare cuboids by, of what a head takes: its projection, or the mean of tokens.

    Surroundings, which lie beside the projection, would be most of the distance of two cuboids.
    """
    if features.ndim > 2:
        return features.mean(1)
    return features[:, : n_projected(config) or None]
