"""The kinds of networks there are, and what may be asked of any of them.

Each has a `config` with its cuboid, voxel size, channels and normalisation, and an `embed` from
normalised cuboids to features of `embedding_width`.
"""

from __future__ import annotations

from torch import nn

from cubeclf_core.network_configs import BackboneConfig
from cubeclf_core.resnet import ResNet3d, ResNet3dConfig
from cubeclf_core.vit import Vit3d

Backbone = Vit3d | ResNet3d


def make_network(config: BackboneConfig) -> Backbone:
    """Make a network with random weights, from torch's global generator."""
    return ResNet3d(config) if isinstance(config, ResNet3dConfig) else Vit3d(config)


def parameter_stages(backbone: Backbone) -> list[list[nn.Parameter]]:
    """Sort all parameters from the input to the output.

    Returns
    -------
    list of list
        Of a vision transformer: what embeds patches, then each block, the last with what follows
        it. Of a residual network: the stem, then each of four stages.
    """
    if isinstance(backbone, ResNet3d):
        return [list(stage.parameters()) for stage in backbone.stages()]
    blocks = [list(block.parameters()) for block in backbone.blocks]
    blocks[-1] += [*backbone.norm.parameters(), *backbone.projection.parameters()]
    later = {id(parameter) for block in blocks for parameter in block}
    first = [parameter for parameter in backbone.parameters() if id(parameter) not in later]
    return [first, *blocks]
