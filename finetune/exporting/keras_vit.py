"""`cubeclf_core.vit` as stock layers of keras."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from cubeclf_core.pooling import middle
from cubeclf_core.vit import Vit3d
from finetune.exporting.keras_layers import array, converted, convolution, standardise, widened


def tokens(backbone: Vit3d, x: Any) -> Any:
    """Patch tokens, in the order y x z, as `Vit3d.forward` has them in z y x."""
    from keras import layers

    width, grid = int(backbone.embed_dim), backbone.config.grid
    patches = convolution(widened(backbone.patch_embed.proj), x)
    registers = backbone.config.register_tokens
    ends = (1, registers)  # class token, patches, registers
    x = layers.Permute((2, 1))(layers.Reshape((width, -1))(patches))
    x = layers.ZeroPadding1D(ends)(x)
    places = array(backbone.pos_embed)[0].reshape(*grid, width).transpose(1, 2, 0, 3)
    added = [array(backbone.cls_token)[0], places.reshape(-1, width)]
    added += [array(backbone.reg_token)[0]] if backbone.reg_token is not None else []
    known = np.concatenate(added)
    x = standardise(x, -known, np.ones_like(known), axis=(1, 2))
    for block in backbone.blocks:
        x = _block(block, x)
    return converted(backbone.norm, layers.Cropping1D(ends)(x))


def _block(block: Any, x: Any) -> Any:
    from keras import layers

    x = layers.Add()([x, _attention(block, converted(block.norm1, x))])
    mlp = block.mlp
    branch = nn.Sequential(block.norm2, mlp.fc1, mlp.act, _scaled(mlp.fc2, block.ls2))
    return layers.Add()([x, converted(branch, x)])


def _attention(block: Any, x: Any) -> Any:
    from keras import layers

    attention, out = block.attn, _scaled(block.attn.proj, block.ls1)
    heads, size = attention.num_heads, attention.head_dim
    weights = []
    for weight, bias in zip(
        attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3), strict=True
    ):
        weights += [array(weight).T.reshape(-1, heads, size), array(bias).reshape(heads, size)]
    weights += [array(out.weight).T.reshape(heads, size, -1), array(out.bias)]
    layer = layers.MultiHeadAttention(heads, size)
    y = layer(x, x)
    layer.set_weights(weights)
    return y


def _scaled(linear: nn.Linear, gains: nn.Module) -> nn.Linear:
    """Multiply what LayerScale does afterwards into a layer's weights."""
    if isinstance(gains, nn.Identity):
        return linear
    scaled = nn.Linear(linear.in_features, linear.out_features)
    gamma = gains.get_parameter("gamma").data
    scaled.weight.data = linear.weight.data * gamma[:, None]
    scaled.bias.data = linear.bias.data * gamma
    return scaled


def pooled(backbone: Vit3d, tokens: Any) -> Any:
    """Pool patch tokens as `Vit3d.pool_tokens` does."""
    from keras import layers

    z, y, x = grid = backbone.config.grid
    placed = layers.Reshape((y, x, z, int(backbone.embed_dim)))(tokens)
    parts = [placed]
    for odd, even in ((3, 2), (1, 2)):  # the inner patches, the centre
        z_crop, y_crop, x_crop = (_crop(n, odd if n % 2 else even) for n in grid)
        parts.append(layers.Cropping3D((y_crop, x_crop, z_crop))(placed))
    means = [layers.GlobalAveragePooling3D()(part) for part in parts]
    everything = layers.Concatenate()(means)
    projected = converted(backbone.projection, everything)
    if not backbone.config.pooled_beside:
        return projected
    return layers.Concatenate()([projected, everything])


def _crop(n: int, width: int) -> tuple[int, int]:
    kept = middle(n, width)
    return kept.start, n - kept.stop
