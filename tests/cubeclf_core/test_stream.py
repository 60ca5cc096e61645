"""What the stream promises, sentence by sentence."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import threading
import tracemalloc
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cubeclf_core.brains import Brain
from cubeclf_core.buffers import Buffers
from cubeclf_core.cells import Cells
from cubeclf_core.errors import InputError, VolumeError, VolumeTooSmall
from cubeclf_core.pyramid import write_ome_zarr
from cubeclf_core.schedule import PoolSchedule
from cubeclf_core.stream import CuboidStream
from cubeclf_core.tissue import Brightness, Statistics, Survey
from cubeclf_core.volumes import ArraySource, Volume, open_volume
from pretrain.batches import to_network

UM = (5.0, 1.0, 1.0)
PER_CHUNK = 2**20 // (4 * 8 * 8)  # chunks of these tests are small ones


@dataclass
class CountingSource:
    """A channel that notes what is decoded, by whom, and fails where it is told to."""

    array: np.ndarray
    chunks: tuple[int, int, int] = (4, 8, 8)
    fails: tuple[tuple[int, int, int], ...] = ()
    boxes: list[tuple[slice, ...]] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    together: threading.Barrier | None = None
    ndim = 3

    @property
    def shape(self):
        return self.array.shape

    @property
    def dtype(self):
        return self.array.dtype

    def __getitem__(self, key):
        self.boxes.append(key)
        self.threads.add(threading.current_thread().name)
        if self.together is not None:
            with suppress(threading.BrokenBarrierError):  # broken where one thread comes alone
                self.together.wait(timeout=5)
        for at in self.fails:
            if all(s.start <= p < s.stop for s, p in zip(key, at, strict=True)):
                raise VolumeError(f"a chunk at {at} cannot be decoded")
        return self.array[key]


def numbered(shape) -> np.ndarray:
    """Voxels that tell where they are."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def brain(
    shape=(6, 12, 14), cells=None, um=UM, name="a", source=None, chunks=(4, 8, 8), dtype=None
) -> Brain:
    array = numbered(shape) if dtype is None else (numbered(shape) % 251).astype(dtype)
    channel = source or ArraySource(array, chunks)
    return Brain(name, Volume(name, (channel,), um), cells, ())


def stream(*brains: Brain, shape=(2, 5, 5), batch_size=8, seed=0, **options) -> CuboidStream:
    settings = {"candidate_share": 0.0, "voxel_size_um": UM, "n_channels": 1} | options
    settings.setdefault("draws_per_chunk", 32 * PER_CHUNK)
    settings.setdefault("surveys", [seen_as(np.ones((1, 1, 1), bool)) for _ in brains])
    return CuboidStream(brains, shape=shape, batch_size=batch_size, seed=seed, **settings)


def drawn(source: CuboidStream, steps: int, start: int = 0) -> np.ndarray:
    return np.concatenate([batch.origin for batch in source.batches(start, start + steps)])


def same(one: CuboidStream, other: CuboidStream, start: int, stop: int) -> bool:
    pairs = zip(one.batches(start, stop), other.batches(start, stop), strict=True)
    return all(
        np.array_equal(a.origin, b.origin)
        and np.array_equal(a.brain, b.brain)
        and np.array_equal(a.parts[0].cuboids, b.parts[0].cuboids)
        for a, b in pairs
    )


def seen_as(mask: np.ndarray, bright: float = 1e6) -> Survey:
    """A survey that saw tissue where the mask says."""
    channel = Brightness(bright / 2, bright / 10, 0.0, bright, bright)
    return Survey(mask, (1.0, 1.0, 1.0), Statistics((channel,), float(mask.mean()), UM))


# ---- what a batch holds -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_cuboids_are_what_the_volume_holds_at_their_origin_in_its_dtype(dtype) -> None:
    source = brain(dtype=dtype)
    whole = source.volume.read((0, 0, 0), (6, 12, 14))
    for batch in stream(source).batches(3, 6):
        (part,) = batch.parts
        assert part.cuboids.dtype == dtype
        for cuboid, (z, y, x) in zip(part.cuboids, batch.origin, strict=True):
            np.testing.assert_array_equal(cuboid, whole[:, z : z + 2, y : y + 5, x : x + 5])


