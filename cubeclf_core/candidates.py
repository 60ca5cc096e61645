"""Cuboids around given positions: each chunk of the volume is decoded about once.

Which chunks every cuboid needs is known beforehand, so nothing is cached. Cells (a chunk, or a few
small ones) are decoded in raster order; each hands its voxels to all cuboids it has a part in, and
is forgotten. A cuboid waits only until its last cell has come by. So what is held are unfinished
cuboids, not chunks: little where candidates are sparse, whatever the shape of the chunks. Where it
would exceed the memory, the positions are split into bundles, one pass after another, and only what
lies at the border of two bundles is decoded again.

No position is dropped: what a cuboid lacks at the border of the volume is reflected.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise, product

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from cubeclf_core.axes import Shape3, Size3
from cubeclf_core.buffers import Buffers
from cubeclf_core.candidate_plan import Box, Decoded, Integers, Plan, Visit, reflect
from cubeclf_core.copying import copy_box
from cubeclf_core.geometry import source_shape, starts_around
from cubeclf_core.resample import resample
from cubeclf_core.volumes import Volume

_CELL = (64, 128, 128)  # voxels read in one call, where chunks are smaller: calls have a price
_MEMORY_BYTES = 1 << 30
_SPARE = 2  # batches' memory kept to be used again
_PLAN_BYTES = 300  # a candidate, measured

OnFault = Callable[[str], None]


@dataclass(frozen=True)
class CandidateCuboids:
    """Some of the candidates' cuboids.

    Attributes
    ----------
    index
        Shape (b,), which of the positions.
    cuboids
        Raw counts: float32 at the wanted voxel size, or of the volume's dtype and voxel size where
        that was asked for.
    padded
        Shape (b,), whether a part lay outside the volume and was reflected.
    unread
        Shape (b,), whether a part could not be read; it is zero then.
    """

    index: Integers
    cuboids: Shaped[Tensor, "b c z y x"]
    padded: npt.NDArray[np.bool_]
    unread: npt.NDArray[np.bool_]


def read_candidates(
    volume: Volume,
    positions: npt.NDArray[np.float64],
    *,
    shape: Shape3,
    voxel_size_um: Size3,
    n_channels: int,
    batch_size: int = 64,
    memory_bytes: int = _MEMORY_BYTES,
    threads: int | None = None,
    on_fault: OnFault | None = None,
) -> Iterator[CandidateCuboids]:
    """Read the cuboids around positions at a network's voxel size, in bounded memory.

    Parameters
    ----------
    volume
        Where to read.
    positions
        Shape (n, 3), z y x in voxels of the volume, inside it.
    shape
        Of the cuboids, z y x, in voxels of `voxel_size_um`.
    voxel_size_um
        z y x; the cuboids are resampled to it.
    n_channels
        Channels to read; no more than the volume has.
    batch_size
        At most so many cuboids at a time; fewer where so many would not fit the memory.
    memory_bytes
        Of unfinished cuboids and decoded chunks together. Less than two chunks, or than the cuboids
        around one place, it cannot be.
    threads
        That decode ahead; by default one a core. What is read does not depend on them, nor which
        cuboids come together.
    on_fault
        Takes the message where voxels cannot be read; those candidates that need them are flagged.
        Without it, that is an error.

    Returns
    -------
    iterator of CandidateCuboids
        In the order of reading; together every position once.

    Raises
    ------
    VolumeTooSmall
        If the volume is smaller than one cuboid.
    VolumeError
        If its voxels are far too coarse, or, while iterating and without `on_fault`, a chunk
        cannot be decoded.
    """
    parts = read_raw_candidates(
        volume,
        positions,
        shape=shape,
        voxel_size_um=voxel_size_um,
        n_channels=n_channels,
        batch_size=batch_size,
        memory_bytes=memory_bytes,
        threads=threads,
        on_fault=on_fault,
    )
    buffers = Buffers(1)
    return (replace(part, cuboids=_at_network(part.cuboids, shape, buffers)) for part in parts)


def read_raw_candidates(
    volume: Volume,
    positions: npt.NDArray[np.float64],
    *,
    shape: Shape3,
    voxel_size_um: Size3,
    n_channels: int,
    batch_size: int = 64,
    memory_bytes: int = _MEMORY_BYTES,
    threads: int | None = None,
    on_fault: OnFault | None = None,
) -> Iterator[CandidateCuboids]:
    """Read as `read_candidates` does, but in the volume's own dtype and voxel size.

    To convert to float32 costs about as much as to decode; this leaves it, and `resample`, to the
    device.
    """
    extent = source_shape(shape, voxel_size_um, volume)
    assert positions.ndim == 2
    assert positions.shape[1] == 3
    assert min(batch_size, memory_bytes) > 0
    if len(positions) == 0:
        return iter(())
    n_threads = threads or os.cpu_count() or 1
    cell = _cell_shape(volume, n_channels)
    voxel_bytes = n_channels * volume.dtype.itemsize
    # A cell exists twice while it is decoded: as the chunk, and as the box it is copied to.
    cell_bytes = 2 * voxel_bytes * int(np.minimum(cell, volume.shape).prod())
    ahead = min(2 * n_threads, max(1, memory_bytes // 4 // cell_bytes))
    # A quarter, however many threads there are: which cuboids come together depends on none.
    others = max(memory_bytes // 4, cell_bytes) + _PLAN_BYTES * len(positions)
    budget = max(memory_bytes // 4, memory_bytes - others)
    n_live = max(1, budget // (voxel_bytes * int(np.prod(extent))))
    plan = Plan(volume, starts_around(positions, extent), extent, cell, batch_size, n_live)
    return _gather(volume, plan, n_channels, n_threads, ahead, on_fault)


def read_all_candidates(
    volume: Volume,
    positions: npt.NDArray[np.float64],
    *,
    shape: Shape3,
    voxel_size_um: Size3,
    n_channels: int,
    memory_bytes: int = _MEMORY_BYTES,
    threads: int | None = None,
) -> CandidateCuboids:
    """Read the cuboids around positions into memory, in their order; see `read_candidates`."""
    cuboids = torch.empty(len(positions), n_channels, *shape)
    padded = np.empty(len(positions), np.bool_)
    for part in read_candidates(
        volume,
        positions,
        shape=shape,
        voxel_size_um=voxel_size_um,
        n_channels=n_channels,
        memory_bytes=memory_bytes,
        threads=threads,
    ):
        cuboids[torch.from_numpy(part.index)] = part.cuboids
        padded[part.index] = part.padded
    return CandidateCuboids(np.arange(len(positions)), cuboids, padded, np.zeros_like(padded))


def _at_network(
    cuboids: Shaped[Tensor, "b c z y x"], shape: Shape3, buffers: Buffers
) -> Float[Tensor, "b c z2 y2 x2"]:
    """Convert raw cuboids as `resample` does, in memory used again where that is all."""
    raw = cuboids.numpy()
    if raw.shape[2:] != shape:
        return resample(raw, shape)
    counts = buffers.take(raw.shape, np.dtype(np.float32))
    counts[...] = raw
    return torch.from_numpy(counts)


def _gather(
    volume: Volume,
    plan: Plan,
    n_channels: int,
    threads: int,
    ahead: int,
    on_fault: OnFault | None,
) -> Iterator[CandidateCuboids]:
    """Hand the voxels of each cell to its cuboids, and yield the batches that are complete."""
    n, size = len(plan.rank), plan.batch_size
    buffers = Buffers(_SPARE)
    batches: dict[int, Box] = {}
    missing: dict[int, int] = {}
    unread = np.zeros(n, bool)
    read = partial(Visit.read if on_fault is None else Visit.salvage, volume=volume, n=n_channels)
    with closing(_decoded(plan, read, threads, ahead)) as decoded:
        for visit, box, lost, fault in decoded:
            if fault is not None and on_fault is not None:
                on_fault(fault)
                unread[visit.who[lost]] = True
            starts, corner = plan.starts[visit.who], visit.corner
            parts = visit.low - starts, visit.low - corner, visit.high - visit.low
            for who, rank, completed, padded, to, at, part in zip(
                visit.who.tolist(),
                plan.rank[visit.who].tolist(),
                visit.completed.tolist(),
                plan.padded[visit.who].tolist(),
                *(places.tolist() for places in parts),
                strict=True,
            ):
                which, row = divmod(rank, size)
                if which not in batches:
                    missing[which] = min(size, n - which * size)
                    batch_shape = (missing[which], n_channels, *plan.extent)
                    batches[which] = buffers.take(batch_shape, volume.dtype)
                cuboid = batches[which][row]
                if padded:
                    _reflect_into(cuboid, box, plan.starts[who], corner, volume.shape)
                else:
                    copy_box(box, at, cuboid, to, part)
                missing[which] -= completed
                if missing[which] == 0:
                    index = plan.by_rank[which * size :][:size]
                    del cuboid, missing[which]
                    cuboids = torch.from_numpy(batches.pop(which))
                    yield CandidateCuboids(index, cuboids, plan.padded[index], unread[index])
                    del cuboids  # its memory is used again
            del box  # before the next is waited for
    assert not batches


def _decoded(
    plan: Plan, read: Callable[[Visit], Decoded], threads: int, ahead: int
) -> Generator[Decoded, None, None]:
    """Decode the cells of a plan, `ahead` of them before they are asked for."""
    visits = plan.visits()
    pending: deque[Future[Decoded]] = deque()
    pool = ThreadPoolExecutor(threads, "candidates")
    try:
        while True:
            for visit in islice(visits, ahead - len(pending)):
                pending.append(pool.submit(read, visit))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _cell_shape(volume: Volume, n_channels: int) -> Integers:
    """Choose what is read in one call: whole chunks, several where they are small."""
    chunks = np.array([channel.chunks for channel in volume.channels[:n_channels]])
    shape = np.array(volume.shape)
    cell: Integers = np.minimum(chunks.max(axis=0), shape)
    while cell.prod() < np.prod(_CELL) and (cell < shape).any():
        room = np.where(cell < shape, cell / np.array(_CELL), np.inf)
        cell[room.argmin()] *= 2
    return cell


def _reflect_into(cuboid: Box, box: Box, start: Integers, corner: Integers, shape: Shape3) -> None:
    """Write those voxels of a reflected cuboid that lie in a box of the volume at `corner`."""
    stretches = (
        _stretches(reflect(start[axis] + np.arange(n), shape[axis]) - corner[axis], size)
        for axis, (n, size) in enumerate(zip(cuboid.shape[1:], box.shape[1:], strict=True))
    )
    for z, y, x in product(*stretches):
        into, out_of = zip(z, y, x, strict=True)
        cuboid[:, *into] = box[:, *out_of]


def _stretches(index: Integers, size: int) -> list[tuple[slice, slice]]:
    """Split indices that run up and down into slices, where they are within `size`."""
    turns = np.flatnonzero(np.diff(index, 2)) + 2
    found = []
    for begin, end in pairwise([0, *turns.tolist(), len(index)]):
        inside = begin + np.flatnonzero((index[begin:end] >= 0) & (index[begin:end] < size))
        if len(inside):
            into = slice(int(inside[0]), int(inside[-1]) + 1)
            first, last = int(index[into][0]), int(index[into][-1])
            step = -1 if last < first else 1
            stop = last + step
            found.append((into, slice(first, stop if stop >= 0 else None, step)))
    return found
