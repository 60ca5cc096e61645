"""Buffers: large arrays whose memory is used again, since having it zeroed anew costs a copy."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

_LOOSE = 1.4  # times the size that is needed: a buffer that large will do


class Buffers:
    """Gives out arrays; the memory of one that nobody refers to any longer is given out again.

    Parameters
    ----------
    spare
        How many unused buffers to keep.
    """

    def __init__(self, spare: int) -> None:
        self._spare = spare
        self._free: list[npt.NDArray[np.uint8]] = []
        self._returned: SimpleQueue[npt.NDArray[np.uint8]] = SimpleQueue()
        self._lock = threading.Lock()

    def take(self, shape: Sequence[int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Give an array with arbitrary content; its views keep it too."""
        n_bytes = math.prod(shape) * dtype.itemsize
        with self._lock:
            while not self._returned.empty():
                self._free.append(self._returned.get())
            del self._free[: -self._spare or None]
            fitting = [b for b in self._free if n_bytes <= b.nbytes <= _LOOSE * n_bytes]
            memory = min(fitting, key=lambda buffer: buffer.nbytes, default=None)
            self._free = [b for b in self._free if b is not memory]
        if memory is None:
            memory = np.empty(n_bytes, np.uint8)
        return np.asarray(_Lease(memory, self))[:n_bytes].view(dtype).reshape(shape)

    def give_back(self, memory: npt.NDArray[np.uint8]) -> None:
        """Take memory back, from any thread at any moment: the garbage collector calls this."""
        self._returned.put(memory)  # a lock could be one that this very thread holds


class _Lease:
    """What an array and all its views refer to; its end is the buffer's return."""

    def __init__(self, memory: npt.NDArray[np.uint8], buffers: Buffers) -> None:
        self.__array_interface__ = memory.__array_interface__
        self._memory, self._buffers = memory, buffers

    def __del__(self) -> None:
        self._buffers.give_back(self._memory)
