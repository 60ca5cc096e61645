"""An endless stream of unlabelled cuboids from whole brains.

What a step draws is a pure function of (seed, step), so a stream starts anywhere, and the order
does not depend on how many threads read ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from cubeclf_core.axes import Shape3, Size3
from cubeclf_core.brains import Brain
from cubeclf_core.chunk_cache import ChunkCache
from cubeclf_core.geometry import resample, source_shape, starts_around


@dataclass(frozen=True)
class Batch:
    """Cuboids in raw counts, and where they come from.

    Attributes
    ----------
    cuboids
        Float32, at the stream's voxel size.
    brain
        Shape (b,), index of the brain.
    origin
        Shape (b, 3), first voxel z y x in the brain's own voxels.
    """

    cuboids: Float[Tensor, "b c z y x"]
    brain: npt.NDArray[np.int64]
    origin: npt.NDArray[np.int64]


class CuboidStream:
    """Draws cuboids uniformly, or around candidates, from several brains in turn.

    Parameters
    ----------
    brains
        At least one; each is drawn from equally often.
    shape
        Of the cuboids, z y x, in voxels of `voxel_size_um`.
    voxel_size_um
        z y x; brains of another voxel size are resampled.
    n_channels
        Channels to read; no more than any brain has.
    batch_size
        Cuboids a step.
    seed
        Of all choices.
    candidate_share
        Probability that a cuboid of a brain with cells is centred near one of them.
    jitter_um
        Largest shift of such a cuboid along each axis, drawn uniformly.
    cache_bytes
        Decoded chunks kept in memory, over all brains.

    Raises
    ------
    VolumeTooSmall
        If a brain is smaller than one cuboid.
    """

    def __init__(
        self,
        brains: Sequence[Brain],
        *,
        shape: Shape3,
        voxel_size_um: Size3,
        n_channels: int,
        batch_size: int,
        seed: int,
        candidate_share: float = 0.5,
        jitter_um: float = 10.0,
        cache_bytes: int = 1 << 30,
    ) -> None:
        self.brains = list(brains)
        self.shape = shape
        self.batch_size = batch_size
        self.n_channels = n_channels
        self._seed = seed
        self._candidate_share = candidate_share
        self._jitter_um = jitter_um
        self._extents = [source_shape(shape, voxel_size_um, brain.volume) for brain in brains]
        share = cache_bytes // len(self.brains)
        self._caches = [ChunkCache(brain.volume, n_channels, share) for brain in brains]

    def batch(self, step: int) -> Batch:
        """Read the batch of one step."""
        draws = [self._draw(step, item) for item in range(self.batch_size)]
        cuboids = torch.empty(self.batch_size, self.n_channels, *self.shape)
        brain = np.array([which for which, _ in draws])
        for which in np.unique(brain):
            rows = np.flatnonzero(brain == which)
            raw = np.stack([self._read(*draws[row]) for row in rows])
            cuboids[torch.from_numpy(rows)] = resample(raw, self.shape)
        return Batch(cuboids, brain, np.stack([origin for _, origin in draws]))

    def batches(self, start: int, stop: int, ahead: int = 3) -> Iterator[Batch]:
        """Yield the batches of steps `start` to `stop`, read ahead by a thread.

        A thread, not a process: decoding releases the GIL, and a store that is open is never
        forked.
        """
        pending: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(1, "cuboid-stream")
        try:
            for step in range(start, stop):
                pending.append(pool.submit(self.batch, step))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _draw(self, step: int, item: int) -> tuple[int, npt.NDArray[np.int64]]:
        random = np.random.default_rng((self._seed, step, item))
        which = int(random.integers(len(self.brains)))
        brain, extent = self.brains[which], self._extents[which]
        last = np.array(brain.volume.shape, np.int64) - np.array(extent, np.int64)
        if brain.cells is None or random.random() >= self._candidate_share:
            return which, random.integers(0, last + 1)
        jitter = random.uniform(-1, 1, 3) * self._jitter_um / np.array(brain.volume.voxel_size_um)
        position = brain.cells.positions[random.integers(len(brain.cells))] + jitter
        return which, starts_around(position[None], extent)[0].clip(0, last)

    def _read(self, which: int, origin: npt.NDArray[np.int64]) -> npt.NDArray[np.generic]:
        return self._caches[which].read(origin, origin + self._extents[which])
