"""Weights of 2D vision transformers: where they come from, and one set of names for them.

Known are the names of timm's `VisionTransformer` and those of Hugging Face's ViT and DINOv2, with
whatever stands before them (``vit.`` for instance). Only safetensors are read, nothing is
unpickled.
"""

from __future__ import annotations

import re
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cubeclf_core.errors import CheckpointError, InputError, RunFailed

Weights = dict[str, Tensor]

PATCH_EMBEDDING = "patch_embed.proj.weight"
_HUGGING_FACE_PATCH_EMBEDDING = "embeddings.patch_embeddings.projection.weight"
_HUGGING_FACE = {  # parts of names and timm's; replaced one after the other
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "reg_token",
    "encoder.layer.": "blocks.",
    "layernorm_before.": "norm1.",
    "layernorm_after.": "norm2.",
    "layernorm.": "norm.",
    "attention.attention.": "attn.",
    "attention.output.dense.": "attn.proj.",
    "intermediate.dense.": "mlp.fc1.",
    ".output.dense.": ".mlp.fc2.",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}


def holds_2d(path: Path) -> bool:
    """Tell whether a file is safetensors with the weights of a 2D vision transformer."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return False
    return any(_embeds_patches(name, len(shape)) for name, shape in shapes.items())


def read_2d(path: Path) -> Weights:
    """Read a file that `holds_2d` has looked at."""
    weights: Weights = load_file(path)
    return weights


def download_2d(name: str) -> Weights:
    """Get the trained weights of one of timm's vision transformers, from its hub or the cache.

    Parameters
    ----------
    name
        As timm has it, ``vit_small_patch14_dinov2.lvd142m`` for instance.

    Raises
    ------
    InputError
        If timm has no such model, or it is no plain vision transformer.
    RunFailed
        If the weights cannot be had.
    """
    if not timm.is_model(name):
        raise InputError(f"timm has no model {name!r}; `timm.list_models('vit*')` lists them")
    # without a file's name timm goes on to try pickles
    safe = {"hf_hub_filename": "model.safetensors", "url": ""}
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=safe)
    except Exception as error:  # the hub's, the network's, the disk's: they share no base
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunFailed(f"could not download timm:{name}: {reason}") from error
    if not isinstance(model, VisionTransformer):
        found = type(model).__name__
        raise InputError(f"timm:{name} is a {found}; expected a plain vision transformer")
    weights: Weights = model.state_dict()
    return weights


def to_timm_names(state_dict: Weights) -> Weights:
    """Name weights as timm does, in float32; query, key and value are put together.

    Raises
    ------
    CheckpointError
        If they are of no vision transformer that is known, or of several.
    """
    found = [name for name, tensor in state_dict.items() if _embeds_patches(name, tensor.ndim)]
    if len(found) != 1:
        what = f"several ({', '.join(found)})" if found else "none"
        raise CheckpointError(
            f"expected one 2D vision transformer of timm or Hugging Face, found {what}"
        )
    hugging_face = found[0].endswith(_HUGGING_FACE_PATCH_EMBEDDING)
    stem = _HUGGING_FACE_PATCH_EMBEDDING if hugging_face else PATCH_EMBEDDING
    prefix = found[0].removesuffix(stem)
    weights = {
        name.removeprefix(prefix): tensor.detach().float()
        for name, tensor in state_dict.items()
        if name.startswith(prefix)
    }
    if hugging_face:
        weights = _join_attention({_timm_name(name): weights[name] for name in weights})
    if "register_tokens" in weights:  # as DINOv2's own code has it
        weights["reg_token"] = weights.pop("register_tokens")
    if "norm.weight" not in weights:  # timm names it so where it pools before the norm
        weights = {re.sub(r"^fc_norm\.", "norm.", name): weights[name] for name in weights}
    return weights


def _embeds_patches(name: str, n_dimensions: int) -> bool:
    stems = (f".{PATCH_EMBEDDING}", f".{_HUGGING_FACE_PATCH_EMBEDDING}")
    return n_dimensions == 4 and f".{name}".endswith(stems)


def _timm_name(name: str) -> str:
    for theirs, timms in _HUGGING_FACE.items():
        name = name.replace(theirs, timms)
    return name


def _join_attention(weights: Weights) -> Weights:
    for name in [name for name in weights if ".attn.query." in name]:
        parts = [name.replace("query", part) for part in ("query", "key", "value")]
        if missing := [part for part in parts if part not in weights]:
            raise CheckpointError(f"the 2D weights lack {missing[0]}")
        weights[name.replace("query", "qkv")] = torch.cat([weights.pop(part) for part in parts])
    return weights
