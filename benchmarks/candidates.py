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
    """Candidates of a volume, or of its first layers of chunks, none of them at the border.

    At the border, the reader would reflect what the cuboids lack, which one call of zarr-python
    cannot do.

    Parameters
    ----------
    volume
        Where they are.
    voxels_each
        Of what is read of the volume, for each candidate.
    at_most
        About how many to read; where there are more, those of the first layers.
    threads
        That decode.
    """

    def __init__(self, volume: Volume, voxels_each: float, at_most: int, threads: int) -> None:
        depth, height, width = volume.shape
        chunk = volume.channels[0].chunks[0]
        layer = math.ceil(CUBOID[0] / chunk) * chunk
        layers = max(1, round(at_most * voxels_each / (layer * height * width)))
        room = (min(depth, layers * layer), height, width)
        n = max(1, round(math.prod(room) / voxels_each))
        last = np.subtract(room, CUBOID)
        self._starts = np.random.default_rng(0).integers(0, last, (n, 3), endpoint=True)
        self.positions = self._starts + np.array(CUBOID, np.float64) / 2
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
        """First voxels of the cuboids around them, in random order."""
        return np.random.default_rng(1).permutation(self._starts)
