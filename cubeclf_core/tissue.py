"""Where a brain's tissue is and how bright it is, seen on one small copy of the whole volume.

The copy is a low level of the pyramid, or means of a sample of planes where there is no pyramid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32
from scipy import ndimage

from cubeclf_core.axes import Size3
from cubeclf_core.console import progress, say
from cubeclf_core.errors import VolumeError
from cubeclf_core.levels import block_means
from cubeclf_core.volumes import Volume

LONGEST = 256  # voxels of an overview along any axis, at most
ENOUGH = 64  # voxels along the longest axis that a level needs, to show where tissue is
READ_WHOLE = 1 << 24  # voxels a channel up to which all are read, not a sample
PLANES = 32  # of a sample
ROWS = 1024  # of a plane, read at a time

SMALLEST_SHARE = 0.02  # of the voxels that bath and tissue both have, at least
VALLEY = 0.6  # its height over that of the lower of the two modes beside it, at most
DARKER = 3.0  # times: what is so much darker than tissue is a bath
EVEN = 0.05  # relative spread: what is so even is a camera's offset, however near to tissue


@dataclass(frozen=True)
class Overview:
    """A small copy of a whole volume.

    Attributes
    ----------
    voxels
        Shape (c, z, y, x), float32, in the volume's grey values.
    voxel_size_um
        z y x.
    scale
        Voxels of the volume in one of the overview, z y x: the volume's shape over the overview's.
    """

    voxels: Float32[np.ndarray, "c z y x"]
    voxel_size_um: Size3
    scale: Size3


@dataclass(frozen=True)
class Brightness:
    """One channel's grey values within the tissue of an overview."""

    median: float
    spread: float  # the interquartile range over 1.349: a normal distribution's standard deviation
    low: float  # 1st percentile
    high: float  # 99.9th percentile
    brightest: float


@dataclass(frozen=True)
class Statistics:
    """What normalisation needs to know of a brain; `dataclasses.asdict` gives plain numbers.

    Attributes
    ----------
    channels
        Signal, then background where there is one.
    tissue
        Share of the volume that is tissue.
    voxel_size_um
        Of the overview that this was computed from, z y x. A voxel of it is a mean of many, so
        single voxels of the volume vary more than this tells.
    """

    channels: tuple[Brightness, ...]
    tissue: float
    voxel_size_um: Size3


@dataclass(frozen=True)
class Survey:
    """What is known of a brain from its overview; small, unlike that.

    Attributes
    ----------
    mask
        Shape (z, y, x) of the overview, true where tissue is.
    scale
        Voxels of the volume in one of the mask, z y x.
    statistics
        Of the tissue.
    """

    mask: Bool[np.ndarray, "z y x"]
    scale: Size3
    statistics: Statistics


def survey(volume: Volume, n_channels: int) -> Survey:
    """Look a brain over once: where its tissue is, and how bright.

    Parameters
    ----------
    volume
        The brain.
    n_channels
        How many of its channels to look at.

    Raises
    ------
    VolumeError
        If no level of it can be read.
    """
    return examine(overview(volume, n_channels))


def examine(overview: Overview) -> Survey:
    """Find the tissue in an overview and describe it; for those who want to draw both."""
    mask = tissue_mask(overview)
    return Survey(mask, overview.scale, statistics(overview, mask))


def overview(volume: Volume, n_channels: int) -> Overview:
    """Make a small copy of a volume, from the coarsest level of its pyramid that shows enough.

    A level is read whole where that is cheap. Else 32 of its planes are, which takes minutes for a
    large brain without a pyramid; what cannot be read of them is taken to look like what is next
    to it. Where a level cannot be read, the next finer one is.

    Parameters
    ----------
    volume
        The brain.
    n_channels
        How many of its channels.

    Returns
    -------
    Overview
        At most 256 voxels along each axis.

    Raises
    ------
    VolumeError
        If no level can be read.
    """
    levels = [level for level in volume.levels if max(level.shape) >= ENOUGH] or [volume]
    damage: list[VolumeError] = []
    for level in reversed(levels):
        look = _whole if math.prod(level.shape) <= READ_WHOLE else _sample
        try:
            voxels = look(level, n_channels)
        except VolumeError as error:
            damage.append(error)
            continue
        z, y, x = np.divide(volume.shape, voxels.shape[1:]).tolist()
        size_z, size_y, size_x = np.multiply((z, y, x), volume.voxel_size_um).tolist()
        return Overview(voxels, (size_z, size_y, size_x), (z, y, x))
    raise damage[0]


def _step(n: int) -> int:
    """Give the smallest power of two, as chunks mostly are, that leaves at most 256 blocks."""
    return 1 << max(0, math.ceil(math.log2(n / LONGEST)))


def _whole(level: Volume, n_channels: int) -> Float32[np.ndarray, "c z y x"]:
    """Read all of a level as block means."""
    step = [_step(n) for n in level.shape]
    channels = level.read((0, 0, 0), level.shape, n_channels)
    return np.stack([block_means(channel, step) for channel in channels]).astype(np.float32)


