"""What the stream could reach at best: decoding its regions and copying its cuboids, no more."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.meter import metered
from benchmarks.streams import BATCH, CUBOID, Box
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
        self._volume = volume
        self._readers = ThreadPoolExecutor(threads)
        self._random = np.random.default_rng(0)
        # Filled, since the kernel gives memory only when it is written.
        self._pool = np.full(pool_bytes // volume.dtype.itemsize, 1, volume.dtype)
        shape = (_BATCHES, BATCH, volume.n_channels, *CUBOID)
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
        regions = self._regions(reads)
        with metered() as decoding:
            list(self._readers.map(self._decode, reads, itertools.cycle(regions)))
        n = 0
        with metered() as gathering:
            end = time.process_time() + seconds
            while n == 0 or time.process_time() < end:
                self._gather(regions)
                n += BATCH
        return decoding.cpu / draws, gathering.cpu / n

    def _regions(self, reads: Sequence[Box]) -> list[Voxels]:
        """Lay out regions of the sizes that are read, one after the other, all over the pool."""
        regions: list[Voxels] = []
        at = 0
        for start, stop in itertools.cycle(reads):
            shape = (self._volume.n_channels, *np.subtract(stop, start).tolist())
            end = at + int(np.prod(shape))
            if end > len(self._pool):
                return regions
            regions.append(self._pool[at:end].reshape(shape))
            at = end
        raise AssertionError("nothing was read")

    def _decode(self, box: Box, out: Voxels) -> None:
        self._volume.read(*box, self._volume.n_channels, out=out)

    def _gather(self, regions: Sequence[Voxels]) -> None:
        which = self._random.permutation(len(regions))[:BATCH].tolist()
        for cuboid, i in zip(next(self._batches), itertools.cycle(which), strict=False):
            region = regions[i]
            room = np.subtract(region.shape[1:], CUBOID) + 1
            z, y, x = (self._random.random(3) * room).astype(np.int64).tolist()
            nz, ny, nx = CUBOID
            cuboid[...] = region[:, z : z + nz, y : y + ny, x : x + nx]
