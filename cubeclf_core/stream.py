"""An endless stream of unlabelled cuboids from whole brains, at the speed of decoding.

Drawing one cuboid decodes some fifty times what it keeps. So a pool of decoded regions is kept
live: each batch draws from distinct ones, and each retires after as many draws as pay for its
decoding. What a step draws is a pure function of (seed, step, the recorded faults): the stream
starts anywhere, and its order depends neither on threads nor on how a batch is split over ranks.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Shaped

from cubeclf_core.axes import Shape3, Size3
from cubeclf_core.brains import Brain
from cubeclf_core.buffers import Buffers
from cubeclf_core.copying import gather_boxes
from cubeclf_core.errors import InputError, VolumeError
from cubeclf_core.geometry import source_shape
from cubeclf_core.places import Around, Mixed, Peaks, Places, Tissue
from cubeclf_core.regions import SPARE, Fault, Field, Regions, Visit
from cubeclf_core.schedule import Draws, PoolSchedule, ResidentSchedule, Schedule
from cubeclf_core.screen import implausible, limits_from
from cubeclf_core.sources import kept_bytes
from cubeclf_core.tiles import Tiling, choose_tiling
from cubeclf_core.tissue import Survey, survey

_REGIONS = 256  # live, at least, where memory allows: then batches are as good as uniform draws
_AHEAD = 2  # batches gathered or being gathered
_PLANNED = 6  # batches whose regions are being read
_SPREAD = 1.05  # regions differ in size
_HEADROOM = SPARE + 8  # regions that are being read, or whose memory waits to be used again


@dataclass(frozen=True)
class Part:
    """Those cuboids of a batch that have one shape and dtype.

    Attributes
    ----------
    rows
        Shape (n,), which items of the batch.
    cuboids
        Raw counts, in the voxels of the level that they were read from.
    """

    rows: npt.NDArray[np.int64]
    cuboids: Shaped[np.ndarray, "n c z y x"]


@dataclass(frozen=True)
class Batch:
    """Cuboids in raw counts, and where they come from.

    Attributes
    ----------
    parts
        One, unless brains differ in dtype or voxel size.
    brain
        Shape (b,), index of the brain.
    origin
        Shape (b, 3), first voxel z y x in the level of the brain that is read.
    """

    parts: tuple[Part, ...]
    brain: npt.NDArray[np.int64]
    origin: npt.NDArray[np.int64]


class CuboidStream:
    """Draws cuboids uniformly from tissue, or around candidates, from several brains.

    Parameters
    ----------
    brains
        At least one.
    shape
        Of the cuboids, z y x, in voxels of `voxel_size_um`.
    voxel_size_um
        z y x; of each brain, the nearest pyramid level is read.
    n_channels
        Channels to read; no more than any brain has.
    batch_size
        Cuboids a step, over all ranks.
    seed
        Of all choices.
    weights
        How much to draw of each brain; alike by default.
    candidate_share
        Probability that a cuboid is centred near a candidate: one of the brain's cells, or a bright
        spot that the stream finds where a brain has none.
    jitter_um
        Largest shift of such a cuboid along each axis, drawn uniformly.
    draws_per_chunk
        Draws after which a region retires, per decoded chunk of 2²⁰ voxels (64 × 128 × 128).
    memory_bytes
        What the streams of all ranks together may hold: regions, batches read ahead, and what is
        being decoded.
    threads
        That decode; by default one a core, at most 8. The order does not depend on it.
    rank, world_size
        Which consecutive share of each batch to draw; `world_size` divides `batch_size`.
    surveys
        Tissue and statistics of each brain, where they have been computed.
    state
        What `state` gave, to go on with the same faults.

    Raises
    ------
    VolumeTooSmall
        If a brain is smaller than one cuboid.
    VolumeError
        If a brain's overview cannot be read.
    InputError
        If the state is another stream's.
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
        weights: Sequence[float] | None = None,
        candidate_share: float = 0.5,
        jitter_um: float = 10.0,
        draws_per_chunk: int = 32,
        memory_bytes: int = 2 << 30,
        threads: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        surveys: Sequence[Survey] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        assert brains
        assert batch_size % world_size == 0
        self.brains = list(brains)
        self.shape = shape
        self.batch_size = batch_size
        self.n_channels = n_channels
        self.levels = [brain.volume.nearest(voxel_size_um) for brain in brains]
        self.extents = [source_shape(shape, voxel_size_um, level) for level in self.levels]
        self.surveys = list(surveys or (survey(brain.volume, n_channels) for brain in brains))
        self._threads = threads or min(8, os.cpu_count() or 1)
        self._pid = os.getpid()
        self._world_size = world_size
        local = batch_size // world_size
        self._items = range(rank * local, (rank + 1) * local)
        self._memory_bytes = memory_bytes
        each = np.array(weights if weights is not None else [1.0] * len(brains), np.float64)
        self._lay_out(each / each.sum(), candidate_share, jitter_um, draws_per_chunk, seed, state)

    def _lay_out(
        self,
        weights: npt.NDArray[np.float64],
        candidate_share: float,
        jitter_um: float,
        draws_per_chunk: int,
        seed: int,
        state: Mapping[str, Any] | None,
    ) -> None:
        """Tile all brains, weigh the tiles, and make the schedule."""
        voxel_bytes = [self.n_channels * level.dtype.itemsize for level in self.levels]
        batch_bytes = self.batch_size * max(
            size * int(np.prod(extent))
            for size, extent in zip(voxel_bytes, self.extents, strict=True)
        )
        planes = sum(
            map(kept_bytes, (c for v in self.levels for c in v.channels[: self.n_channels]))
        )
        left = self._memory_bytes - (_AHEAD + 2) * batch_bytes - planes
        pool_bytes = max(self._memory_bytes // 4, left)
        wanted = int(max(_REGIONS, self.batch_size) * _SPREAD) + _HEADROOM
        fields, tiles, shares, uses = [], [], [], []
        for i, (level, extent) in enumerate(zip(self.levels, self.extents, strict=True)):
            tiling = choose_tiling(
                level.shape,
                level.chunk_shape,
                extent,
                voxel_bytes=voxel_bytes[i],
                pool_bytes=pool_bytes,
                wanted=wanted,
            )
            places = self._places(i, tiling, candidate_share, jitter_um)
            limits = limits_from(self.surveys[i].statistics, level.dtype)
            screen = partial(implausible, limits=limits)
            fields.append(Field(i, level, tiling, places, self.n_channels, screen))
            tiles.append(np.flatnonzero(places.weights))
            shares.append(weights[i] * places.weights[tiles[i]])
            pays_for = np.minimum(tiling.chunks, tiling.cuboids) * draws_per_chunk
            most = np.minimum(pays_for, places.most_draws)[tiles[i]]
            uses.append(np.maximum(1, most.astype(np.int64)))
        share, used = np.concatenate(shares), np.concatenate(uses)
        tilings = [field.tiling for field in fields]
        self._region_bytes = float(np.dot(weights * voxel_bytes, [t.mean_voxels for t in tilings]))
        all_bytes = int(np.dot(voxel_bytes, [t.total_voxels for t in tilings]))
        resident = all_bytes * self._world_size <= pool_bytes  # each rank keeps them all
        most_slots = int((pool_bytes / self._region_bytes - _HEADROOM) / _SPREAD)
        self._too_little = not resident and most_slots < 1
        share_of = share / share.sum()
        self._schedule: Schedule = (
            ResidentSchedule(share_of, batch_size=self.batch_size, seed=seed)
            if resident
            else PoolSchedule(
                share_of,
                used,
                batch_size=self.batch_size,
                most_slots=max(1, most_slots),
                seed=seed,
            )
        )
        self._n_regions = len(share)
        self._fingerprint = self._digest(candidate_share, jitter_um, share, used, seed)
        self._regions = Regions(
            fields,
            tiles,
            share,
            names=[brain.name for brain in self.brains],
            seed=seed,
            attempts={} if state is None else self._attempts(state),
            keep=resident,
        )
        self._buffers = Buffers(_AHEAD + 1)

    def _places(self, i: int, tiling: Tiling, candidate_share: float, jitter_um: float) -> Places:
        """Say where in a brain to draw: in tissue, and around candidates."""
        brain, level = self.brains[i], self.levels[i]
        jitter = np.rint(jitter_um / np.array(level.voxel_size_um)).astype(np.int64)
        around: Places | None = None
        if candidate_share > 0 and brain.cells is not None and len(brain.cells):
            scale = np.array(brain.volume.voxel_size_um) / np.array(level.voxel_size_um)
            around = Around(tiling, (brain.cells.positions + 0.5) * scale - 0.5, jitter)
            if candidate_share == 1:
                return around
        try:
            tissue = Tissue(tiling, self.surveys[i].mask)
        except ValueError as error:
            raise VolumeError(
                f"{brain.name}: {error}; is it all outside of the tissue, or too thin for a cuboid?"
            ) from error
        if candidate_share == 0:
            return tissue
        around = around or Peaks(tissue, tiling, jitter)
        return around if candidate_share == 1 else Mixed(tissue, around, candidate_share)

    @property
    def local_batch(self) -> int:
        """Cuboids of each batch that this rank draws."""
        return len(self._items)

    @property
    def faults(self) -> list[Fault]:
        """Regions that could not be read so far, and were replaced."""
        return list(self._regions.faults)

    def describe(self) -> str:
        """Say in one line what is kept live."""
        text = (
            f"{self._schedule.n_live} live regions of {self._region_bytes / 1e6:.3g} MB on average"
            f", {self._n_regions} in all"
        )
        if self._too_little:
            text += "; even one is more than the memory allows"
        elif not self._schedule.distinct:
            text += (
                f"; too few, or too much drawn from one, for a batch of {self.batch_size} to come "
                "from distinct ones: it draws from them evenly"
            )
        return text

    def state(self, step: int) -> dict[str, Any]:
        """Say what it takes to go on from a step with the same order: a few integers.

        Parameters
        ----------
        step
            The first step that is still to be drawn.
        """
        epoch = self._schedule.epoch_of(step)
        faults = [[*key, n] for key, n in sorted(self._regions.attempts.items()) if key[0] >= epoch]
        return {"step": step, "fingerprint": self._fingerprint, "faults": faults}

    def batch(self, step: int) -> Batch:
        """Read the batch of one step."""
        return next(self.batches(step, step + 1))

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the batches of steps `start` to `stop`, regions decoded and cuboids cut ahead.

        By threads, not processes: decoding releases the GIL, and a store that is open is never
        forked. The arrays of a batch are its owner's; their memory is used again once nothing
        refers to them.

        Raises
        ------
        VolumeError
            If many regions of a brain in a row cannot be read.
        RuntimeError
            In a process forked after the stream was made.
        """
        if os.getpid() != self._pid:
            raise RuntimeError("a stream cannot be used after a fork; make one in each process")
        live = _Live(self._schedule, self._regions)
        gathered: deque[Future[Batch]] = deque()
        planned: deque[tuple[Draws, list[Future[Visit]]]] = deque()
        readers = ThreadPoolExecutor(self._threads, "cuboid-reader")
        gatherers = ThreadPoolExecutor(min(2, self._threads), "cuboid-gatherer")
        step = start
        try:
            while step < stop or planned or gathered:
                while step < stop and len(planned) < _PLANNED:
                    draws = self._schedule.draws(step, self._items)
                    planned.append((draws, live.visits(draws, readers)))
                    step += 1
                while planned and len(gathered) < _AHEAD:
                    draws, visits = planned.popleft()
                    gathered.append(gatherers.submit(self._gather, draws, visits))
                yield gathered.popleft().result()
        finally:
            readers.shutdown(wait=True, cancel_futures=True)
            gatherers.shutdown(wait=True, cancel_futures=True)

    def _gather(self, draws: Draws, visits: list[Future[Visit]]) -> Batch:
        """Cut the cuboids of one batch out of their regions."""
        held = [visit.result() for visit in visits]
        numbers = [
            n % len(visit.offsets) for visit, n in zip(held, draws.number.tolist(), strict=True)
        ]
        kinds: dict[tuple[Any, ...], list[int]] = {}
        for row, visit in enumerate(held):
            region = visit.region
            kinds.setdefault((region.voxels.dtype, region.field.tiling.extent), []).append(row)
        parts = []
        for (dtype, extent), rows in kinds.items():
            cuboids = self._buffers.take((len(rows), self.n_channels, *extent), dtype)
            gather_boxes(
                [held[row].region.voxels for row in rows],
                [held[row].offsets[numbers[row]] for row in rows],
                cuboids,
            )
            parts.append(Part(np.array(rows), cuboids))
        brain = np.array([visit.region.field.brain for visit in held])
        origin = np.stack([visit.origins[n] for visit, n in zip(held, numbers, strict=True)])
        return Batch(tuple(parts), brain, origin)

    def _digest(self, *settings: Any) -> str:
        told = [s.tobytes() if isinstance(s, np.ndarray) else repr(s).encode() for s in settings]
        told += [repr((self.batch_size, self.shape, self.extents, self.n_channels)).encode()]
        told += [repr((level.name, level.shape)).encode() for level in self.levels]
        cells = [b"" if b.cells is None else b.cells.positions.tobytes() for b in self.brains]
        told += [str(self._schedule.n_live).encode(), *cells]
        return hashlib.sha256(b"\0".join(told)).hexdigest()[:16]

    def _attempts(self, state: Mapping[str, Any]) -> dict[tuple[int, int], int]:
        if state["fingerprint"] != self._fingerprint:
            raise InputError(
                "the stream's state is of other brains or settings; resume with those it began with"
            )
        return {(epoch, entry): n for epoch, entry, n in state["faults"]}


class _Live:
    """What each slot holds: a visit to a region, being read or read."""

    def __init__(self, schedule: Schedule, regions: Regions) -> None:
        self._schedule, self._regions = schedule, regions
        self._held: dict[int, tuple[tuple[int, int, int], Future[Visit]]] = {}

    def visits(self, draws: Draws, readers: ThreadPoolExecutor) -> list[Future[Visit]]:
        """Give the visits of a step, in the order of its items; those that are new are begun."""
        visits = []
        columns = (draws.region, draws.slot, draws.epoch, draws.entry, draws.visit)
        for which, slot, epoch, entry, again in zip(*(c.tolist() for c in columns), strict=True):
            held = self._held.get(slot)
            if held is None or held[0] != (epoch, entry, again):
                n = self._schedule.length(which)
                key = (slot, again)
                visit = readers.submit(
                    self._regions.visit, which, n, epoch=epoch, entry=entry, key=key
                )
                held = self._held[slot] = ((epoch, entry, again), visit)
            visits.append(held[1])
        return visits
