"""Regions: decoded tiles of brains, and the origins that are drawn from each while it is live."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
from jaxtyping import Shaped

from cubeclf_core.buffers import Buffers
from cubeclf_core.errors import VolumeError
from cubeclf_core.places import Places, choose
from cubeclf_core.tiles import Ints, Tiling
from cubeclf_core.volumes import Volume

_PAUSES_S = (0.1, 0.5)  # before each retry: a network or a disk may have hiccuped
_HOPELESS = 16  # regions of a brain in a row that cannot be read
SPARE = 8  # buffers kept for regions that are about to be read


@dataclass(frozen=True)
class Field:
    """One way to draw from one brain: how its volume is tiled, and where its places are.

    Attributes
    ----------
    brain
        Its index.
    volume
        The level that is read.
    tiling
        Of that volume.
    places
        Over that tiling.
    n_channels
        To be read.
    screen
        Says why decoded voxels (c, z, y, x) cannot be real, or None.
    """

    brain: int
    volume: Volume
    tiling: Tiling
    places: Places
    n_channels: int
    screen: Callable[[npt.NDArray[Any]], str | None]


@dataclass(frozen=True)
class Fault:
    """A region that could not be read, and is replaced by another draw whenever it is drawn.

    Attributes
    ----------
    brain
        Its name.
    start, stop
        The region's first voxel z y x, and the one after its last.
    reason
        What was found.
    """

    brain: str
    start: tuple[int, ...]
    stop: tuple[int, ...]
    reason: str


@dataclass(frozen=True, eq=False)
class Region:
    """Decoded voxels of a tile.

    Attributes
    ----------
    field
        Where it is from.
    start
        Its first voxel, z y x.
    voxels
        Raw counts.
    """

    field: Field
    start: Ints
    voxels: Shaped[np.ndarray, "c z y x"]


@dataclass(frozen=True)
class Visit:
    """A live region, and origins in the order in which they are drawn.

    Attributes
    ----------
    region
        Where to cut.
    origins
        Shape (n, 3), z y x in the volume.
    offsets
        The same, from the region's first voxel.
    """

    region: Region
    origins: Ints
    offsets: list[list[int]]


class Regions:
    """Reads the regions that a schedule asks for, each once while it is live; for any thread.

    Parameters
    ----------
    fields
        Whose tiles with weight above 0, one field after the other, are the schedule's regions.
    tiles
        Of each field, which those are.
    shares
        Shape (n,), of all draws, over the regions of all fields.
    names
        Of the brains.
    seed
        Of origins and replacements.
    attempts
        For (epoch, entry), how many draws are known to be at fault; what `attempts` was.
    keep
        Keep every region that has been read.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        tiles: Sequence[Ints],
        shares: npt.NDArray[np.float64],
        *,
        names: Sequence[str],
        seed: int,
        attempts: Mapping[tuple[int, int], int],
        keep: bool = False,
    ) -> None:
        self.faults: list[Fault] = []
        self.attempts = dict(attempts)
        self._fields, self._tiles, self._names, self._seed = fields, tiles, names, seed
        self._begin = np.cumsum([0, *map(len, tiles)])
        self._ends = np.cumsum(shares)
        self._kept: list[Region] | None = [] if keep else None
        self._live: WeakValueDictionary[tuple[int, int], Region] = WeakValueDictionary()
        self._broken: dict[tuple[int, int], str] = {}  # why; an error would keep its frames alive
        self._reading: dict[tuple[int, int], Future[Region]] = {}
        self._buffers = Buffers(SPARE)
        self._failed = Counter[int]()  # in a row
        self._lock = threading.Lock()

    def visit(self, which: int, n: int, *, epoch: int, entry: int, key: tuple[int, ...]) -> Visit:
        """Read a region and draw origins in it; one that cannot be read is replaced.

        Parameters
        ----------
        which
            Which region the schedule takes.
        n
            How many origins.
        epoch, entry
            Where in the schedule.
        key
            What tells this visit of the entry from others.

        Raises
        ------
        VolumeError
            If many regions of a brain in a row cannot be read.
        """
        while True:
            with self._lock:
                attempt = self.attempts.get((epoch, entry), 0)
            chosen = which if attempt == 0 else self._replacement(epoch, entry, attempt)
            f = int(np.searchsorted(self._begin, chosen, side="right")) - 1
            field, tile = self._fields[f], int(self._tiles[f][chosen - self._begin[f]])
            try:
                region = self._region(field, tile)
            except VolumeError:
                with self._lock:  # unless another thread was first
                    self.attempts.setdefault((epoch, entry), 0)
                    self.attempts[epoch, entry] = max(self.attempts[epoch, entry], attempt + 1)
                    self._check_hope(field)
                continue
            random = np.random.default_rng((self._seed, 3, epoch, entry, attempt, *key))
            origins = field.places.draw(tile, n, random, region.voxels)
            return Visit(region, origins, (origins - region.start).tolist())

    def _replacement(self, epoch: int, entry: int, attempt: int) -> int:
        random = np.random.default_rng((self._seed, 4, epoch, entry, attempt))
        return int(choose(self._ends, 1, random)[0])

    def _region(self, field: Field, tile: int) -> Region:
        """Give a region that is live, wait for the thread that is reading it, or read it."""
        key = (field.brain, tile)
        with self._lock:
            live = self._live.get(key)
            if live is not None:
                self._failed[field.brain] = 0
                return live
            if key in self._broken:
                raise VolumeError(self._broken[key])
            future = self._reading.get(key)
            mine = future is None
            if future is None:
                future = self._reading[key] = Future()
        if mine:
            try:
                region = self._decode(field, tile)
                with self._lock:
                    self._live[key] = region
                    if self._kept is not None:
                        self._kept.append(region)
                    self._failed[field.brain] = 0
                    del self._reading[key]
                future.set_result(region)
            except BaseException as error:
                with self._lock:
                    del self._reading[key]
                    if isinstance(error, VolumeError):
                        self._record(field, tile, str(error))
                future.set_exception(error)
        return future.result()

    def _decode(self, field: Field, tile: int) -> Region:
        start, stop = field.tiling.voxels(tile)
        shape = (field.n_channels, *(int(n) for n in stop - start))
        for pause in (*_PAUSES_S, None):
            voxels = self._buffers.take(shape, field.volume.dtype)
            try:
                field.volume.read(start, stop, field.n_channels, out=voxels)
                reason = field.screen(voxels)
                if reason is None:
                    return Region(field, start, voxels)
                raise VolumeError(reason)
            except VolumeError:
                if pause is None:
                    raise
            time.sleep(pause)
        raise AssertionError

    def _record(self, field: Field, tile: int, reason: str) -> None:
        start, stop = field.tiling.voxels(tile)
        name = self._names[field.brain]
        self.faults.append(Fault(name, tuple(start.tolist()), tuple(stop.tolist()), reason))
        self._broken[field.brain, tile] = reason
        self._failed[field.brain] += 1

    def _check_hope(self, field: Field) -> None:
        """Give up a brain of which many regions in a row, or all, could not be read."""
        n_failed = self._failed[field.brain]
        if n_failed >= min(_HOPELESS, len(self._tiles[field.brain])):
            last = next(f for f in reversed(self.faults) if f.brain == self._names[field.brain])
            raise VolumeError(
                f"the last {n_failed} regions of {last.brain} could not be read; one at z y x "
                f"{last.start}: {last.reason}"
            )
