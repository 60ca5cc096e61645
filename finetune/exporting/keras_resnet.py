"""`cubeclf_core.resnet` as stock layers of keras."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from cubeclf_core.resnet import EPSILON, PlaneNorm, ResidualBlock, ResNet3d
from finetune.exporting.keras_layers import FIRST, apply, array, convolution, widened

_Z = 4  # of (b, c, y, x, z)


def residual_features(backbone: ResNet3d, x: Any) -> Any:
    """Put what `ResNet3d.embed` does after what it takes."""
    from keras import layers

    first, *others = backbone.stem
    assert isinstance(first, nn.Conv3d)
    x = _chain([widened(first), *others], x)
    for stage in backbone.stages()[1:]:
        for block in stage.children():
            assert isinstance(block, ResidualBlock)
            parts = [_chain(branch.children(), x) for branch in (block.branch, block.shortcut)]
            x = layers.Activation("relu")(layers.Add()(parts))
    return layers.GlobalAveragePooling3D(data_format=FIRST)(x)


def _chain(modules: Iterable[nn.Module], x: Any) -> Any:
    for module in modules:
        x = _after(module, x)
    return x


def _after(module: nn.Module, x: Any) -> Any:
    from keras import layers

    match module:
        case nn.Conv3d():
            return convolution(module, x)
        case PlaneNorm():
            layer = layers.BatchNormalization(
                axis=_Z, momentum=1 - module.momentum, epsilon=EPSILON
            )
            numbers = (module.weight, module.bias, module.running_mean, module.running_var)
            return apply(layer, x, *map(array, numbers))
        case nn.ReLU():
            return layers.Activation("relu")(x)
        case nn.MaxPool3d(kernel_size=(z, y, x_size), stride=int(stride)):
            return layers.MaxPooling3D((y, x_size, z), strides=stride, data_format=FIRST)(x)
    raise AssertionError(f"no {type(module).__name__} in a residual network")
