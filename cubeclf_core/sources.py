"""Channels as they lie on disk or in memory, each read as boxes of z y x voxels by any thread."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import zarr
from jaxtyping import Shaped

from cubeclf_core.axes import Shape3
from cubeclf_core.errors import VolumeError
from cubeclf_core.pyramid import CHUNKS

PLANE_CACHE_BYTES = 256 << 20  # decoded TIFF planes kept, per channel

# What zarr and tifffile raise on files that are broken or not theirs.
BROKEN = (ValueError, OSError, KeyError, TypeError, AttributeError, RuntimeError, IndexError)

Slices = tuple[slice, slice, slice]


@runtime_checkable
class Source(Protocol):
    """One channel: something with a shape z y x that gives an array for three slices."""

    @property
    def shape(self) -> Shape3:
        """Voxels, z y x."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """One of uint8, uint16 and float32, in the machine's byte order."""

    @property
    def chunks(self) -> Shape3:
        """Voxels that are decoded together, z y x."""

    def __getitem__(self, key: Slices) -> Shaped[np.ndarray, "z y x"]:
        """Read a box; safe from several threads."""


@dataclass(frozen=True)
class ArraySource:
    """A channel in memory, or in a memory-mapped file."""

    array: Shaped[np.ndarray, "z y x"]
    chunks: Shape3 = CHUNKS
    ndim: ClassVar[int] = 3  # dask asks for it

    @property
    def shape(self) -> Shape3:
        """Voxels, z y x."""
        z, y, x = self.array.shape
        return z, y, x

    @property
    def dtype(self) -> np.dtype[Any]:
        """In the machine's byte order, whatever the array's."""
        return self.array.dtype.newbyteorder("=")

    def __getitem__(self, key: Slices) -> Shaped[np.ndarray, "z y x"]:
        return np.asarray(self.array[key], self.dtype)


class ZarrSource:
    """One channel of a zarr array whose axes are any of t c z y x, in any order; t is 0."""

    ndim = 3

    def __init__(self, array: zarr.Array[Any], axes: str, channel: int, source: Path) -> None:
        self._array, self._axes, self._channel, self._source = array, axes, channel, source
        self.dtype = np.dtype(array.dtype).newbyteorder("=")
        self.shape = self._in_zyx(array.shape)
        self.chunks = self._in_zyx(array.chunks)

    def __getitem__(self, key: Slices) -> Shaped[np.ndarray, "z y x"]:
        wanted: dict[str, slice | int] = dict(zip("zyx", key, strict=True))
        wanted |= {"t": 0, "c": self._channel}
        try:
            box = np.asarray(self._array[tuple(wanted[axis] for axis in self._axes)], self.dtype)
        except BROKEN as error:
            raise VolumeError(
                f"{self._source}: a chunk within z y x {_spell(key)} cannot be decoded "
                f"({error}); write the file again or restore it"
            ) from error
        kept = [axis for axis in self._axes if axis in "zyx"]
        box = box.transpose([kept.index(axis) for axis in "zyx" if axis in kept])
        return box if "z" in kept else box[None][key[0]]

    def _in_zyx(self, sizes: Sequence[int]) -> Shape3:
        by_axis = dict(zip(self._axes, sizes, strict=True))
        return by_axis.get("z", 1), by_axis["y"], by_axis["x"]


class PlanesSource:
    """A channel that is decoded plane by plane, keeping the planes used last."""

    ndim = 3

    def __init__(
        self, shape: Shape3, dtype: np.dtype[Any], decode: Callable[[int], np.ndarray]
    ) -> None:
        self.shape = shape
        self.dtype = dtype.newbyteorder("=")
        self.chunks: Shape3 = (1, shape[1], shape[2])
        self._decode = decode
        plane_bytes = shape[1] * shape[2] * dtype.itemsize
        self._capacity = max(1, PLANE_CACHE_BYTES // plane_bytes)
        self._planes: OrderedDict[int, Future[np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, key: Slices) -> Shaped[np.ndarray, "z y x"]:
        wanted = range(*key[0].indices(self.shape[0]))
        height, width = (
            len(range(*s.indices(n))) for s, n in zip(key[1:], self.shape[1:], strict=True)
        )
        box = np.empty((len(wanted), height, width), self.dtype)
        for out, z in zip(box, wanted, strict=True):
            out[...] = self._plane(z)[key[1:]]
        return box

    def _plane(self, z: int) -> np.ndarray:
        """Decode a plane, or wait for the thread that is decoding it, or take it from the cache."""
        with self._lock:
            future = self._planes.get(z)
            mine = future is None
            if future is None:
                future = self._planes[z] = Future()
            self._planes.move_to_end(z)
            while len(self._planes) > self._capacity:
                self._planes.popitem(last=False)
        if mine:
            try:
                future.set_result(self._decode(z))
            except BaseException as error:
                with self._lock:
                    self._planes.pop(z, None)
                future.set_exception(error)
        return future.result()


def by(shape: Sequence[int]) -> str:
    """Spell a shape: 30 × 510 × 667."""
    return " × ".join(str(n) for n in shape)


def _spell(key: Slices) -> str:
    return ", ".join(f"{s.start}–{s.stop}" for s in key)