def _sample(level: Volume, n_channels: int) -> Float32[np.ndarray, "c z y x"]:
    """Read evenly spaced planes of a level as block means, some rows at a time.

    Raises
    ------
    VolumeError
        If half of them cannot be read.
    """
    depth, height, width = level.shape
    n = min(PLANES, depth)
    planes = ((np.arange(n) + 0.5) * depth / n).astype(int).tolist()
    say(
        f"{level.name} has no small copy of itself: looking at {n} of its {depth} planes "
        "(cubeclf-convert writes a pyramid, which spares this)"
    )
    step = (1, _step(height), _step(width))
    rows = max(ROWS, step[1])
    shape = (n_channels, n, -(-height // step[1]), -(-width // step[2]))
    voxels = np.full(shape, np.nan, np.float32)
    damage: list[VolumeError] = []
    with progress(f"looking over {level.name}", n, unit="planes") as advance:
        for i, z in enumerate(planes):
            for y in range(0, height, rows):
                stop = min(y + rows, height)
                try:
                    box = level.read((z, y, 0), (z + 1, stop, width), n_channels)
                except VolumeError as error:
                    damage.append(error)
                    continue
                means = np.concatenate([block_means(channel, step) for channel in box])
                voxels[:, i, y // step[1] : -(-stop // step[1])] = means
            advance()
    lost = np.isnan(voxels[0])
    if lost.mean() >= 0.5:
        raise damage[0]
    if damage:
        where = ndimage.distance_transform_edt(lost, return_distances=False, return_indices=True)
        voxels = voxels[:, *where]
    return voxels


def tissue_mask(overview: Overview) -> Bool[np.ndarray, "z y x"]:
    """Find where tissue is.

    Outside are a constant that a stitched volume was filled up with, and a bath: the darkest mode
    of the grey values, if a valley parts it from brighter ones and it is much darker than these
    or as even as only a camera's offset is. A channel without either says nothing; where none
    says anything, all is tissue. What is tissue in one channel is tissue.

    Parameters
    ----------
    overview
        Of a whole volume, or of a part of one.

    Returns
    -------
    numpy.ndarray
        Without specks and holes, and a voxel larger than seen, so that the surface is inside.
        All true if no tissue is left.
    """
    tissue = np.zeros(overview.voxels.shape[1:], bool)
    for channel in overview.voxels:
        outside = _outside(channel)
        tissue |= ~outside if outside.any() else False
    return _clean(tissue)


def _outside(channel: Float32[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
    """Find what is outside of the tissue in one channel; nothing if there is no telling."""
    padding = _padding(channel)
    rest = ~padding
    grey = channel - min(float(channel.min()), 0.0)
    # A share of the mean keeps a bath of nearly zero from falling apart into single grey values.
    floor = 0.05 * float(grey[rest].mean(dtype=np.float64)) + 1e-30
    log = np.where(rest, np.log(grey + floor), np.float32(0))
    weight = ndimage.gaussian_filter(rest.astype(np.float32), 1.0)  # padding does not smear
    log = ndimage.gaussian_filter(log, 1.0) / np.maximum(weight, np.float32(1e-3))
    threshold = _valley(log[rest])
    return padding if threshold is None else padding | (log < threshold)


def _padding(channel: Float32[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
    """Find where a volume was filled up with a constant: the one value that has no noise at all."""
    flat = ndimage.maximum_filter(channel, 3) == ndimage.minimum_filter(channel, 3)
    values, counts = np.unique(channel[flat], return_counts=True)
    if counts.sum() < SMALLEST_SHARE * channel.size or counts.max() < 0.9 * counts.sum():
        return np.zeros(channel.shape, bool)
    padding = flat & (channel == values[counts.argmax()])
    padding = ndimage.binary_dilation(padding, np.ones((3, 3, 3), bool))  # to its own border
    return padding if not padding.all() else np.zeros(channel.shape, bool)


def _valley(log: Float32[np.ndarray, " n"]) -> float | None:
    """Find the valley between a bath and tissue in the histogram of logarithmic grey values."""
    low, high = np.quantile(log, (0.001, 0.999))
    if not low < high:
        return None
    counts, edges = np.histogram(log, 256, (low, high))
    height = ndimage.gaussian_filter1d(counts.astype(float), 3.0, mode="nearest")
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts) / counts.sum()
    for i in range(1, len(height) - 1):  # from the dark: two kinds of tissue may have a valley too
        if not height[i - 1] > height[i] <= height[i + 1]:
            continue
        bath, tissue = int(height[:i].argmax()), i + int(height[i:].argmax())
        share = min(below[i], 1 - below[i])
        if share < SMALLEST_SHARE or height[i] > VALLEY * min(height[bath], height[tissue]):
            continue
        quarter, three_quarters = np.quantile(log[log < centres[i]], (0.25, 0.75))
        is_even = (three_quarters - quarter) / 1.349 < EVEN
        if is_even or centres[tissue] - centres[bath] > math.log(DARKER):
            return float(centres[i])
    return None


def _clean(tissue: Bool[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
    """Drop specks, fill holes and keep the surface; all true if nothing is left."""
    parts, n = ndimage.label(tissue)
    if n == 0:
        return np.ones_like(tissue)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    tissue = (sizes >= 0.01 * sizes.max())[parts]
    tissue = ndimage.binary_fill_holes(tissue)
    return np.asarray(ndimage.binary_dilation(tissue, np.ones((3, 3, 3), bool)))


def statistics(overview: Overview, mask: Bool[np.ndarray, "z y x"]) -> Statistics:
    """Describe the brightness of the tissue.

    Parameters
    ----------
    overview
        Of the brain.
    mask
        Its tissue, at least one voxel.
    """
    channels = []
    for channel in overview.voxels:
        grey = channel[mask]
        low, quarter, median, three_quarters, high = np.percentile(
            grey.astype(np.float64), (1, 25, 50, 75, 99.9)
        ).tolist()
        spread = (three_quarters - quarter) / 1.349
        channels.append(Brightness(median, spread, low, high, float(grey.max())))
    return Statistics(tuple(channels), float(mask.mean()), overview.voxel_size_um)
