"""The settings of this package's commands; imports no torch, so that `--help` answers at once."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from cubeclf_core.errors import require

TRAITS = ("brightness", "blur", "artefacts", "noise", "stripes")

PROJECTION = 128
"""Length of an embedding, of networks that are pretrained."""


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """Write a simulated brain (two channels) with known cells and artefacts.

    OUT gets brain.ome.zarr (5×1×1 µm, signal and background), cells.xml (type 2 cell, type 1
    artefact or nothing) and preview.png.

    Parameters
    ----------
    out
        Folder to write.
    shape
        Voxels z y x, at least 20 50 50.
    cells
        Number of cells; about 1.7 times as many artefacts come with them.
    seed
        Which brain; the same seed gives the same bytes.
    overwrite
        Replace the folder if it exists.
    traits
        Factors of what is usual, of a brain unlike others: brightness of objects, blur, artefacts
        for each cell, noise, stripes; {blur: 2} for instance.
    """

    out: Path
    shape: tuple[int, int, int] = (96, 384, 384)
    cells: int = 400
    seed: int = 0
    overwrite: bool = False
    traits: Annotated[dict[str, float], Parameter(show=False)] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, factor in self.traits.items():
            require(name in TRAITS, "--traits", name, f"one of {', '.join(TRAITS)}")
            fits = math.isfinite(factor) and factor > 0
            require(fits, f"--traits.{name}", factor, "a number above 0")


@dataclass(frozen=True)
class ConvertConfig:
    """Turn TIFF planes, TIFF stacks or a zarr into one OME-Zarr with a pyramid, bit by bit.

    Example: cubeclf-convert brain/ch0 brain/ch1 --out brain.ome.zarr --voxel-size-um 5 2 2

    When interrupted, run the same command again: it goes on from there.

    Parameters
    ----------
    inputs
        Signal, then optionally background; each a folder of TIFF planes (in natural order: plane2
        before plane10), a TIFF stack, or a zarr, which may be a URL.
    out
        The OME-Zarr to write, such as brain.ome.zarr.
    voxel_size_um
        Size of a voxel along z, y and x, in µm; wins over what the inputs say.
    overwrite
        Replace an existing OME-Zarr, once the new one is complete.
    verify
        Read back and compare with the inputs, bit by bit, and each lower level with the means of
        the next finer. If the output exists, only this, without writing.
    memory_gb
        Memory to take at most, in GB. Planes larger than it holds in slabs are decoded repeatedly:
        more is faster then.
    shard
        Many small chunks to a file of some tens of MB, each with a checksum. Without: a file for
        each chunk of 64×128×128 voxels.
    ome_version
        0.5; or 0.4 for older programs, which has neither shards nor checksums.
    """

    inputs: tuple[str, ...]
    _: KW_ONLY
    out: Path
    voxel_size_um: tuple[float, float, float]
    overwrite: bool = False
    verify: bool = False
    memory_gb: float = 4.0
    shard: bool = True
    ome_version: Literal["0.4", "0.5"] = "0.5"


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How strong the augmentation of pretraining is; 0 switches a part of it off.

    Parameters
    ----------
    flip
        Flip and rotate by the symmetries of a cuboid.
    warp
        Share of the views that are warped; the others are plain copies, since resampling smooths
        noise.
    rotation_deg
        Of a warped view: the largest angle about z.
    scale
        Of a warped view: the most that any direction is stretched or sheared, as a share. Small,
        as size tells what a cell is.
    elastic_um
        Of a warped view: the largest displacement of a control point along each axis, in µm.
    gamma
        The intensity scale is bent by an exponent between e^-gamma and e^gamma.
    blur
        Share of the views that are blurred.
    blur_um
        The largest standard deviation of the blur in y and x, in µm; along z it is thrice that.
    stripes
        Share of the views with the stripes of a light sheet.
    noise
        Largest standard deviation of the photon and read noise, as a share of the channel's own.
    drop_background
        Share of the views that have to do with the signal alone.
    rescale
        Normalised channels are multiplied by a factor between e^-rescale and e^rescale, and
        shifted by up to rescale, in the units that the network sees.
    surroundings
        Share of the large views of SimCLR, DINO and DINOv2 that get the surroundings of another
        cuboid, so that what is compared is the object at the centre. They exchange in groups of
        four, or of two where a device's share of the batch is no multiple of four; never where it
        is odd.
    surroundings_um
        Least and largest radius around the centre that stays.
    """

    flip: bool = True
    warp: float = 0.2
    rotation_deg: float = 15.0
    scale: float = 0.1
    elastic_um: float = 2.0
    gamma: float = 0.05
    blur: float = 0.1
    blur_um: float = 1.0
    stripes: float = 0.1
    noise: float = 0.1
    drop_background: float = 0.2
    rescale: float = 0.6
    surroundings: float = 1.0
    surroundings_um: tuple[float, float] = (8.0, 18.0)

    def __post_init__(self) -> None:
        least, most_um = self.surroundings_um
        ordered = 0 < least <= most_um
        require(ordered, "augment.surroundings_um", self.surroundings_um, "two radii, in order")
        for name in ("warp", "blur", "stripes", "drop_background", "surroundings"):
            share = getattr(self, name)
            require(0 <= share <= 1, f"augment.{name}", share, "0 to 1")
        for name, most in (
            ("rotation_deg", 180),
            ("scale", 0.3),
            ("elastic_um", 10),
            ("gamma", 2),
            ("blur_um", 10),
            ("noise", 5),
            ("rescale", 2),
        ):
            value = getattr(self, name)
            require(0 <= value <= most, f"augment.{name}", value, f"0 to {most:g}")
