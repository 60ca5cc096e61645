"""Volumes: whatever a brain was saved as, seen as channels of z y x voxels of a known size.

Opened are OME-Zarr (0.4, 0.5) with its pyramid, plain zarr arrays, folders of TIFF planes and TIFF
stacks; zarr also by URL. Nothing is read before it is asked for, and reading is safe from any
number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Shaped

from cubeclf_core.axes import Shape3, Size3
from cubeclf_core.errors import VolumeError, VoxelSizeMissing
from cubeclf_core.locations import Location, last_part, locate
from cubeclf_core.sources import ArraySource, Source, by, read_into
from cubeclf_core.stored import Level, Stored, open_stored

__all__ = [
    "ArraySource",
    "Source",
    "Volume",
    "check_match",
    "check_voxel_size",
    "open_volume",
    "stem",
]

_SUFFIXES = (".ome.zarr", ".zarr", ".ome.tiff", ".ome.tif", ".tiff", ".tif")


Corner = Sequence[int] | npt.NDArray[np.int64]


@dataclass(frozen=True)
class Volume:
    """A brain, or a part of one, that can be read anywhere.

    Attributes
    ----------
    name
        What to call it.
    channels
        The signal, then the background where there is one; of one shape and dtype.
    voxel_size_um
        z y x.
    coarser
        Lower levels of its pyramid, finest first, each of the same channels; none of them has
        lower levels of its own.
    """

    name: str
    channels: tuple[Source, ...]
    voxel_size_um: Size3
    coarser: tuple[Volume, ...] = ()

    def __post_init__(self) -> None:
        assert self.channels
        assert all(c.shape == self.shape and c.dtype == self.dtype for c in self.channels)
        for level in self.coarser:
            assert not level.coarser
            assert (level.n_channels, level.dtype) == (self.n_channels, self.dtype)

    @property
    def shape(self) -> Shape3:
        """Voxels, z y x."""
        return self.channels[0].shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8, uint16 or float32."""
        return self.channels[0].dtype

    @property
    def chunk_shape(self) -> Shape3:
        """Voxels of the signal that are decoded together, z y x; never more than the shape."""
        z, y, x = (min(c, n) for c, n in zip(self.channels[0].chunks, self.shape, strict=True))
        return z, y, x

    @property
    def n_channels(self) -> int:
        """1, or 2 with a background."""
        return len(self.channels)

    @property
    def levels(self) -> tuple[Volume, ...]:
        """The volume and its lower levels, finest first, each on its own."""
        return (replace(self, coarser=()) if self.coarser else self, *self.coarser)

    def nearest(self, voxel_size_um: Sequence[float]) -> Volume:
        """Choose the level whose voxels are nearest in size to those that are wanted.

        Parameters
        ----------
        voxel_size_um
            z y x.

        Returns
        -------
        Volume
            The one with the smallest sum over axes of the absolute log ratio of the sizes; of two
            that are equally near, the finer.

        Examples
        --------
        >>> source = ArraySource(np.zeros((8, 8, 8), np.uint8))
        >>> half = Volume("half", (ArraySource(np.zeros((8, 4, 4), np.uint8)),), (5, 2, 2))
        >>> Volume("whole", (source,), (5, 1, 1), (half,)).nearest((5, 1.8, 1.8)).name
        'half'
        """

        def distance(level: Volume) -> float:
            sizes = zip(level.voxel_size_um, voxel_size_um, strict=True)
            # Rounded: two levels of which one is as much too fine as the other is too coarse tie.
            return round(sum(abs(math.log(have / wanted)) for have, wanted in sizes), 9)

        return min(self.levels, key=distance)

    def read(
        self,
        start: Corner,
        stop: Corner,
        n_channels: int | None = None,
        out: Shaped[np.ndarray, "c z y x"] | None = None,
        *,
        finite: bool = True,
    ) -> Shaped[np.ndarray, "c z y x"]:
        """Read a box of all channels, or of the first few.

        Parameters
        ----------
        start, stop
            Voxels z y x, ``0 <= start < stop <= shape``.
        n_channels
            How many channels; all by default.
        out
            What to fill, of the result's shape and dtype; its voxels may lie apart in memory.
        finite
            Whether values that are not finite are an error; or else they are given.

        Returns
        -------
        numpy.ndarray
            Shape (c, z, y, x), of the volume's dtype; `out`, or else the caller's own copy.

        Raises
        ------
        VolumeError
            If the data there is corrupt or not finite.
        """
        assert len(start) == len(stop) == 3
        assert all(0 <= a < b <= n for a, b, n in zip(start, stop, self.shape, strict=True))
        count = self.n_channels if n_channels is None else n_channels
        assert 0 < count <= self.n_channels
        z, y, x = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
        shape = (count, *(s.stop - s.start for s in (z, y, x)))
        box = np.empty(shape, self.dtype) if out is None else out
        assert (box.shape, box.dtype) == (shape, self.dtype)
        for channel, part in zip(self.channels, box, strict=False):
            read_into(channel, (z, y, x), part)
        if finite and box.dtype.kind == "f" and not np.isfinite(box).all():
            c, *where = np.argwhere(~np.isfinite(box))[0]
            at = ", ".join(str(a + b.start) for a, b in zip(where, (z, y, x), strict=True))
            raise VolumeError(
                f"{self.name} holds a value that is not finite in channel {c} at z, y, x = {at}; "
                "replace such values before use"
            )
        return box


