"""cellfinder's 3D residual network, layer for layer, so that its published weights fit.

The network is that of Tyson et al. (doi:10.1371/journal.pcbi.1009074): residual units as He et al.
have them (arXiv:1512.03385), in three dimensions, with a small pool along z. cellfinder's tensors
are (b, y, x, z, c); here they are (b, c, z, y, x), as everywhere, and kernels lie z y x.

One thing is unlike every other such network: batches are normalised per plane, not per channel.
cellfinder passes the third axis to its normalisation, and after a batch axis that is z.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cubeclf_core.axes import Shape3, Size3
from cubeclf_core.errors import require
from cubeclf_core.normalise import NORMALISATION

BLOCKS: dict[int, tuple[int, int, int, int]] = {  # depth: blocks of each stage
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 6, 36, 3),
}
RAW = "none"
"""The normalisation of networks that see raw counts, as cellfinder's own do."""

NORMALISATIONS = (NORMALISATION, RAW)
KIND = "resnet"
_WIDTH = 64  # channels of the stem; they double from stage to stage
_LEAST = 5  # voxels along an axis that leave something to pool
EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class ResNet3dConfig:
    """Everything that is needed to build the network and to cut cuboids for it.

    Attributes
    ----------
    kind
        Always `KIND`: tells a header of this network from that of another.
    depth
        One of `BLOCKS`.
    channels
        1 for signal alone, 2 for signal and background.
    cuboid_shape
        z y x, in voxels of `voxel_size_um`. The weights depend on the number of planes.
    voxel_size_um
        z y x; all data is resampled to it.
    normalisation
        What the network sees: one of `NORMALISATIONS`. Weights that cellfinder 1.10 trained want
        raw counts.
    """

    kind: str = KIND
    depth: int = 18
    channels: int = 2
    cuboid_shape: Shape3 = (20, 50, 50)
    voxel_size_um: Size3 = (5.0, 1.0, 1.0)
    normalisation: str = NORMALISATION

    def __post_init__(self) -> None:
        require(self.kind == KIND, "kind", repr(self.kind), repr(KIND))
        depths = ", ".join(map(str, BLOCKS))
        require(self.depth in BLOCKS, "depth", self.depth, f"one of {depths}")
        require(self.channels in (1, 2), "channels", self.channels, "1 or 2")
        least = f"at least {_LEAST} voxels along each axis"
        require(min(self.cuboid_shape) >= _LEAST, "cuboid_shape", self.cuboid_shape, least)
        expected = " or ".join(NORMALISATIONS)
        known = self.normalisation in NORMALISATIONS
        require(known, "normalisation", repr(self.normalisation), expected)

    @property
    def bottleneck(self) -> bool:
        """Whether blocks have three convolutions, the wide ones of one voxel, instead of two."""
        return self.depth >= 50

    @property
    def planes(self) -> tuple[int, int, int, int, int]:
        """Planes along z after the stem's convolution and after each stage."""
        stem = (self.cuboid_shape[0] + 5) // 2
        first = stem // 2
        second = (first + 1) // 2
        third = (second + 1) // 2
        return stem, first, second, third, (third + 1) // 2

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ResNet3dConfig:
        """Read what `dataclasses.asdict` and JSON made of a config; what is missing is default.

        Raises
        ------
        TypeError
            If a key is unknown: what it asks for would be left out without a word.
        """
        lists: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**lists)


class PlaneNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy, arXiv:1502.03167) of each plane along z.

    As keras has it: the running variance is that of the batch itself, not an estimate from it. No
    subclass of torch's, so that nothing takes it for one over channels.

    Parameters
    ----------
    planes
        Number of planes of the input.
    """

    running_mean: Tensor
    running_var: Tensor

    MOMENTUM: ClassVar[float] = 0.01
    """Share of a new batch in the running statistics; keras tells the rest, 0.99."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(planes))
        self.bias = nn.Parameter(torch.zeros(planes))
        self.momentum = self.MOMENTUM
        self.register_buffer("running_mean", torch.zeros(planes))
        self.register_buffer("running_var", torch.ones(planes))

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        """Normalise by the batch's statistics in training, by the running ones otherwise."""
        mean, variance = self._batch(x) if self.training else (self.running_mean, self.running_var)
        scale = self.weight * (variance + EPSILON).rsqrt()
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None])

    def _batch(self, x: Float[Tensor, "b c z y x"]) -> tuple[Tensor, Tensor]:
        # in the statistics' precision, where convolutions may run in half of it
        exact = x.to(self.running_mean.dtype)
        variance, mean = torch.var_mean(exact, dim=(0, 1, 3, 4), correction=0)
        self.running_mean.lerp_(mean.detach(), self.momentum)
        self.running_var.lerp_(variance.detach(), self.momentum)
        return mean, variance


