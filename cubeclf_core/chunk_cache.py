"""Decoded chunks of one volume, the last used ones kept, within a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from itertools import product

import numpy as np
import numpy.typing as npt

from cubeclf_core.volumes import Volume

Chunk = npt.NDArray[np.generic]


class ChunkCache:
    """Reads boxes of a volume, decoding a chunk only if it is not among those used last.

    For one thread at a time.

    Parameters
    ----------
    volume
        What to read.
    n_channels
        How many of its channels.
    max_bytes
        Of decoded chunks; one is always kept.
    """

    def __init__(self, volume: Volume, n_channels: int, max_bytes: int) -> None:
        self._volume = volume
        self._n_channels = n_channels
        self._max_bytes = max_bytes
        self._bytes = 0
        self._chunks: OrderedDict[tuple[int, ...], Chunk] = OrderedDict()

    def read(self, start: npt.NDArray[np.int64], stop: npt.NDArray[np.int64]) -> Chunk:
        """Read the box from `start` to before `stop`, z y x, as (c, z, y, x)."""
        box = np.empty((self._n_channels, *(stop - start)), self._volume.dtype)
        size = np.array(self._volume.chunk_shape)
        ranges = [range(a, b + 1) for a, b in zip(start // size, (stop - 1) // size, strict=True)]
        for index in product(*ranges):
            corner = np.array(index) * size
            low, high = np.maximum(start, corner), np.minimum(stop, corner + size)
            chunk = self._chunk(index)
            box[_slices(low - start, high - start)] = chunk[_slices(low - corner, high - corner)]
        return box

    def _chunk(self, index: tuple[int, ...]) -> Chunk:
        if index in self._chunks:
            self._chunks.move_to_end(index)
            return self._chunks[index]
        size = np.array(self._volume.chunk_shape)
        start = np.array(index) * size
        stop = np.minimum(start + size, self._volume.shape)
        chunk = self._volume.read(start, stop, self._n_channels)
        self._chunks[index] = chunk
        self._bytes += chunk.nbytes
        while self._bytes > self._max_bytes and len(self._chunks) > 1:
            self._bytes -= self._chunks.popitem(last=False)[1].nbytes
        return chunk


def _slices(low: npt.NDArray[np.int64], high: npt.NDArray[np.int64]) -> tuple[slice, ...]:
    return (slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))
