"""Names and files of backbones, and how to get a network from them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from cubeclf_core import zoo
from cubeclf_core.bundle import is_bundle, load_bundled_backbone
from cubeclf_core.checkpoint import Header, load_checkpoint, save_checkpoint
from cubeclf_core.config import PROJECTION
from cubeclf_core.errors import CheckpointError, InputError
from cubeclf_core.inflate import fitting_size, inflate
from cubeclf_core.vit import SIZES, Vit3d, Vit3dConfig
from cubeclf_core.weights_2d import Weights, download_2d, holds_2d, read_2d

_SCRATCH = "scratch:"
_PROJECTED = "+projection"
_TIMM = "timm:"
_PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")


def load_backbone(
    name: str, *, channels: int = 2, seed: int = 0, config: Vit3dConfig | None = None
) -> tuple[Vit3d, dict[str, Any]]:
    """Get a backbone by name or from a file.

    Parameters
    ----------
    name
        A run's folder, a `.safetensors` file or an exported bundle of ours; weights that come with
        cubeclf, see `cubeclf_core.zoo`; a `.safetensors` file of a 2D vision transformer, or
        ``timm:NAME`` for one of timm's, to be inflated; or ``scratch:vit-SIZE`` for random weights,
        ``scratch:vit-SIZE+projection`` with the projection that pretrained ones have.
    channels
        Input channels of a network from scratch or from 2D; a file of ours has its own.
    seed
        Of the random weights.
    config
        What else a network from scratch or from 2D should be, instead of `channels`; where 2D
        weights have LayerScale or register tokens, it has them too. If not given it is the default,
        of the size that is named or that the 2D weights are of; what comes from 2D keeps its
        positions, so they are learned.

    Returns
    -------
    backbone : Vit3d
        In evaluation mode, on the CPU.
    origin : dict
        What is known of where its weights come from.

    Raises
    ------
    CheckpointError
        If the file is neither a backbone of ours nor a 2D vision transformer.
    InputError
        If the name is unknown, or 2D weights are of another size than the network.
    RunFailed
        If weights cannot be downloaded.
    """
    if name.startswith(_SCRATCH):
        config = config or Vit3dConfig(channels=channels)
        return _from_scratch(name.removeprefix(_SCRATCH), config, seed), {"backbone": name}
    if name.startswith(_TIMM):
        weights = download_2d(name.removeprefix(_TIMM))
        return _from_2d(name, weights, channels, config), {"backbone": name}
    path = zoo.find(name, "backbone") or Path(name)
    if path.suffix in _PICKLES and path.is_file():
        raise CheckpointError(
            f"{name} is a pickle, which can run any code when read; expected .safetensors: "
            "convert it where you trust it"
        )
    if is_2d(name):
        return _from_2d(name, read_2d(path), channels, config), {"backbone": name}
    if is_bundle(path):
        bundled, origin = load_bundled_backbone(path)
        if not isinstance(bundled, Vit3d):
            raise CheckpointError(f"{name} holds a residual network, expected a vision transformer")
        return bundled, origin
    header, tensors = load_checkpoint(path, "backbone")
    backbone = Vit3d(Vit3dConfig.from_dict(header.backbone))
    try:
        backbone.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{name} does not hold the weights its header tells of") from error
    return backbone.eval(), {"backbone": name, **header.training}


def is_2d(name: str) -> bool:
    """Tell whether `load_backbone` inflates what a name stands for."""
    return name.startswith(_TIMM) or holds_2d(Path(name))


def build_backbone(config: Vit3dConfig, seed: int) -> Vit3d:
    """Build a network with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Vit3d(config)


def save_backbone(path: Path, backbone: Vit3d, training: dict[str, Any]) -> None:
    """Write a backbone with its config and the settings it was trained with."""
    header = Header(
        kind="backbone", backbone=dataclasses.asdict(backbone.config), training=training
    )
    save_checkpoint(path, header, backbone.state_dict())


def _from_scratch(name: str, config: Vit3dConfig, seed: int) -> Vit3d:
    plain = name.removesuffix(_PROJECTED)
    size = plain.removeprefix("vit-")
    if not name.startswith("vit-") or size not in SIZES:
        raise InputError(f"no network {name!r}; expected one of vit-{', vit-'.join(SIZES)}")
    projection = PROJECTION if name != plain else config.projection
    config = dataclasses.replace(config, size=size, projection=projection)
    return build_backbone(config, seed).eval()


def _from_2d(name: str, weights: Weights, channels: int, config: Vit3dConfig | None) -> Vit3d:
    try:
        if config is None:
            size = fitting_size(weights)
            config = Vit3dConfig(size=size, channels=channels, positions="learned")
        return inflate(weights, config).eval()
    except InputError as error:  # of the same kind, with the name
        raise type(error)(f"{name}: {error}") from error
