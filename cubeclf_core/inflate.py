"""A 3D vision transformer from the weights of a 2D one.

As in I3D (Carreira & Zisserman, arXiv:1705.07750), what was learned on images is repeated along z
and divided, so that a volume that is the same in every plane gives what its one plane gave. Blocks
load as they are, and nothing that the weights lack is left random but the projection, which images
have no use for.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from cubeclf_core.axes import Shape3
from cubeclf_core.errors import CheckpointError, InputError
from cubeclf_core.vit import SIZES, Vit3d, Vit3dConfig
from cubeclf_core.weights_2d import PATCH_EMBEDDING, Weights, to_timm_names

_FIRST_GAIN = "blocks.0.ls1.gamma"
# What a network must not have beside ours. Other surplus is a head, or a mask token.
_KNOWN_PARTS = ("blocks.", "norm.", "norm_pre.", "patch_embed.", "dist_token")


def inflate(state_dict: Weights, config: Vit3dConfig) -> Vit3d:
    """Build a network whose weights are those of a 2D one.

    The patch embedding is that of grey images, resized to the patch's y and x and shared evenly
    by its planes and channels: a constant cuboid gives what a constant grey image gave. Learned
    positions are resized to the grid's y and x and are the same at every z; fixed ones stay fixed.

    Parameters
    ----------
    state_dict
        Of a timm `VisionTransformer`, or of a Hugging Face ViT or DINOv2; its heads are ignored.
    config
        The network; its size has to be that of the weights, see `fitting_size`. Where the weights
        have LayerScale or register tokens, the network gets them too. Where the config asks for
        them and the weights have none, gains are 1 and register tokens are new.

    Returns
    -------
    Vit3d
        On the CPU.

    Raises
    ------
    InputError
        If the config is of another size than the weights.
    CheckpointError
        If the weights are incomplete, or of another kind of network.
    """
    weights = to_timm_names(state_dict)
    size = fitting_size(weights)
    if size != config.size:
        raise InputError(
            f"the 2D weights are of size {size} ({_spell(size)}); the network asked for is of size "
            f"{config.size} ({_spell(config.size)}); ask for size {size}"
        )
    network = _build(_with_what_weights_have(config, weights))
    own = network.state_dict()
    weights[PATCH_EMBEDDING] = inflate_patch(
        weights[PATCH_EMBEDDING], config.patch_shape, config.channels
    )
    _require(weights, ["cls_token", "pos_embed"])
    _settle_positions(weights, config.grid)
    if config.positions == "sincos":
        weights["pos_embed"] = own["pos_embed"]
    weights |= {name: own[name] for name in own if name.startswith("projection.")}
    if "reg_token" in own:
        weights.setdefault("reg_token", own["reg_token"])
    if _FIRST_GAIN not in weights:
        weights |= {name: torch.ones_like(own[name]) for name in own if name.endswith(".gamma")}
    _check(weights, own)
    network.load_state_dict({name: weights[name] for name in own})
    return network


def fitting_size(state_dict: Weights) -> str:
    """Say of which of `SIZES` 2D weights are, by their width and depth.

    Raises
    ------
    InputError
        If they are of none.
    CheckpointError
        If they are of another kind of network.
    """
    weights = to_timm_names(state_dict)
    width = len(weights[PATCH_EMBEDDING])
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    for size, (own_width, own_depth, _) in SIZES.items():
        if (own_width, own_depth) == (width, depth):
            return size
    sizes = ", ".join(f"{size} ({_spell(size)})" for size in SIZES)
    raise InputError(f"the 2D weights are {width} wide and {depth} deep; expected {sizes}")


def inflate_patch(
    weight: Float[Tensor, "width colour h w"], shape: Shape3, channels: int
) -> Float[Tensor, "width channel z y x"]:
    """Make a patch embedding of cuboids from one of images.

    Parameters
    ----------
    weight
        Of the 2D convolution.
    shape
        The 3D patch, z y x in voxels.
    channels
        Of the cuboids; each gets the same weights.
    """
    z, y, x = shape
    grey = weight.sum(1, keepdim=True)  # a grey image is the same in all colours
    if (y, x) != tuple(weight.shape[2:]):
        total = grey.sum((2, 3), keepdim=True)
        grey = F.interpolate(grey, size=(y, x), mode="bicubic", antialias=True)
        grey = grey * (weight[0, 0].numel() / (y * x))
        # The sum is now right but for the borders; made exact, brightness means what it meant.
        grey = grey + (total - grey.sum((2, 3), keepdim=True)) / (y * x)
    return grey[:, :, None].expand(-1, channels, z, -1, -1) / (channels * z)


def _with_what_weights_have(config: Vit3dConfig, weights: Weights) -> Vit3dConfig:
    if _FIRST_GAIN in weights:
        config = dataclasses.replace(config, layer_scale=config.layer_scale or 1.0)
    if "reg_token" in weights:
        config = dataclasses.replace(config, register_tokens=weights["reg_token"].shape[1])
    return config


def _build(config: Vit3dConfig) -> Vit3d:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Vit3d(config)


def _settle_positions(weights: Weights, grid: Shape3) -> None:
    """Resize positions to a 3D grid; those of class and register tokens are added to the tokens."""
    positions = weights["pos_embed"]
    registers = weights["reg_token"].shape[1] if "reg_token" in weights else 0
    length = positions.shape[1]
    for n in (0, 1, 1 + registers):  # tokens before the patches that have a position
        if length > n and math.isqrt(length - n) ** 2 == length - n:
            break
    else:
        raise CheckpointError(f"expected a square grid of positions in 2D weights, found {length}")
    if n > 0:
        weights["cls_token"] = weights["cls_token"] + positions[:, :1]
    if n > 1:
        weights["reg_token"] = weights["reg_token"] + positions[:, 1:n]
    plane = resample_abs_pos_embed(positions[:, n:], list(grid[1:]), num_prefix_tokens=0)
    weights["pos_embed"] = plane.repeat(1, grid[0], 1)


def _check(weights: Weights, own: Weights) -> None:
    """Refuse weights that lack something, or that did more than this network does."""
    _require(weights, list(own))
    surplus = [name for name in weights if name not in own and name.startswith(_KNOWN_PARTS)]
    if surplus:
        raise CheckpointError(f"expected a plain 2D vision transformer; this has {_some(surplus)}")
    for name, tensor in own.items():
        if weights[name].shape != tensor.shape:
            found, expected = tuple(weights[name].shape), tuple(tensor.shape)
            raise CheckpointError(f"{name} of the 2D weights is {found}, expected {expected}")


def _require(weights: Weights, names: list[str]) -> None:
    if missing := [name for name in names if name not in weights]:
        raise CheckpointError(f"the 2D weights lack {_some(missing)}")


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _spell(size: str) -> str:
    width, depth, _ = SIZES[size]
    return f"{width} wide, {depth} deep"
