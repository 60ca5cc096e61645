"""Names and files of backbones, and how to get a network from them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from cubeclf_core.checkpoint import Header, load_checkpoint, save_checkpoint
from cubeclf_core.errors import CheckpointError, InputError
from cubeclf_core.vit import SIZES, Vit3d, Vit3dConfig

_SCRATCH = "scratch:"


def load_backbone(name: str, *, channels: int = 2, seed: int = 0) -> tuple[Vit3d, dict[str, Any]]:
    """Get a backbone by name or from a file.

    Parameters
    ----------
    name
        A run's folder, a `.safetensors` file, or ``scratch:vit-SIZE`` for random weights.
    channels
        Input channels of a network from scratch; a file has its own.
    seed
        Of the random weights.

    Returns
    -------
    backbone : Vit3d
        In evaluation mode, on the CPU.
    origin : dict
        What is known of where its weights come from.

    Raises
    ------
    CheckpointError
        If the file is not a backbone of ours.
    InputError
        If the name is unknown.
    """
    if name.startswith(_SCRATCH):
        return _from_scratch(name.removeprefix(_SCRATCH), channels, seed), {"backbone": name}
    header, tensors = load_checkpoint(Path(name), "backbone")
    backbone = Vit3d(Vit3dConfig.from_dict(header.backbone))
    try:
        backbone.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{name} does not hold the weights its header tells of") from error
    return backbone.eval(), {"backbone": name, **header.training}


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


def _from_scratch(name: str, channels: int, seed: int) -> Vit3d:
    size = name.removeprefix("vit-")
    if not name.startswith("vit-") or size not in SIZES:
        raise InputError(f"no network {name!r}; expected one of vit-{', vit-'.join(SIZES)}")
    return build_backbone(Vit3dConfig(size=size, channels=channels), seed).eval()
