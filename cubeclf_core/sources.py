"""Channels as they lie on disk or in memory, each read as boxes of z y x voxels by any thread."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import zarr
from jaxtyping import Shaped
from zarr.buffer.cpu import NDBuffer
from zarr.storage import LocalStore

from cubeclf_core.axes import Shape3
from cubeclf_core.direct import DirectReader
from cubeclf_core.errors import VolumeError
from cubeclf_core.locations import Location

WINDOW: Shape3 = (64, 128, 128)  # voxels to read together of what is in memory or mapped

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


def read_into(source: Source, key: Slices, out: Shaped[np.ndarray, "z y x"]) -> None:
    """Read a box of a channel into an array, sparing a copy where the channel can."""
    if isinstance(source, ZarrSource):
        source.read_into(key, out)
    else:
        out[...] = source[key]


@dataclass(frozen=True)
class ArraySource:
    """A channel in memory, or in a memory-mapped file."""

    array: Shaped[np.ndarray, "z y x"]
    chunks: Shape3 = WINDOW
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

    def __init__(self, array: zarr.Array[Any], axes: str, channel: int, where: Location) -> None:
        self._array, self._axes, self._channel, self._where = array, axes, channel, where
        self._local = isinstance(array.store, LocalStore)
        self._direct = DirectReader(array) if DirectReader.supports(array) else None
        self.dtype = np.dtype(array.dtype).newbyteorder("=")
        self.shape = self._in_zyx(array.shape)
        self.chunks = self._in_zyx(array.chunks)  # the inner ones of a sharded array

    def __getitem__(self, key: Slices) -> Shaped[np.ndarray, "z y x"]:
        sizes = (len(range(*s.indices(n))) for s, n in zip(key, self.shape, strict=True))
        box = np.empty(tuple(sizes), self.dtype)
        self.read_into(key, box)
        return box

    def read_into(self, key: Slices, out: Shaped[np.ndarray, "z y x"]) -> None:
        """Read a box into an array of its shape.

        Raises
        ------
        VolumeError
            If a chunk cannot be fetched or decoded.
        """
        if out.size == 0:
            return
        c = self._channel
        wanted = {"t": slice(0, 1), "c": slice(c, c + 1), **dict(zip("zyx", key, strict=True))}
        selection = tuple(wanted[axis] for axis in self._axes)
        stored = self._as_stored(out)
        buffer = NDBuffer.from_numpy_array(stored)
        try:
            if self._direct is not None:
                self._direct.read_into(selection, stored)
            elif self._local and _beside_others():
                reading = self._array.async_array.get_orthogonal_selection(selection, out=buffer)
                _run_here(reading)
            else:
                self._array.get_orthogonal_selection(selection, out=buffer)
        except MemoryError:
            raise
        except Exception as error:  # codecs and remote stores raise what they like
            raise VolumeError(
                f"{self._where}: a chunk within z y x {_spell(key)} cannot be decoded "
                f"({one_line(error)}); write the file again or restore it"
            ) from error

    def _as_stored(self, box: Shaped[np.ndarray, "z y x"]) -> np.ndarray:
        """See a box with the array's axes in the array's order."""
        order = [axis for axis in "tczyx" if axis in self._axes]
        there = tuple(slice(None) if axis in order else 0 for axis in "tczyx")
        return box[None, None][there].transpose([order.index(axis) for axis in self._axes])

    def _in_zyx(self, sizes: Sequence[int]) -> Shape3:
        by_axis = dict(zip(self._axes, sizes, strict=True))
        return by_axis.get("z", 1), by_axis["y"], by_axis["x"]


def _beside_others() -> bool:
    """Tell whether this is a thread among others that may run an event loop of its own."""
    here = threading.current_thread() is not threading.main_thread()
    return here and asyncio._get_running_loop() is None


def _run_here(reading: Coroutine[Any, Any, object]) -> None:
    """Run what reads from this machine's disk wholly in the calling thread.

    Zarr hands every chunk to a pool of its own, and all copying to a single thread. Threads that
    read side by side need neither, and handing over takes half a millisecond of CPU time a chunk,
    where decoding 2 MB takes two.
    """
    with asyncio.Runner(loop_factory=_InlineLoop) as runner:  # ends what an error left pending
        runner.run(reading)


class _InlineLoop(asyncio.SelectorEventLoop):
    """An event loop that does at once what it is asked to have done in another thread."""

    def run_in_executor(  # type: ignore[override]  # the same, less general in its types
        self, executor: object, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class PlanesSource:
    """A channel that is decoded plane by plane, keeping the planes used last.

    Parameters
    ----------
    shape
        z y x.
    dtype
        Of the channel.
    decode
        Gives a plane, in any byte order.
    mapped
        Say that planes are mapped from their files, so that parts of them cost as little as they
        hold; nothing is kept then.
    """

    ndim = 3

    def __init__(
        self,
        shape: Shape3,
        dtype: np.dtype[Any],
        decode: Callable[[int], np.ndarray],
        *,
        mapped: bool = False,
    ) -> None:
        self.shape = shape
        self.dtype = dtype.newbyteorder("=")
        self.chunks: Shape3 = WINDOW if mapped else (1, shape[1], shape[2])
        self._mapped = mapped
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
        if self._mapped:
            return self._decode(z)
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


def one_line(error: BaseException) -> str:
    """Spell what an error of another library says, without the lines that it may break into."""
    return " ".join(str(error).split()) or type(error).__name__


def kept_bytes(channel: Source) -> int:
    """Count what a channel keeps of decoded planes, at most."""
    if not isinstance(channel, PlanesSource) or channel.chunks == WINDOW:
        return 0
    depth, height, width = channel.shape
    plane = height * width * channel.dtype.itemsize
    return min(depth * plane, max(PLANE_CACHE_BYTES, plane))


def by(shape: Sequence[int]) -> str:
    """Spell a shape: 30 × 510 × 667."""
    return " × ".join(str(n) for n in shape)


def _spell(key: Slices) -> str:
    return ", ".join(f"{s.start}–{s.stop}" for s in key)
