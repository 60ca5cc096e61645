"""What a 3D vision transformer is told, apart from the network: timm takes seconds to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cubeclf_core.axes import Shape3, Size3
from cubeclf_core.errors import InputError, require
from cubeclf_core.normalise import NORMALISATION

SIZES: dict[str, tuple[int, int, int]] = {  # width, depth, heads
    "nano": (96, 4, 3),
    "micro": (192, 6, 3),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
}
POSITIONS = ("sincos", "learned")


@dataclass(frozen=True, kw_only=True)
class Vit3dConfig:
    """Everything that is needed to build the network and to cut cuboids for it.

    Attributes
    ----------
    size
        One of `SIZES`.
    channels
        1 for signal alone, 2 for signal and background.
    cuboid_shape
        z y x, in voxels of `voxel_size_um`.
    voxel_size_um
        z y x; all data is resampled to it.
    patch_um
        z y x; a whole number of voxels, which divides the cuboid.
    positions
        One of `POSITIONS`: fixed sines and cosines, or trained from small random values.
    register_tokens
        Tokens without a place or an output, in which the network keeps what concerns the whole
        cuboid; without them a large network uses patches of empty tissue for it.
    layer_scale
        Where the trained gains of the blocks' branches start; no gains if None.
    projection
        Length of an embedding that a small network makes of the pooled tokens; 0 for these
        themselves. It is what objectives that compare views train, see `Vit3d.pool_tokens`.
    pooled_beside
        Whether an embedding has, after the projection, the pooled tokens that it is made of: what
        it was taught to leave out is there for a head that wants it.
    drop_path
        How often the last block's branches are left out in training, in [0, 1); the rate rises
        linearly from 0 at the first block. Drawn from torch's global generator.
    """

    size: str = "tiny"
    channels: int = 2
    cuboid_shape: Shape3 = (20, 50, 50)
    voxel_size_um: Size3 = (5.0, 1.0, 1.0)
    patch_um: Size3 = (20.0, 10.0, 10.0)
    positions: str = "sincos"
    register_tokens: int = 0
    layer_scale: float | None = None
    projection: int = 0
    pooled_beside: bool = False
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise InputError(f"no size {self.size!r}; expected one of {', '.join(SIZES)}")
        for length, patch, patch_um, voxel_um in zip(
            self.cuboid_shape, self.patch_shape, self.patch_um, self.voxel_size_um, strict=True
        ):
            if abs(patch * voxel_um - patch_um) > 1e-6 or length % patch:
                raise InputError(
                    f"a patch of {self.patch_um} µm is no whole number of voxels of "
                    f"{self.voxel_size_um} µm that divides a cuboid of {self.cuboid_shape} voxels"
                )
        expected = " or ".join(POSITIONS)
        require(self.positions in POSITIONS, "positions", repr(self.positions), expected)
        require(self.register_tokens >= 0, "register_tokens", self.register_tokens, "0 or more")
        gains = self.layer_scale is None or self.layer_scale > 0
        require(gains, "layer_scale", self.layer_scale, "a positive number, 1e-5 for instance")
        require(self.projection >= 0, "projection", self.projection, "0 or more")
        beside = not self.pooled_beside or self.projection > 0
        require(beside, "pooled_beside", "true", "a projection, or false: there is nothing beside")
        require(0 <= self.drop_path < 1, "drop_path", self.drop_path, "a number in [0, 1)")

    @property
    def embedding_width(self) -> int:
        """Length of an embedding."""
        pooled = 3 * SIZES[self.size][0]
        return self.projection + pooled * (self.pooled_beside or not self.projection)

    @property
    def normalisation(self) -> str:
        """What the network takes, always that of `cubeclf_core.normalise`."""
        return NORMALISATION

    @property
    def patch_shape(self) -> Shape3:
        """Patch in voxels, z y x."""
        z, y, x = (
            max(1, round(patch / voxel))
            for patch, voxel in zip(self.patch_um, self.voxel_size_um, strict=True)
        )
        return z, y, x

    @property
    def grid(self) -> Shape3:
        """Patches along z y x."""
        z, y, x = (n // patch for n, patch in zip(self.cuboid_shape, self.patch_shape, strict=True))
        return z, y, x

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Vit3dConfig:
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
