"""The stream as training would use it, on a volume that tells what is read of it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Shaped

from benchmarks.meter import Rate, metered
from cubeclf_core.axes import Shape3, Size3
from cubeclf_core.brains import Brain
from cubeclf_core.sources import ArraySource
from cubeclf_core.stream import CuboidStream
from cubeclf_core.tiles import CHUNK_VOXELS
from cubeclf_core.tissue import Survey, survey
from cubeclf_core.volumes import Corner, Volume

CUBOID: Shape3 = (20, 50, 50)
BATCH = 256
VOXEL_SIZE_UM: Size3 = (5.0, 1.0, 1.0)  # of any volume here: cuboids are never resampled

Box = tuple[Corner, Corner]


@dataclass(frozen=True)
class Told(Volume):
    """A volume that keeps account of what is read of it.

    Attributes
    ----------
    reads
        First voxel z y x of each box and the one after its last, in the order of asking.
    """

    reads: list[Box] = field(default_factory=list, compare=False)

    def read(
        self,
        start: Corner,
        stop: Corner,
        n_channels: int | None = None,
        out: Shaped[np.ndarray, "c z y x"] | None = None,
        *,
        finite: bool = True,
    ) -> Shaped[np.ndarray, "c z y x"]:
        """Read a box; see `Volume.read`."""
        self.reads.append((start, stop))
        return super().read(start, stop, n_channels, out, finite=finite)


def decoded_chunks(reads: Sequence[Box], chunk: Shape3) -> float:
    """Count what was decoded for reads of whole chunks, in chunks of 64 × 128 × 128 voxels."""
    total = 0
    for box in reads:
        borders = zip(*box, chunk, strict=True)
        total += math.prod(int((b - 1) // c - a // c + 1) * c for a, b, c in borders)
    return total / CHUNK_VOXELS


def kept_chunks(reads: Sequence[Box]) -> float:
    """Count what reads give, in the same unit."""
    return float(sum(np.subtract(stop, start).prod() for start, stop in reads)) / CHUNK_VOXELS


class Unread(Told):
    """A volume that is told what to read and leaves it: a stream's choices without their cost."""

    def read(
        self,
        start: Corner,
        stop: Corner,
        n_channels: int | None = None,
        out: Shaped[np.ndarray, "c z y x"] | None = None,
        *,
        finite: bool = True,
    ) -> Shaped[np.ndarray, "c z y x"]:
        """Give back what is to be filled, as it is."""
        assert out is not None
        self.reads.append((start, stop))
        return out


def unread(like: Volume, shape: Shape3) -> tuple[Unread, Survey]:
    """Make one with another's chunks, channels and dtype, all of it tissue."""
    size, n = like.voxel_size_um, like.n_channels
    nothing = np.broadcast_to(np.zeros((), like.dtype), shape)
    # White, so that nothing is too bright to be true, whatever is not read.
    white = np.full((64, 64, 64), 255 if like.dtype == np.uint8 else 65535, like.dtype)
    seen = survey(Volume("white", (ArraySource(white),) * n, size), n)
    return Unread("unread", (ArraySource(nothing, like.chunk_shape),) * n, size), seen


def told(volume: Volume) -> Told:
    """Keep account of the reads of a volume's finest level."""
    return Told(volume.name, volume.channels, volume.voxel_size_um)


def make_stream(
    volume: Told, survey: Survey, *, memory_bytes: int, draws_per_chunk: int = 32, **options: Any
) -> CuboidStream:
    """Make a stream as training would, over as many copies of a volume as fill its memory twice.

    Copies share their files, but not a decoded voxel: the pool is that of a larger volume.
    """
    n_channels = options.setdefault("n_channels", volume.n_channels)
    decoded = int(np.prod(volume.shape)) * volume.dtype.itemsize * n_channels
    copies = max(1, -(-2 * memory_bytes // decoded))
    options = {"shape": CUBOID, "batch_size": BATCH, "seed": 0, **options}
    return CuboidStream(
        [Brain(f"{volume.name} {i}", volume, None, ()) for i in range(copies)],
        voxel_size_um=volume.voxel_size_um,
        candidate_share=0.0,
        draws_per_chunk=draws_per_chunk,
        memory_bytes=memory_bytes,
        surveys=[survey] * copies,
        **options,
    )


def live_regions(stream: CuboidStream) -> int:
    """How many regions a stream keeps live."""
    return int(stream.describe().split()[0])


def to_fill(stream: CuboidStream) -> int:
    """How many batches it takes until all its regions are live."""
    return -(-live_regions(stream) // stream.batch_size)


class Streamed:
    """A stream in its steady state: its pool is full, and as many regions retire as are begun.

    Parameters
    ----------
    volume
        That it reads.
    stream
        To be measured.

    Attributes
    ----------
    draws
        Of the last measurement.
    reads
        What was read for them.
    draws_per_chunk
        Reached then, for each chunk of 64 × 128 × 128 voxels that was decoded.
    """

    def __init__(self, volume: Told, stream: CuboidStream) -> None:
        self._volume = volume
        self._batches: Any = stream.batches(0, 1 << 40)
        self.reads: Sequence[Box] = ()
        self.draws, self.draws_per_chunk = 0, 0.0
        for _ in range(to_fill(stream)):
            next(self._batches)

    def measure(self, seconds: float) -> Rate:
        """Draw for about so many seconds of processor time."""
        with metered() as cost:  # as many batches are ready at its end as at its begin
            first, self.draws = len(self._volume.reads), 0
            end = time.process_time() + seconds
            while self.draws == 0 or time.process_time() < end:
                self.draws += len(next(self._batches).brain)
        self.reads = self._volume.reads[first:]
        decoded = decoded_chunks(self.reads, self._volume.chunk_shape)
        self.draws_per_chunk = self.draws / max(decoded, 1e-9)
        return Rate(self.draws / cost.cpu, self.draws / cost.wall)

    def close(self) -> None:
        """Let its memory go."""
        self._batches.close()
