"""Layers of torch as stock layers of keras, and our normalisation made of such.

cellfinder loads models in keras's safe mode and without code of ours, so a model may hold nothing
but layers that keras brings. Its cuboids are (b, y, x, z, c). Inside, the channel goes before them,
(b, c, y, x, z), where torch is fastest; kernels are turned accordingly.
"""

from __future__ import annotations

from copy import deepcopy
from math import prod, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cubeclf_core.errors import InputError
from cubeclf_core.normalise import LEAST, TEXTURE

CHANNELS = 2
"""What cellfinder always sends; a network of one does without the second."""

FIRST = "channels_first"
_YXZ_IN_OUT = (3, 4, 2, 1, 0)  # from torch's out, in, z, y, x
_NEWTON_STEPS = 4
_TOUCHING = 0.5 * 4.0 ** -np.arange(16)  # down to a channel of one count in one voxel


def array(tensor: Tensor) -> npt.NDArray[np.float32]:
    """Take a tensor's numbers out of torch."""
    return np.asarray(tensor.detach().float().numpy())


def apply(layer: Any, x: Any, *weights: npt.ArrayLike) -> Any:
    """Put a layer after `x`, with these weights."""
    y = layer(x)
    layer.set_weights([np.asarray(weight, np.float32) for weight in weights])
    return y


def standardise(x: Any, mean: npt.ArrayLike, deviation: npt.ArrayLike, axis: Any = -1) -> Any:
    """Subtract constants along some axes and divide by others; they are never trained."""
    from keras import layers

    layer = layers.Normalization(axis=axis)
    y = layer(x)
    layer.set_weights([np.asarray(mean), np.square(deviation), np.zeros((), np.int32)])
    layer.finalize_state()
    return y


def converted(module: nn.Module, x: Any) -> Any:
    """Put what a module of torch does to its last axis after `x`.

    Raises
    ------
    InputError
        If it is of a kind that is not known here.
    """
    from keras import layers

    match module:
        case nn.Identity() | nn.Dropout():
            return x
        case nn.Sequential():
            for part in module:
                x = converted(part, x)
            return x
        case nn.Linear():
            weights = [array(module.weight).T, *_bias(module)]
            return apply(layers.Dense(module.out_features, use_bias=len(weights) > 1), x, *weights)
        case nn.GELU(approximate="none"):
            return layers.Activation("gelu")(x)
        case nn.LayerNorm():
            affine = module.elementwise_affine
            layer = layers.LayerNormalization(epsilon=module.eps, center=affine, scale=affine)
            return apply(layer, x, *map(array, (module.weight, module.bias) if affine else ()))
    raise InputError(
        f"a layer {type(module).__name__} cannot be written as stock layers of keras; --format "
        "torch, onnx and bundle take every classifier"
    )


def convolution(module: nn.Conv3d, x: Any) -> Any:
    """Put a convolution along z, y and x after `x`."""
    from keras import layers

    size, strides, padding = (
        tuple(int(values[axis]) for axis in (1, 2, 0))
        for values in (module.kernel_size, module.stride, module.padding)
    )
    if any(padding):
        x = layers.ZeroPadding3D(padding, data_format=FIRST)(x)
    weights = [array(module.weight).transpose(_YXZ_IN_OUT), *_bias(module)]
    settings = {"data_format": FIRST, "use_bias": len(weights) > 1}
    return apply(layers.Conv3D(module.out_channels, size, strides, **settings), x, *weights)


def widened(module: nn.Conv3d) -> nn.Conv3d:
    """Give a first convolution of one channel a second channel, which counts nothing."""
    if module.in_channels == CHANNELS:
        return module
    wide = deepcopy(module)
    wide.in_channels = CHANNELS
    wide.weight = nn.Parameter(torch.cat([module.weight, torch.zeros_like(module.weight)], dim=1))
    return wide


def _bias(module: nn.Linear | nn.Conv3d) -> list[npt.NDArray[np.float32]]:
    return [] if module.bias is None else [array(module.bias)]


def channels_first(x: Any) -> Any:
    """Bring cuboids (b, y, x, z, c) to (b, c, y, x, z), in memory too."""
    from keras import layers

    *shape, channels = x.shape[1:]
    turned = layers.Permute((2, 1))(layers.Reshape((prod(shape), channels))(x))
    return layers.Reshape((channels, *shape))(layers.Flatten()(turned))


def normalised(x: Any) -> Any:
    """Put `cubeclf_core.normalise.normalise` after raw counts, channels first.

    The result is a channel's own direction (its counts less their mean, of length 1) times a
    number, √(deviation / share) and a constant, where share is the larger of 0.12 mean and 0.1
    deviation. Direction and deviation come of layers that normalise lengths; the root of a ratio
    does not, and is found by `_inverse_root`. A constant channel has no direction and stays zero.
    """
    from keras import layers

    channels, n_voxels = x.shape[1], prod(x.shape[2:])
    mean = layers.GlobalAveragePooling3D(data_format=FIRST)(x)
    centred = layers.Subtract()([x, layers.Reshape((channels, 1, 1, 1))(mean)])
    direction = layers.UnitNormalization(axis=(2, 3, 4))(centred)
    along = layers.Multiply()([centred, direction])
    average = layers.GlobalAveragePooling3D(data_format=FIRST)(along)
    deviation = layers.Rescaling(sqrt(n_voxels))(average)
    parts = [layers.Rescaling(TEXTURE)(mean), layers.Rescaling(LEAST)(deviation)]
    pair = [layers.Reshape((1, channels))(x) for x in (deviation, layers.Maximum()(parts))]
    unit = layers.UnitNormalization(axis=1)(layers.Concatenate(axis=1)(pair))  # gain goes out
    deviation, share = layers.Cropping1D((0, 1))(unit), layers.Cropping1D((1, 0))(unit)
    root = _inverse_root(layers.Multiply()([deviation, share]))  # of at most 1/2
    scale = layers.Rescaling(sqrt(n_voxels))(layers.Multiply()([deviation, root]))
    return layers.Multiply()([direction, layers.Reshape((channels, 1, 1, 1))(scale)])


def _inverse_root(x: Any) -> Any:
    """Put 1 / √ after numbers from 0 to 1/2, shape (b, 1, c); of next to nothing, too little.

    The curve lies above its tangents, so the highest of some tangents is a good first value, at
    most a sixth too low, and Newton's iteration y (1.5 - 0.5 x y²) comes from below to all digits.
    """
    from keras import layers

    channels = x.shape[-1]
    tangents = layers.Dense(len(_TOUCHING), trainable=False)
    slopes, heights = -0.5 * _TOUCHING**-1.5, 1.5 * _TOUCHING**-0.5
    lines = apply(tangents, layers.Permute((2, 1))(x), slopes[None], heights)
    highest = layers.GlobalMaxPooling1D(data_format=FIRST)(lines)
    y = layers.Reshape((1, channels))(highest)
    for _ in range(_NEWTON_STEPS):
        excess = layers.Multiply()([x, y, y])
        y = layers.Multiply()([y, layers.Rescaling(-0.5, 1.5)(excess)])
    return y