class ResidualBlock(nn.Module):
    """Two or three convolutions, added to the input.

    Parameters
    ----------
    channels
        Of the input.
    width
        Channels of the first convolutions; a bottleneck ends in four times as many.
    planes
        Planes of the output along z.
    stride
        Of the first convolution; in cellfinder's bottlenecks too, where others stride later.
    bottleneck
        Three convolutions instead of two.
    first
        The first of its stage, whose input has to be brought to the shape of the output.
    """

    def __init__(
        self, channels: int, width: int, planes: int, stride: int, bottleneck: bool, first: bool
    ) -> None:
        super().__init__()
        size = 1 if bottleneck else 3
        layers = [
            *(_convolution(channels, width, size, stride), PlaneNorm(planes), nn.ReLU()),
            *(_convolution(width, width, 3), PlaneNorm(planes)),
        ]
        if bottleneck:
            layers += [nn.ReLU(), _convolution(width, 4 * width, 1), PlaneNorm(planes)]
        self.branch = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity()
        if first:
            out = 4 * width if bottleneck else width
            shortcut = _convolution(channels, out, 1, stride)
            self.shortcut = nn.Sequential(shortcut, PlaneNorm(planes))

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b out Z Y X"]:
        """Add what the convolutions make of the input to it."""
        return (self.branch(x) + self.shortcut(x)).relu()  # type: ignore[no-any-return]


class ResNet3d(nn.Module):
    """Encoder from cuboids to a map of features, or to their mean.

    Input is what `config.normalisation` says, of the planes that the config says.

    Parameters
    ----------
    config
        The network; its weights come from torch's global generator.
    """

    def __init__(self, config: ResNet3dConfig) -> None:
        super().__init__()
        self.config = config
        planes = config.planes
        first = nn.Conv3d(config.channels, _WIDTH, (3, 7, 7), stride=2, padding=3, bias=False)
        nn.init.xavier_uniform_(first.weight)  # keras's default, unlike the blocks'
        pool = nn.MaxPool3d((2, 3, 3), stride=2)
        self.stem = nn.Sequential(first, PlaneNorm(planes[0]), nn.ReLU(), pool)
        self.stage1 = self._stage(0, _WIDTH)
        widening = 4 if config.bottleneck else 1
        self.stage2 = self._stage(1, _WIDTH * widening)
        self.stage3 = self._stage(2, 2 * _WIDTH * widening)
        self.stage4 = self._stage(3, 4 * _WIDTH * widening)

    def _stage(self, index: int, channels: int) -> nn.Sequential:
        config, width = self.config, _WIDTH << index
        blocks = []
        for i in range(BLOCKS[config.depth][index]):
            stride = 2 if index and not i else 1
            planes = config.planes[1 + index]
            block = ResidualBlock(channels, width, planes, stride, config.bottleneck, first=not i)
            blocks.append(block)
            channels = 4 * width if config.bottleneck else width
        return nn.Sequential(*blocks)

    @property
    def embedding_width(self) -> int:
        """Length of what `embed` returns."""
        return 8 * _WIDTH * (4 if self.config.bottleneck else 1)

    def stages(self) -> list[nn.Module]:
        """Group the layers from input to output: the stem and four stages, every weight in one."""
        return [self.stem, self.stage1, self.stage2, self.stage3, self.stage4]

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b feature Z Y X"]:
        """Encode cuboids; the map is 1 × 2 × 2 for the usual ones."""
        for stage in self.stages():
            x = stage(x)
        return x

    def embed(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b feature"]:
        """Encode cuboids and take the mean over the map, as cellfinder's last layer gets it."""
        return self(x).mean(dim=(2, 3, 4))  # type: ignore[no-any-return]


def _convolution(channels: int, out: int, size: int, stride: int = 1) -> nn.Conv3d:
    layer = nn.Conv3d(channels, out, size, stride, padding=size // 2, bias=False)
    # He et al. (arXiv:1502.01852), cut off at two deviations and widened by what that takes away
    deviation = sqrt(2 / (channels * size**3)) / 0.87962566103423978
    nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    return layer