def open_volume(
    path: Location,
    *,
    background: Location | None = None,
    channels: Sequence[int] | None = None,
    voxel_size_um: Sequence[float] | None = None,
    name: str | None = None,
) -> Volume:
    """Open a volume without reading its voxels.

    Parameters
    ----------
    path
        An OME-Zarr (0.4 or 0.5, at t = 0, with the levels of its pyramid that can be read), a
        plain zarr array (z y x or c z y x), a folder of TIFF planes in natural order, or a TIFF
        stack. A zarr may also be given by its URL.
    background
        A second location of any of these kinds, of the same shape and dtype and of one channel.
    channels
        Which of the channels in `path`, counted from 0, are the signal and, perhaps, the
        background. By default the only one or, without `background`, both of two.
    voxel_size_um
        z y x; wins over what the file says. Needed where the file does not say.
    name
        By default the file's name without its suffixes.

    Returns
    -------
    Volume
        One or two channels.

    Raises
    ------
    VolumeError
        If there is no volume, it is corrupt or of a kind that is not supported, its channels must
        be chosen, or the background does not match it.
    VoxelSizeMissing
        If neither the file nor the caller says what a voxel measures.
    """
    path = locate(path)
    given = None if voxel_size_um is None else check_voxel_size(voxel_size_um, "--voxel-size-um")
    stored = open_stored(path)
    wanted = _choose(channels, stored, 2 if background is None else 1, path)
    levels = [
        Level(tuple(level.channels[c] for c in wanted), level.step) for level in stored.levels
    ]
    if background is not None:
        levels = _with_background(levels, path, locate(background))
    size = given or stored.voxel_size_um
    if size is None:
        raise VoxelSizeMissing(
            f"{path} does not say what a voxel measures; give it as --voxel-size-um Z Y X, "
            "or as voxel_size_um in a brains file"
        )
    size = check_voxel_size(size, path)
    name = stem(path) if name is None else name
    coarser = tuple(Volume(name, level.channels, level.scaled(size)) for level in levels[1:])
    return Volume(name, levels[0].channels, size, coarser)


def stem(path: Location) -> str:
    """Name of a volume's file without the suffixes of the kinds that can be opened.

    Examples
    --------
    >>> stem("brains/mouse.1.ome.zarr")
    'mouse.1'
    """
    name = last_part(path)
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def check_voxel_size(size_um: Sequence[float], source: object) -> Size3:
    """Check that a voxel size is three finite numbers above 0.

    Raises
    ------
    VolumeError
        If it is not.
    """
    if len(size_um) != 3 or not all(math.isfinite(s) and s > 0 for s in size_um):
        numbers = " ".join(f"{s:g}" for s in size_um)
        raise VolumeError(
            f"{source}: the voxel size is {numbers}; expected z y x in µm, each above 0"
        )
    z, y, x = (float(s) for s in size_um)
    return z, y, x


def check_match(first: Source, second: Source, first_path: Location, second_path: Location) -> None:
    """Check that two channels have one shape and one dtype.

    Raises
    ------
    VolumeError
        If they have not.
    """
    if first.shape != second.shape or first.dtype != second.dtype:
        raise VolumeError(
            f"{first_path} is {first.dtype} of shape {by(first.shape)}, but {second_path} is "
            f"{second.dtype} of shape {by(second.shape)}; channels must agree in both"
        )


def _choose(
    channels: Sequence[int] | None, stored: Stored, at_most: int, where: Location
) -> Sequence[int]:
    n = len(stored.levels[0].channels)
    if channels is None and n > at_most:
        which = "is the signal" if at_most == 1 else "are the signal and, if any, the background"
        raise VolumeError(
            f"{where} holds {n} channels; say which {which}, by number from 0, "
            f"as channels: {list(range(at_most))} in a brains file"
        )
    chosen = range(n) if channels is None else channels
    if not 0 < len(set(chosen)) == len(chosen) <= at_most or not set(chosen) <= set(range(n)):
        expected = "one number" if at_most == 1 else "one or two different numbers"
        raise VolumeError(
            f"{where}: channels is {list(chosen)}; expected {expected} from 0 to {n - 1}"
        )
    return chosen


def _with_background(levels: list[Level], where: Location, background: Location) -> list[Level]:
    """Add the channel of a second store to the levels of which it has one of the same shape."""
    beside = open_stored(background).levels
    if (n := len(beside[0].channels)) > 1:
        raise VolumeError(f"{background} holds {n} channels; expected the background alone")
    check_match(levels[0].channels[0], beside[0].channels[0], where, background)
    by_shape = {level.channels[0].shape: level.channels for level in reversed(beside)}
    pairs = ((level, by_shape.get(level.channels[0].shape)) for level in levels)
    return [Level(level.channels + other, level.step) for level, other in pairs if other]
