"""Volumes: whatever a brain was saved as, seen as channels of z y x voxels of a known size.

Opened are OME-Zarr (0.4, 0.5), plain zarr arrays, folders of TIFF planes and TIFF stacks. Nothing
is read before it is asked for, and reading is safe from any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from jaxtyping import Shaped

from cubeclf_core.axes import Shape3, Size3
from cubeclf_core.errors import VolumeError, VoxelSizeMissing
from cubeclf_core.ome_zarr import Multiscale, parse_multiscale
from cubeclf_core.sources import BROKEN, ArraySource, Source, ZarrSource, by
from cubeclf_core.tiff import open_planes, open_stack

__all__ = [
    "ArraySource",
    "Source",
    "Volume",
    "check_match",
    "check_voxel_size",
    "open_volume",
    "stem",
]

DTYPES = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.float32))

_EXPECTED = "expected an OME-Zarr, a zarr array, a folder of TIFF planes or a TIFF stack"
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
    """

    name: str
    channels: tuple[Source, ...]
    voxel_size_um: Size3

    def __post_init__(self) -> None:
        assert self.channels
        assert all(c.shape == self.shape and c.dtype == self.dtype for c in self.channels)

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

    def read(
        self, start: Corner, stop: Corner, n_channels: int | None = None
    ) -> Shaped[np.ndarray, "c z y x"]:
        """Read a box of all channels, or of the first few.

        Parameters
        ----------
        start, stop
            Voxels z y x, ``0 <= start < stop <= shape``.
        n_channels
            How many channels; all by default.

        Returns
        -------
        numpy.ndarray
            Shape (c, z, y, x), of the volume's dtype; the caller's own copy.

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
        box = np.empty((count, *(s.stop - s.start for s in (z, y, x))), self.dtype)
        for out, channel in zip(box, self.channels, strict=False):
            out[...] = channel[z, y, x]
        if box.dtype.kind == "f" and not np.isfinite(box).all():
            c, *where = np.argwhere(~np.isfinite(box))[0]
            at = ", ".join(str(a + b.start) for a, b in zip(where, (z, y, x), strict=True))
            raise VolumeError(
                f"{self.name} holds a value that is not finite in channel {c} at z, y, x = {at}; "
                "replace such values before use"
            )
        return box


def open_volume(
    path: str | Path,
    *,
    background: str | Path | None = None,
    voxel_size_um: Sequence[float] | None = None,
    name: str | None = None,
) -> Volume:
    """Open a volume without reading its voxels.

    Parameters
    ----------
    path
        An OME-Zarr (0.4 or 0.5; its full resolution at t = 0; its first channel is the signal, the
        second, if any, the background), a plain zarr array (z y x or c z y x), a folder of TIFF
        planes in natural order, or a TIFF stack.
    background
        A second path of any of these kinds, of the same shape and dtype.
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
        If there is no volume, it is corrupt or of a kind that is not supported, or the background
        does not match it.
    VoxelSizeMissing
        If neither the file nor the caller says what a voxel measures.
    """
    path = Path(path)
    given = None if voxel_size_um is None else check_voxel_size(voxel_size_um, "--voxel-size-um")
    channels, in_file = _open_channels(path)
    for channel in channels:
        _check_channel(channel, path)
    if background is not None:
        second = _open_channels(Path(background))[0][0]
        check_match(channels[0], second, path, Path(background))
        channels = [channels[0], second]
    size = given or in_file
    if size is None:
        raise VoxelSizeMissing(
            f"{path} does not say what a voxel measures; give it as --voxel-size-um Z Y X, "
            "or as voxel_size_um in a brains file"
        )
    size = check_voxel_size(size, path)
    return Volume(stem(path) if name is None else name, tuple(channels[:2]), size)


def stem(path: Path) -> str:
    """Name of a volume's file without the suffixes of the kinds that can be opened.

    Examples
    --------
    >>> stem(Path("brains/mouse.1.ome.zarr"))
    'mouse.1'
    """
    name = path.name or path.resolve().name
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


def check_match(first: Source, second: Source, first_path: Path, second_path: Path) -> None:
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


def _open_channels(path: Path) -> tuple[list[Source], Size3 | None]:
    if not path.exists():
        raise VolumeError(f"{path} does not exist; {_EXPECTED}")
    if path.is_file():
        if path.suffix.lower() not in (".tif", ".tiff"):
            raise VolumeError(f"{path} is a file of another kind; {_EXPECTED}")
        stack, size = open_stack(path)
        return [stack], size
    if any((path / marker).exists() for marker in ("zarr.json", ".zgroup", ".zarray")):
        return _open_zarr(path)
    return [open_planes(path)], None


def _check_channel(channel: Source, path: Path) -> None:
    if channel.dtype not in DTYPES:
        raise VolumeError(f"{path} holds {channel.dtype}; expected uint8, uint16 or float32")
    if 0 in channel.shape:
        raise VolumeError(f"{path} holds no voxels: its shape is {by(channel.shape)}")


def _open_zarr(path: Path) -> tuple[list[Source], Size3 | None]:
    try:
        node = zarr.open(path, mode="r")
        scale = _plain(node) if isinstance(node, zarr.Array) else None
        scale = scale or parse_multiscale(dict(node.attrs), source=path)
    except VolumeError:
        raise
    except BROKEN as error:
        raise VolumeError(f"{path} looks like a zarr but cannot be opened: {error}") from error
    if isinstance(node, zarr.Array):
        if scale is None:
            raise VolumeError(
                f"{path} is a zarr array of {node.ndim} axes; expected z y x or c z y x"
            )
        array: object = node
    elif scale is None:
        raise VolumeError(
            f"{path} is a zarr group without OME-Zarr multiscales; name an array or an image in it"
        )
    else:
        try:
            array = node[scale.path]
        except BROKEN as error:
            raise VolumeError(f"{path} lacks its array {scale.path!r}: {error}") from error
    if not isinstance(array, zarr.Array) or array.ndim != len(scale.axes):
        raise VolumeError(f"{path}: {scale.path!r} is no array with the axes {scale.axes}")
    n_channels = array.shape[scale.axes.index("c")] if "c" in scale.axes else 1
    if n_channels == 0:
        raise VolumeError(f"{path} holds no channel")
    sources = [ZarrSource(array, scale.axes, c, path) for c in range(min(n_channels, 2))]
    return list(sources), scale.voxel_size_um


def _plain(array: zarr.Array[Any]) -> Multiscale | None:
    axes = {3: "zyx", 4: "czyx"}.get(array.ndim)
    return None if axes is None else Multiscale("", axes, None)
