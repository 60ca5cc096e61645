"""The reader of cuboids around candidates, against zarr-python for each of them."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import numpy.typing as npt

from benchmarks.meter import Rate, metered
from benchmarks.streams import CUBOID
from cubeclf_core.candidates import read_candidates, read_raw_candidates
from cubeclf_core.volumes import Volume

SPARSE, DENSE = 1.3e5, 1e4  # voxels for each candidate


class Candidates:
    """All candidates of a volume, or of the first planes of it.

    Parameters
    ----------
    volume
        Where they are.
    voxels_each
        Of the volume, for each candidate.
    at_most
        How many to read; where there are more, those of the first planes.
    threads
        That decode.
    """

    def __init__(self, volume: Volume, voxels_each: float, at_most: int, threads: int) -> None:
        depth, height, width = volume.shape
        n = max(1, round(math.prod(volume.shape) / voxels_each))
        planes = math.ceil(depth * min(1.0, at_most / n))
        planes = min(depth, max(planes, CUBOID[0]))
        n = max(1, round(planes * height * width / voxels_each))
        random = np.random.default_rng(0)
        self.positions: npt.NDArray[np.float64] = random.random((n, 3)) * (planes, height, width)
        self._volume, self._threads = volume, threads

    def measure(self, *, raw: bool) -> Rate:
        """Read them all once, in the volume's own dtype or as float32."""
        read = read_raw_candidates if raw else read_candidates
        with metered() as cost:
            parts = read(
                self._volume,
                self.positions,
                shape=CUBOID,
                voxel_size_um=self._volume.voxel_size_um,
                n_channels=self._volume.n_channels,
                threads=self._threads,
            )
            deque[object](parts, maxlen=0)
        return Rate(len(self.positions) / cost.cpu, len(self.positions) / cost.wall)

    def origins(self) -> npt.NDArray[np.int64]:
        """Where cuboids around them begin, in random order; at the border, moved inside."""
        last = np.subtract(self._volume.shape, CUBOID)
        corners = np.rint(self.positions - np.divide(CUBOID, 2)).astype(np.int64).clip(0, last)
        return np.random.default_rng(1).permutation(corners)