def test_a_batch_that_is_kept_is_not_written_over() -> None:
    batches = list(stream(brain()).batches(0, 40))
    again = stream(brain())
    for step in (0, 7, 39):
        np.testing.assert_array_equal(
            batches[step].parts[0].cuboids, again.batch(step).parts[0].cuboids
        )


def test_a_canvas_larger_than_the_cuboid_comes_from_the_same_stream() -> None:
    source = stream(brain((40, 90, 90), chunks=(16, 32, 32)), shape=(24, 60, 60))
    assert source.batch(0).parts[0].cuboids.shape == (8, 1, 24, 60, 60)


@given(
    shape=st.tuples(st.integers(3, 20), st.integers(5, 30), st.integers(5, 30)),
    chunks=st.tuples(st.integers(1, 25), st.integers(1, 35), st.integers(1, 35)),
    cuboid=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_any_volume_chunks_and_cuboid_will_do(shape, chunks, cuboid, batch_size, seed) -> None:
    source = brain(shape, chunks=chunks)
    batch = stream(source, shape=cuboid, batch_size=batch_size, seed=seed).batch(5)
    (part,) = batch.parts
    assert part.cuboids.shape == (batch_size, 1, *cuboid)
    assert (batch.origin >= 0).all()
    first = part.cuboids[:, 0, 0, 0, 0].astype(int)  # the volume's voxels are numbered
    np.testing.assert_array_equal(np.ravel_multi_index(batch.origin.T, shape), first)


# ---- where it draws -----------------------------------------------------------------------------


@pytest.mark.slow
def test_every_origin_is_drawn_equally_often() -> None:
    source = stream(brain(), batch_size=500)
    counts = np.zeros((5, 8, 10))
    np.add.at(counts, tuple(drawn(source, 60).T), 1)
    expected = counts.sum() / counts.size
    chi_square = ((counts - expected) ** 2 / expected).sum() / (counts.size - 1)
    assert 0.85 < chi_square < 1.15  # 1 ± 3.2 standard deviations


def test_regions_are_drawn_from_in_proportion_when_they_retire() -> None:
    random = np.random.default_rng(0)
    weights = random.random(300) + 0.05
    uses = random.choice([8, 16, 32, 64], 300)
    shares = []
    for seed in range(150):  # what one seed draws is uneven: a region comes for many draws or none
        order = PoolSchedule(weights / weights.sum(), uses, batch_size=16, most_slots=50, seed=seed)
        assert order.distinct
        counts = np.zeros(300)
        for step in random.integers(0, 10**6, 60).tolist():
            np.add.at(counts, order.draws(step, range(16)).region, 1)
        shares.append(counts / counts.sum())
    mean, error = np.mean(shares, axis=0), np.std(shares, axis=0) / np.sqrt(150)
    off = (mean - weights / weights.sum()) / error
    assert 0.8 < np.std(off) < 1.2
    assert np.abs(off).max() < 4.5


def test_cuboids_are_drawn_only_where_tissue_is_and_there_evenly() -> None:
    source = brain((8, 40, 40))
    mask = np.zeros((1, 4, 4), bool)
    mask[0, 1:3, 2] = True
    source_stream = stream(source, batch_size=250, surveys=[seen_as(mask)])
    middles = drawn(source_stream, 60) + np.array([1, 2.5, 2.5])
    assert middles[:, 1].min() >= 10
    assert middles[:, 1].max() < 30
    assert middles[:, 2].min() >= 20
    assert middles[:, 2].max() < 30
    counts = np.unique(np.floor(middles[:, 1]), return_counts=True)[1]
    assert len(counts) == 20
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum() / 19
    assert chi_square < 2.5  # 19 degrees of freedom: p below 0.001


def test_brains_are_mixed_by_weight() -> None:
    source = stream(brain(), brain(name="b"), weights=[3, 1], batch_size=100)
    of_first = np.mean([(batch.brain == 0).mean() for batch in source.batches(0, 50)])
    assert abs(of_first - 0.75) < 0.03


def test_candidates_are_drawn_alike_with_even_jitter() -> None:
    positions = np.array([[3.0, 6, 6], [3, 6, 30], [3, 20, 20], [5, 33, 9]])
    cells = Cells(positions, np.array([2, 2, 1, 2]))
    source = stream(brain((8, 40, 40), cells), candidate_share=1.0, jitter_um=3.0, batch_size=200)
    origins = drawn(source, 60)
    shifts = origins[:, None, 1:] - (np.rint(positions[:, 1:] - 2.5))[None]
    near = (np.abs(shifts) <= 3).all(axis=2)
    assert near.sum(axis=1).all()
    shares = near.mean(axis=0)
    assert np.abs(shares - 0.25).max() < 0.03
    y = shifts[near][:, 0].astype(int)
    counts = np.bincount(y + 3, minlength=7)
    assert counts.min() > 0.8 * counts.mean()


def test_a_share_of_the_cuboids_is_near_candidates() -> None:
    cells = Cells(np.array([[3.0, 20, 20]]), np.array([2]))
    source = stream(brain((8, 40, 40), cells), candidate_share=0.3, jitter_um=0.0, batch_size=200)
    at_cell = (drawn(source, 40) == [2, 18, 18]).all(axis=1).mean()
    assert abs(at_cell - 0.3) < 0.03


def test_bright_spots_are_found_where_a_brain_has_no_cells() -> None:
    random = np.random.default_rng(0)
    array = random.poisson(100, (128, 256, 256)).astype(np.uint16)
    spots = random.integers((6, 10, 10), (122, 246, 246), (400, 3))
    for z, y, x in spots:
        array[z - 1 : z + 2, y - 2 : y + 3, x - 2 : x + 3] += 900
    found = brain(source=ArraySource(array, (64, 128, 128)))
    options = {"shape": (6, 11, 11), "jitter_um": 1.0, "batch_size": 50, "draws_per_chunk": 32}
    source = stream(found, candidate_share=1.0, **options)
    shares = []
    for one in (source, stream(found, **options)):
        middles = drawn(one, 20) + np.array([3, 5, 5])
        nearest = np.abs(middles[:, None] - spots[None]).max(axis=2).min(axis=1)
        shares.append((nearest <= 5).mean())
    assert shares[0] > 0.5
    assert shares[0] > 4 * shares[1]


# ---- other voxel sizes --------------------------------------------------------------------------


def test_a_brain_of_another_voxel_size_is_resampled() -> None:
    fine = brain((12, 24, 28), um=(2.5, 0.5, 0.5), name="fine")
    source = stream(brain(), fine, batch_size=40)
    batch = source.batch(0)
    assert {part.cuboids.shape[2:] for part in batch.parts} == {(2, 5, 5), (4, 10, 10)}
    cuboids = to_network(batch, (2, 5, 5))
    assert cuboids.shape == (40, 1, 2, 5, 5)
    for row in np.flatnonzero(batch.brain == 1):  # numbers rise linearly, so means are exact
        z, y, x = batch.origin[row]
        assert cuboids[row, 0, 0, 0, 0] == np.mean(
            fine.volume.channels[0][z : z + 2, y : y + 2, x : x + 2].astype(float)
        )
    for row in np.flatnonzero(batch.brain == 0):
        assert cuboids[row, 0, 0, 0, 0] == np.ravel_multi_index(batch.origin[row], (6, 12, 14))


def test_the_nearest_level_of_a_pyramid_is_read(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 999, (24, 300, 300)).astype(np.uint16)
    write_ome_zarr(tmp_path / "a.ome.zarr", [array], (5.0, 0.5, 0.5))
    volume = open_volume(tmp_path / "a.ome.zarr")
    source = stream(Brain("a", volume, None, ()), shape=(4, 20, 20))
    assert source.levels[0].voxel_size_um == UM
    assert source.batch(0).parts[0].cuboids.shape[2:] == (4, 20, 20)


# ---- the order ----------------------------------------------------------------------------------


@given(
    threads=st.integers(1, 4),
    start=st.integers(0, 300),
    world_size=st.sampled_from([1, 2, 3, 4, 6, 12]),
    memory=st.sampled_from([1 << 30, 60_000, 4_000]),
)
@settings(max_examples=25, deadline=None)
def test_the_order_is_a_pure_function_of_seed_and_step(threads, start, world_size, memory) -> None:
    options = {"batch_size": 12, "memory_bytes": memory}
    volume = brain((16, 32, 24))
    one = list(stream(volume, threads=1, **options).batches(0, 6 + start % 5))
    step = min(start % 5 + 2, len(one) - 1)
    ranks = [
        stream(volume, threads=threads, rank=rank, world_size=world_size, **options).batch(step)
        for rank in range(world_size)
    ]
    np.testing.assert_array_equal(np.concatenate([b.origin for b in ranks]), one[step].origin)
    cuboids = np.concatenate([b.parts[0].cuboids for b in ranks])
    np.testing.assert_array_equal(cuboids, one[step].parts[0].cuboids)
    far = stream(volume, threads=threads, **options).batch(start * 1000)
    assert np.array_equal(far.origin, stream(volume, **options).batch(start * 1000).origin)


def test_another_seed_and_another_step_draw_others() -> None:
    first = stream(brain()).batch(0).origin
    assert not np.array_equal(first, stream(brain()).batch(1).origin)
    assert not np.array_equal(first, stream(brain(), seed=1).batch(0).origin)


def test_a_stream_goes_on_in_the_middle_from_a_few_integers() -> None:
    source = CountingSource(numbered((16, 32, 24)), fails=((5, 5, 5), (11, 30, 20)))
    options = {"draws_per_chunk": 4 * PER_CHUNK, "memory_bytes": 60_000}
    whole = stream(brain(source=source), **options)
    later = [b.origin for b in whole.batches(0, 300)][150:]
    assert whole.faults
    state = json.loads(json.dumps(whole.state(150)))
    assert len(json.dumps(state)) < 5000
    healed = CountingSource(numbered((16, 32, 24)))  # even if what failed can be read now
    again = stream(brain(source=healed), state=state, **options)
    for a, b in zip(later, again.batches(150, 300), strict=True):
        np.testing.assert_array_equal(a, b.origin)


def test_the_state_of_another_stream_is_refused() -> None:
    state = stream(brain()).state(5)
    with pytest.raises(InputError, match="other brains or settings"):
        stream(brain(), seed=1, state=state)


# ---- the pool -----------------------------------------------------------------------------------


def regions_of(source: CuboidStream, step: int) -> np.ndarray:
    """Which region each cuboid of a step is from."""
    return source._schedule.draws(step, range(source.batch_size)).region


def test_a_batch_draws_from_distinct_regions() -> None:
    source = stream(brain((60, 120, 120)), shape=(3, 6, 6), batch_size=32)
    assert "evenly" not in source.describe()
    for step in range(200):
        assert len(np.unique(regions_of(source, step))) == 32


def test_with_fewer_regions_than_the_batch_it_draws_evenly_and_says_so() -> None:
    source = stream(brain((16, 16, 16)), shape=(2, 3, 3), batch_size=200)
    assert "too few" in source.describe()
    assert "evenly" in source.describe()
    shares = source._schedule._weights
    for step in range(50):
        counts = np.bincount(regions_of(source, step), minlength=len(shares))
        assert np.abs(counts - 200 * shares).max() < 1.001


def test_with_memory_for_fewer_regions_than_the_batch_it_draws_evenly() -> None:
    source = stream(brain((60, 120, 120)), shape=(3, 6, 6), batch_size=60, memory_bytes=250_000)
    slots = source._schedule.n_live
    assert slots < 60
    assert "evenly" in source.describe()
    for step in range(50):
        counts = np.bincount(source._schedule.draws(step, range(60)).slot, minlength=slots)
        assert counts.max() - counts.min() <= 1


@given(
    n=st.integers(1, 400),
    batch_size=st.integers(1, 40),
    most_slots=st.integers(1, 200),
    seed=st.integers(0, 99),
    step=st.integers(0, 10**9),
)
@settings(max_examples=60, deadline=None)
def test_a_region_gives_its_draws_in_a_row_and_goes(n, batch_size, most_slots, seed, step) -> None:
    random = np.random.default_rng(seed)
    weights = random.random(n) + 0.1
    uses = random.integers(1, 9, n)
    schedule = PoolSchedule(
        weights / weights.sum(), uses, batch_size=batch_size, most_slots=most_slots, seed=seed
    )
    last: dict[int, tuple[int, ...]] = {}
    for s in range(step, step + 12):
        draws = schedule.draws(s, range(batch_size))
        if schedule.distinct:
            assert len(np.unique(draws.region)) == batch_size
        assert (draws.number < uses[draws.region]).all()
        columns = (draws.slot, draws.epoch, draws.visit, draws.entry, draws.number)
        for slot, *now in zip(*(c.tolist() for c in columns), strict=True):
            if slot in last and last[slot][:3] == tuple(now[:3]):
                assert now[3] > last[slot][3]
            last[slot] = tuple(now)


def test_a_region_retires_after_its_draws_counted_per_decoded_chunk() -> None:
    shape, chunks = (256, 256, 256), (16, 32, 32)
    per_chunk = 16 * 32 * 32 / 2**20
    source = CountingSource(np.zeros(shape, np.uint16), chunks)
    one = stream(
        brain(source=source),
        shape=(4, 8, 8),
        batch_size=64,
        memory_bytes=8_000_000,
        draws_per_chunk=int(8 / per_chunk),
    )
    batches = one.batches(0, 700)
    for _ in range(200):
        next(batches)
    source.boxes.clear()
    for _ in batches:
        pass
    decoded = sum(
        np.prod([-(-s.stop // c) - s.start // c for s, c in zip(box, chunks, strict=True)])
        for box in source.boxes
    )
    assert 6.5 < 500 * 64 / decoded < 8.8  # 8 draws a chunk; reading ahead adds a few at the end


def test_threads_of_the_process_decode_side_by_side_and_leave_none_behind() -> None:
    before = threading.active_count()
    source = CountingSource(numbered((16, 32, 24)), together=threading.Barrier(2))
    batches = stream(brain(source=source), threads=2, batch_size=16).batches(0, 1000)
    next(batches)
    assert not source.together.broken  # it opened, as it does to two threads at a time only
    source.together.abort()
    assert threading.main_thread().name not in source.threads
    assert not multiprocessing.active_children()
    batches.close()
    assert threading.active_count() == before


def test_a_stream_is_not_used_in_a_fork() -> None:
    source = stream(brain())
    source._pid = os.getpid() + 1  # as it looks from a child; forking here could deadlock torch
    with pytest.raises(RuntimeError, match="after a fork"):
        next(source.batches(0, 1))


@pytest.mark.parametrize(("megabytes", "broken"), [(30, False), (100, False), (100, True)])
def test_memory_keeps_to_the_setting(megabytes: int, broken: bool, monkeypatch) -> None:
    monkeypatch.setattr("cubeclf_core.regions._PAUSES_S", ())

    class Noise(CountingSource):
        def __getitem__(self, key):
            if broken and key[2].start % 384 == 0:
                raise VolumeError("broken")
            return np.full([s.stop - s.start for s in key], 7, np.uint16)

    source = Noise(np.broadcast_to(np.uint16(7), (300, 1500, 1500)), (64, 128, 128))
    one = stream(
        brain(source=source),
        shape=(20, 50, 50),
        batch_size=16,
        memory_bytes=megabytes << 20,
        draws_per_chunk=32,
    )
    tracemalloc.start()
    try:
        for _ in one.batches(0, 150):
            pass
        peak = tracemalloc.get_traced_memory()[1] / (megabytes << 20)
    finally:
        tracemalloc.stop()
    assert 0.6 < peak < 1.2


def test_brains_of_different_size_together_keep_to_the_memory() -> None:
    small, large = brain((40, 100, 100), name="small"), brain((200, 400, 400), name="large")
    source = stream(small, large, weights=[9, 1], memory_bytes=60_000_000, batch_size=16)
    kept = sum(f.tiling.total_voxels * 4 for f in source._regions._fields)
    assert kept > 60_000_000  # on average a region is small, but all together are too much
    assert source._regions._kept is None


def test_buffers_are_given_back_while_one_is_taken() -> None:
    # The garbage collector may end a lease in any allocation, also within `take` itself.
    buffers = Buffers(2)
    cycle: list[object] = [buffers.take((1000,), np.dtype(np.uint8))]
    cycle.append(cycle)
    del cycle
    with buffers._lock:
        gc.collect()
    assert buffers.take((1000,), np.dtype(np.uint8)).shape == (1000,)


def test_a_few_regions_are_all_met_soon() -> None:
    source = stream(brain((40, 200, 200), chunks=(64, 128, 128)), shape=(20, 50, 50))
    met = np.concatenate([regions_of(source, step) for step in range(200)])
    shares = source._schedule._weights
    longest = np.array([np.diff(np.flatnonzero(met == r)).max() for r in range(len(shares))])
    assert (longest < 15 / shares).all()  # in draws; as if each were independent


# ---- faults -------------------------------------------------------------------------------------


def written(tmp_path: Path, chunk=(8, 16, 16), shape=(32, 64, 64)) -> tuple[Path, np.ndarray]:
    array = np.random.default_rng(0).poisson(500, shape).astype(np.uint16)
    write_ome_zarr(tmp_path / "a.ome.zarr", [array], UM, chunks=chunk)
    return tmp_path / "a.ome.zarr", array


def chunk_files(path: Path) -> list[Path]:
    return sorted(file for file in (path / "0" / "c").rglob("*") if file.is_file())


def draw_all(path: Path, shape=(3, 6, 6), steps: int = 60) -> CuboidStream:
    found = Brain("a", open_volume(path), None, ())
    seen = [seen_as(np.ones((1, 1, 1), bool), bright=700)]
    source = stream(found, shape=shape, batch_size=16, surveys=seen)
    for batch in source.batches(0, steps):
        assert batch.parts[0].cuboids.max() < 5000
    return source


def test_a_truncated_chunk_is_replaced_counted_and_kept_in_the_state(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    bad = chunk_files(path)[5]
    bad.write_bytes(bad.read_bytes()[:100])
    source = draw_all(path)
    assert source.faults
    for step in range(100_000, 9_000_000, 100_000):  # it comes again and again, but not in a row
        source.batch(step)
    assert len(source.state(0)["faults"]) > 20
    assert {fault.brain for fault in source.faults} == {"a"}
    assert all("cannot be decoded" in fault.reason for fault in source.faults)


def test_a_chunk_with_impossible_values_is_replaced(tmp_path: Path) -> None:
    path, _ = written(tmp_path, chunk=(16, 64, 64), shape=(64, 192, 192))
    array = zarr.open(path / "0", mode="r+")
    noise = np.random.default_rng(1).integers(0, 65536, (16, 64, 64)).astype(np.uint16)
    array[0, 16:32, 64:128, 64:128] = noise
    source = draw_all(path, shape=(12, 40, 40))
    assert source.faults


def test_a_chunk_that_fails_once_is_read_again() -> None:
    class Hiccup(CountingSource):
        def __getitem__(self, key):
            self.boxes.append(key)
            if len(self.boxes) == 7:
                raise VolumeError("a hiccup")
            return self.array[key]

    source = stream(brain(source=Hiccup(numbered((16, 32, 24)))))
    same_one = stream(brain((16, 32, 24)))
    assert same(source, same_one, 0, 20)
    assert not source.faults


def test_a_missing_chunk_is_the_fill_value(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    for file in chunk_files(path):
        file.unlink()
    source = stream(Brain("a", open_volume(path), None, ()), shape=(3, 6, 6))
    assert not source.batch(0).parts[0].cuboids.any()
    assert not source.faults


def test_a_brain_that_fails_all_the_time_ends_the_stream_clearly() -> None:
    good = brain((16, 32, 24), name="good")
    everywhere = tuple(np.ndindex(16, 32, 24))
    bad = brain(source=CountingSource(numbered((16, 32, 24)), fails=everywhere), name="bad")
    source = stream(good, bad, batch_size=16)
    with pytest.raises(VolumeError, match=r"the last 16 regions of bad .*cannot be decoded"):
        for _ in source.batches(0, 300):
            pass


def test_a_brain_smaller_than_a_cuboid_is_refused() -> None:
    with pytest.raises(VolumeTooSmall, match=r"a has .* needs at least"):
        stream(brain((1, 12, 14)))


def test_the_tensor_of_a_batch_is_a_copy_in_float32() -> None:
    batch = stream(brain(dtype=np.uint16)).batch(0)
    cuboids = to_network(batch, (2, 5, 5))
    assert cuboids.dtype == torch.float32
    cuboids.zero_()
    assert batch.parts[0].cuboids.any()
