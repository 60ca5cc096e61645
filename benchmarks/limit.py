"""What the stream could reach at best: decoding its regions and copying its cuboids, no more."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.meter import metered
from benchmarks.streams import BATCH, CUBOID, Box
from cubeclf_core.copying import gather_boxes
from cubeclf_core.volumes import Volume

_POOL_BYTES = 1 << 30  # far more than any cache holds
_BATCHES = 3  # written in turn, as those of a stream are

Voxels = npt.NDArray[Any]


class Limit:
    """Decoding and gathering, each measured alone.

    Parameters
    ----------
    volume
        To read.
    threads
        That decode.
    pool_bytes
        Of regions.
    """

    def __init__(self, volume: Volume, threads: int, pool_bytes: int = _POOL_BYTES) -> None:
        self._volume, self._threads = volume, threads
        self._readers = ThreadPoolExecutor(threads)
        self._random = np.random.default_rng(0)
        # Filled, since the kernel gives memory only when it is written.
        self._pool = np.full(pool_bytes // volume.dtype.itemsize, 1, volume.dtype)
        shape = (_BATCHES + threads, BATCH, volume.n_channels, *CUBOID)
        self._batches = itertools.cycle(np.full(shape, 1, volume.dtype))

    def measure(self, reads: Sequence[Box], draws: int, seconds: float) -> tuple[float, float]:
        """Decode the very regions that a stream has read, and gather cuboids of a pool of them.

        Parameters
        ----------
        reads
            First voxel of each region and the one after its last.
        draws
            Cuboids that the stream drew meanwhile.
        seconds
            Of processor time to gather for, at least.

        Returns
        -------
        float, float
            Seconds of processor time a cuboid, of decoding and of gathering.
        """
        with metered() as decoding:
            list(self._readers.map(self._decode, reads, self._laid_out(reads)))
        regions = self._regions(reads)
        n = 0
        with metered() as gathering:
            end = time.process_time() + seconds
            # On all threads at once: in a stream, no core idles while one gathers.
            while n == 0 or time.process_time() < end:
                batches = [next(self._batches) for _ in range(self._threads)]
                list(self._readers.map(self._gather, itertools.repeat(regions), batches))
                n += BATCH * self._threads
        return decoding.cpu / draws, gathering.cpu / n

    def _laid_out(self, reads: Iterable[Box]) -> Iterator[Voxels]:
        """Give a region of the size of each read, one after the other all over the pool."""
        at = 0
        for start, stop in reads:
            shape = (self._volume.n_channels, *np.subtract(stop, start).tolist())
            size = int(np.prod(shape))
            at = at if at + size <= len(self._pool) else 0
            yield self._pool[at : at + size].reshape(shape)
            at += size

    def _regions(self, reads: Sequence[Box]) -> list[Voxels]:
        """Fill the pool once with regions of the sizes that are read."""
        regions: list[Voxels] = []
        room = self._pool.nbytes
        for region in self._laid_out(itertools.cycle(reads)):
            room -= region.nbytes
            if room < 0:
                break
            regions.append(region)
        return regions

    def _decode(self, box: Box, out: Voxels) -> None:
        self._volume.read(*box, self._volume.n_channels, out=out)

    def _gather(self, regions: Sequence[Voxels], batch: Voxels) -> None:
        chosen = [regions[i] for i in self._random.integers(len(regions), size=BATCH)]
        room = np.array([region.shape[1:] for region in chosen]) - CUBOID + 1
        starts = (self._random.random((BATCH, 3)) * room).astype(np.int64).tolist()
        gather_boxes(chosen, starts, batch)
