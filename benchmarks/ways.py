"""Cuboids read one by one, with the libraries that read zarr."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array
import numcodecs
import numpy as np
import numpy.typing as npt
import zarr
from zarr.storage import LocalStore

from benchmarks.meter import Rate, metered
from benchmarks.streams import CUBOID
from cubeclf_core.axes import Shape3
from cubeclf_core.errors import InputError
from cubeclf_core.ome_zarr import parse_multiscale

Ints = npt.NDArray[np.int64]
Cut = Callable[[Ints], npt.NDArray[Any]]


@dataclass(frozen=True)
class Stored:
    """The array of a zarr's finest level as the libraries see it.

    Attributes
    ----------
    array
        Of zarr-python.
    axes
        Such as "czyx".
    channels
        Which are read: the first one or two.
    shape
        z y x.
    """

    array: zarr.Array[Any]
    axes: str
    channels: int

    @property
    def shape(self) -> Shape3:
        """Voxels, z y x."""
        z, y, x = (self.array.shape[self.axes.index(axis)] for axis in "zyx")
        return z, y, x

    def box(self, start: Ints, extent: Shape3) -> tuple[slice, ...]:
        """Slices of all channels of a box."""
        at = zip("zyx", start.tolist(), extent, strict=True)
        box = {axis: slice(a, a + n) for axis, a, n in at}
        box |= {"c": slice(0, self.channels), "t": slice(0, 1)}
        return tuple(box[axis] for axis in self.axes)


def open_array(path: Path, channels: int) -> Stored:
    """Open what the other libraries are to read.

    Raises
    ------
    InputError
        If it is not a zarr on this machine.
    """
    if not any((path / marker).exists() for marker in ("zarr.json", ".zgroup", ".zarray")):
        raise InputError(
            f"{path} is no zarr on this machine; the benchmark compares ways to read one"
        )
    node = zarr.open(path, mode="r")
    image = parse_multiscale(dict(node.attrs), source=path)
    if isinstance(node, zarr.Array):
        return Stored(node, "czyx"[-node.ndim :] if image is None else image.axes, channels)
    assert image is not None  # or open_volume would have refused it
    array = node[image.datasets[0].path]
    assert isinstance(array, zarr.Array)
    return Stored(array, image.axes, channels)


def one_by_one(stored: Stored, threads: int) -> dict[str, Cut]:
    """Ways to read a single cuboid, by the name of the library."""
    # Of zarr's own threads; blosc would use more, and they do not pay.
    zarr.config.set({"threading.max_workers": threads, "async.concurrency": threads})
    numcodecs.blosc.use_threads = False
    array = stored.array
    lazy = dask.array.from_zarr(array)

    def by_zarr(start: Ints) -> npt.NDArray[Any]:
        return np.asarray(array[stored.box(start, CUBOID)])

    def by_dask(start: Ints) -> npt.NDArray[Any]:
        cuboid = lazy[stored.box(start, CUBOID)]
        return np.asarray(cuboid.compute(scheduler="threads", num_workers=threads))

    ways: dict[str, Cut] = {"zarr": by_zarr, "dask": by_dask}
    if importlib.util.find_spec("tensorstore"):
        tensors = _open_tensorstore(array, threads)

        def by_tensorstore(start: Ints) -> npt.NDArray[Any]:
            return np.asarray(tensors[stored.box(start, CUBOID)].read().result())

        ways["tensorstore"] = by_tensorstore
    return ways


def _open_tensorstore(array: zarr.Array[Any], threads: int) -> Any:
    import tensorstore

    assert isinstance(array.store, LocalStore)
    spec = {
        "driver": "zarr3" if array.metadata.zarr_format == 3 else "zarr",
        "kvstore": {"driver": "file", "path": str(array.store.root / array.path)},
        "context": {
            "cache_pool": {"total_bytes_limit": 0},
            "data_copy_concurrency": {"limit": threads},
            "file_io_concurrency": {"limit": threads},
        },
    }
    return tensorstore.open(spec, read=True).result()


class OneByOne:
    """Cuboids at places one after the other, each on its own.

    Parameters
    ----------
    cut
        Reads one at an origin.
    origins
        Shape (n, 3), z y x; begun anew when they are used up.
    """

    def __init__(self, cut: Cut, origins: Ints) -> None:
        self._cut, self._origins, self._next = cut, origins, 0
        cut(origins[-1])  # what a library imports or starts at its first call is not counted

    def measure(self, seconds: float) -> Rate:
        """Read for about so many seconds of processor time."""
        n = 0
        with metered() as cost:
            end = time.process_time() + seconds
            while n == 0 or time.process_time() < end:
                self._cut(self._origins[self._next % len(self._origins)])
                self._next += 1
                n += 1
        return Rate(n / cost.cpu, n / cost.wall)
