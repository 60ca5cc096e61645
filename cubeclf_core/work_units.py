"""Large arrays in units of work: read in boxes that fit into memory, handled on all cores.

A unit is a shard, or a block of whole chunks where there are no shards, so that no two threads
write one file. Sources are read in parts, boxes of whole units as large as memory allows: the full
planes of a unit's depth or, where those do not fit, rows of them, and then each plane that does not
let itself be read in rows is decoded once for each part.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import zarr
from dask.base import compute
from dask.delayed import delayed
from dask.system import CPU_COUNT
from jaxtyping import Shaped

from cubeclf_core.axes import Shape3
from cubeclf_core.errors import InputError
from cubeclf_core.levels import Means
from cubeclf_core.sources import WINDOW, ArraySource, PlanesSource, Slices, Source, ZarrSource, by

if TYPE_CHECKING:
    from dask.array import Array as DaskArray

CHUNKS_A_UNIT = (1, 4, 4)  # where there are no shards
SUM_BYTES = 8  # of a voxel, while a mean is computed
PIECE_BYTES = 8 << 20  # of what one task reads

Voxels = Shaped[np.ndarray, "z y x"]


class Unit(NamedTuple):
    """What is written at once: its level, its channel and its place in the grid of units."""

    level: int
    channel: int
    z: int
    y: int
    x: int


Handle = Callable[[Unit, zarr.Array[Any], Slices, Voxels], None]


def count_units(arrays: Iterable[zarr.Array[Any]]) -> int:
    """Count the units of all levels and channels."""
    return sum(
        array.shape[0] * math.prod(map(ceil_div, array.shape[1:], unit_shape(array)))
        for array in arrays
    )


def volume_shape(array: zarr.Array[Any]) -> Shape3:
    """Voxels of a level: z y x."""
    _, z, y, x = array.shape
    return z, y, x


def unit_shape(array: zarr.Array[Any]) -> Shape3:
    """Voxels of a unit of a level: z y x."""
    if array.shards is not None:
        _, z, y, x = array.shards
    else:
        z, y, x = (c * n for c, n in zip(array.chunks[1:], CHUNKS_A_UNIT, strict=True))
    return z, y, x


def smaller(first: Sequence[int], second: Sequence[int]) -> Shape3:
    """Take the smaller of two sizes along each axis."""
    z, y, x = map(min, first, second)
    return z, y, x


def ceil_div(a: int, b: int) -> int:
    """Divide, rounding up."""
    return -(-a // b)


def each_unit(
    arrays: Sequence[zarr.Array[Any]],
    channels: Sequence[Source | DaskArray | Voxels],
    handle: Handle,
    *,
    memory_bytes: float,
    done: Collection[Unit] = (),
) -> None:
    """Call a function with each unit of all levels and the voxels that belong there.

    Level 0 gets the channels, each other level the means of the next finer *array*: so levels come
    in order, finest first. On all cores; of what memory holds at once, see `_Plan`.

    Parameters
    ----------
    arrays
        The levels, each c z y x.
    channels
        z y x each.
    handle
        Called in many threads with the unit, its array, its box z y x in it, and the voxels.
    memory_bytes
        To take at most, besides what the channels hold.
    done
        Units to leave out.

    Raises
    ------
    InputError
        If the memory does not suffice for one unit.
    """
    for (i, array), c in itertools.product(enumerate(arrays), range(len(channels))):
        shape, unit_size = volume_shape(array), unit_shape(array)
        source: Any = channels[c]
        if i > 0:
            finer = arrays[i - 1]
            source = Means(ZarrSource(finer, "czyx", c, str(finer.store_path)), shape)
        plan = _plan(source, unit_size, memory_bytes)
        for part in _tiles([slice(0, n) for n in shape], plan.part):
            boxes = {Unit(i, c, *map(_index, b, unit_size)): b for b in _tiles(part, unit_size)}
            todo = {unit: box for unit, box in boxes.items() if unit not in done}
            if todo:
                _read_and_handle(source, part, plan, array, todo, handle)


def _read_and_handle(
    source: Any,
    part: Slices,
    plan: _Plan,
    array: zarr.Array[Any],
    units: Mapping[Unit, Slices],
    handle: Handle,
) -> None:
    """Do one part; a function of its own, so that its voxels are gone before the next is read."""
    voxels = _read(source, part, plan)
    tasks = [
        partial(handle, unit, array, box, voxels[_within(part, box)]) for unit, box in units.items()
    ]
    _in_threads(plan.handlers, tasks)


@dataclass(frozen=True)
class _Plan:
    """What is done at once, so that a part and what all threads need fit into memory."""

    part: Shape3
    piece: Shape3
    readers: int
    handlers: int


def _plan(source: Any, unit: Shape3, memory_bytes: float) -> _Plan:
    shape, itemsize = source.shape, np.dtype(source.dtype).itemsize
    chunks = smaller(_chunks_of(source), shape)
    # A voxel of a coarse level takes several of the finer, and their sum.
    taken = itemsize
    if isinstance(source, Means):
        taken = itemsize * math.prod(source.step) + 2 * SUM_BYTES
    piece_bytes = min(PIECE_BYTES, memory_bytes / 16)
    piece = _grown(chunks, shape, int(piece_bytes / taken), axes=(2, 1, 0))
    of_reader = taken * (math.prod(chunks) + math.prod(piece))
    # Compressed, and joined to a shard: at worst each as large as the voxels.
    unit = smaller(unit, shape)
    of_unit = itemsize * math.prod(unit)
    of_handler = 2 * of_unit
    least = of_unit + max(of_reader, of_handler)
    if memory_bytes < least:
        raise InputError(
            f"--memory-gb leaves {max(0, memory_bytes) / 1e9:.2f} GB for voxels, but a unit of "
            f"work on {by(shape)} voxels in chunks or planes of {by(chunks)} takes "
            f"{least / 1e9:.2f}; raise it by {(least - memory_bytes) / 1e9 + 0.005:.2f}"
        )
    readers = min(CPU_COUNT, max(1, int(memory_bytes / 2 / of_reader)))
    handlers = min(CPU_COUNT, max(1, int(memory_bytes / 2 / of_handler)))
    left = memory_bytes - max(readers * of_reader, handlers * of_handler)
    # As deep as the source's chunks, which would be decoded again for each part; then whole rows.
    limits = (min(chunks[0], shape[0]), *shape[1:])
    part = _grown(unit, limits, int(left / itemsize), axes=(0, 2, 1))
    return _Plan(part, piece, readers, handlers)


def _chunks_of(source: Any) -> Shape3:
    """Voxels that are decoded together; rows where nothing is decoded."""
    mapped = isinstance(source, PlanesSource) and source.chunks == WINDOW
    if mapped or isinstance(source, ArraySource | np.ndarray):
        return 1, 1, source.shape[2]
    z, y, x = getattr(source, "chunksize", source.chunks)  # dask's chunks are all of them
    return z, y, x


def _grown(size: Shape3, limits: Sequence[int], n_voxels: int, axes: Sequence[int]) -> Shape3:
    """Repeat a box along some axes in turn, while it has at most so many voxels."""
    grown = list(size)
    for axis in axes:
        fits = n_voxels // math.prod(grown)
        grown[axis] *= max(1, min(fits, ceil_div(limits[axis], grown[axis])))
    z, y, x = grown
    return z, y, x


def _read(source: Any, part: Slices, plan: _Plan) -> Voxels:
    voxels = np.empty([s.stop - s.start for s in part], np.dtype(source.dtype).newbyteorder("="))

    def read(piece: Slices) -> None:
        voxels[_within(part, piece)] = source[piece]

    _in_threads(plan.readers, [partial(read, piece) for piece in _tiles(part, plan.piece)])
    return voxels


def _tiles(box: Sequence[slice], size: Shape3) -> Iterator[Slices]:
    """Cut a box along the grid of tiles that starts at the volume's origin."""
    edges = [
        [s.start, *range((s.start // n + 1) * n, s.stop, n), s.stop]
        for s, n in zip(box, size, strict=True)
    ]
    z, y, x = ([slice(a, b) for a, b in itertools.pairwise(e)] for e in edges)
    return itertools.product(z, y, x)


def _within(part: Slices, box: Slices) -> Slices:
    z, y, x = (slice(b.start - p.start, b.stop - p.start) for p, b in zip(part, box, strict=True))
    return z, y, x


def _index(box: slice, size: int) -> int:
    return int(box.start) // size


def _in_threads(n_threads: int, tasks: Sequence[Callable[[], None]]) -> None:
    """Run tasks with dask; after an error or Ctrl-C, those under way come to their end first."""
    with ThreadPoolExecutor(n_threads) as pool:
        lazy = [delayed(task, pure=False, traverse=False)() for task in tasks]
        compute(*lazy, scheduler="threads", pool=pool)
