from __future__ import annotations

import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cubeclf_core import candidates
from cubeclf_core.candidate_plan import reflect
from cubeclf_core.candidates import read_all_candidates, read_candidates, read_raw_candidates
from cubeclf_core.errors import VolumeError, VolumeTooSmall
from cubeclf_core.geometry import starts_around
from cubeclf_core.resample import resample
from cubeclf_core.volumes import ArraySource, Volume

UM = (5.0, 1.0, 1.0)


class Counting(ArraySource):
    """Counts how often each of its chunks is decoded."""

    counts: Counter[tuple[int, ...]]

    def __getitem__(self, key):
        touched = (
            range(s.start // c, -(-s.stop // c)) for s, c in zip(key, self.chunks, strict=True)
        )
        with LOCK:
            self.counts.update(product(*touched))
        return super().__getitem__(key)


LOCK = threading.Lock()


def counting(array: np.ndarray, chunks: tuple[int, int, int]) -> Counting:
    source = Counting(array, chunks)
    object.__setattr__(source, "counts", Counter())
    return source


def random_volume(shape, chunks, dtype="uint16", channels: int = 1, seed: int = 0) -> Volume:
    random = np.random.default_rng(seed)
    arrays = [random.integers(0, 256, shape).astype(dtype) for _ in range(channels)]
    return Volume("v", tuple(counting(array, chunks) for array in arrays), UM)


def anywhere(volume: Volume, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, np.array(volume.shape) - 1, (n, 3))


def padded_cuts(volume: Volume, positions: np.ndarray, shape) -> tuple[np.ndarray, np.ndarray]:
    """The cuboids cut out of the whole volume, reflected by numpy, and which needed that."""
    whole = volume.read((0, 0, 0), volume.shape)
    wide = np.pad(whole, [(0, 0), *((n, n) for n in shape)], mode="reflect")
    starts = starts_around(positions, shape)
    cuts = [wide[(slice(None), *map(slice, s + shape, s + 2 * np.array(shape)))] for s in starts]
    inside = (starts >= 0) & (starts + shape <= volume.shape)
    return np.array(cuts), ~inside.all(axis=1)


@pytest.fixture
def by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read each chunk by itself, however small, so that small volumes have many of them."""
    monkeypatch.setattr(candidates, "_CELL", (1, 1, 1))


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[Any, ...], np.ndarray, tuple[int, int, int]]:
    """Arguments of a volume, positions in it, and the shape of cuboids that it has room for."""

    def sizes(most: tuple[int, ...]) -> tuple[int, int, int]:
        z, y, x = (draw(st.integers(1, n)) for n in most)
        return z, y, x

    shape = sizes((12, 30, 40))
    channels = draw(st.integers(1, 2))
    dtype = draw(st.sampled_from(["uint8", "uint16", "float32"]))
    chunks = sizes((12, 30, 40))
    position = st.tuples(*(st.integers(-1, 2 * n - 1).map(lambda half: half / 2) for n in shape))
    positions = draw(st.lists(position, min_size=1, max_size=40))
    repeated = positions + draw(st.lists(st.sampled_from(positions), max_size=5))
    return (shape, chunks, dtype, channels), np.array(repeated), sizes(shape)


@pytest.mark.usefixtures("by_chunk")
@given(cases(), st.integers(1, 9), st.integers(100, 100_000), st.integers(1, 3))
def test_cuboids_are_those_of_the_volume_reflected_at_its_border(
    case, batch_size: int, memory_bytes: int, threads: int
) -> None:
    arguments, positions, shape = case
    volume = random_volume(*arguments)
    cuts, outside = padded_cuts(volume, positions, shape)
    options = {"shape": shape, "voxel_size_um": UM, "n_channels": volume.n_channels}
    options |= {"memory_bytes": memory_bytes, "threads": threads}
    found = []
    for part in read_raw_candidates(volume, positions, batch_size=batch_size, **options):
        assert part.cuboids.numpy().dtype == volume.dtype
        assert 0 < len(part.index) == len(part.cuboids) <= batch_size
        np.testing.assert_array_equal(part.cuboids, cuts[part.index])
        np.testing.assert_array_equal(part.padded, outside[part.index])
        found += part.index.tolist()
    assert sorted(found) == list(range(len(positions)))
    in_order = read_all_candidates(volume, positions, **options)
    assert in_order.cuboids.dtype == torch.float32
    np.testing.assert_array_equal(in_order.index, np.arange(len(positions)))
    np.testing.assert_array_equal(in_order.cuboids, cuts)
    np.testing.assert_array_equal(in_order.padded, outside)


CHUNKS = st.sampled_from([(8, 16, 16), (1, 96, 128), (4, 128, 8), (64, 96, 128), (16, 10, 30)])


@pytest.mark.parametrize("small", [False, True], ids=["in cells", "by chunk"])
@given(chunks=CHUNKS, n=st.integers(1, 150), seed=st.integers(0, 9))
def test_a_chunk_is_decoded_once_if_someone_needs_it(small: bool, chunks, n, seed) -> None:
    volume = random_volume((64, 96, 128), chunks, channels=2)
    positions, shape = anywhere(volume, n, seed), (6, 11, 12)
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(candidates, "_CELL", (1, 1, 1))
        read_all_candidates(volume, positions, shape=shape, voxel_size_um=UM, n_channels=2)
    starts = starts_around(positions, shape)
    low = np.clip(starts, 0, None)
    high = np.minimum(starts + shape, volume.shape)
    needed: set[tuple[int, ...]] = set()
    for a, b in zip(low // chunks, -(-high // chunks), strict=True):
        needed.update(product(*map(range, a, b)))
    for channel in volume.channels:
        assert isinstance(channel, Counting)
        assert set(channel.counts.values()) == {1}
        if small:
            assert set(channel.counts) >= needed
        assert len(channel.counts) <= np.prod([-(-64 // chunks[0]), -(-96 // chunks[1]), 99])


@pytest.mark.usefixtures("by_chunk")
def test_a_chunk_is_decoded_about_once_where_memory_is_tight() -> None:
    volume = random_volume((256, 256, 256), (16, 16, 16), "uint8")
    positions, shape = anywhere(volume, 8000), (14, 14, 14)
    assert len(positions) * np.prod(shape) > 20_000_000
    parts = read_raw_candidates(
        volume, positions, shape=shape, voxel_size_um=UM, n_channels=1, memory_bytes=4_000_000
    )
    assert sum(len(part.index) for part in parts) == len(positions)
    (channel,) = volume.channels
    assert isinstance(channel, Counting)
    assert len(channel.counts) == 16**3
    decodes = channel.counts.total() / len(channel.counts)
    assert 1.0 < decodes <= 1.3


@pytest.mark.usefixtures("by_chunk")
@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param((16, 64, 64), marks=pytest.mark.slow),
        pytest.param((8, 256, 256), marks=pytest.mark.slow),
        (32, 128, 256),
    ],
)
def test_memory_keeps_to_its_setting(chunks) -> None:
    volume = random_volume((32, 256, 256), chunks, "uint8")
    positions, shape = anywhere(volume, 1500), (10, 20, 40)
    assert len(positions) * np.prod(shape) == 12_000_000

    def peak(memory_bytes: int) -> int:
        options = {"shape": shape, "voxel_size_um": UM, "n_channels": 1}
        tracemalloc.start()
        try:
            for _ in read_raw_candidates(volume, positions, memory_bytes=memory_bytes, **options):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1_000_000)  # what is allocated once and for all
    assert peak(3_000_000) <= 1.2 * 3_000_000 < peak(8_000_000) <= 8_000_000


@given(st.integers(1, 70), st.integers(1, 4), st.sampled_from([1 << 16, 1 << 30]))
def test_what_is_read_does_not_depend_on_threads(batch_size: int, threads: int, memory) -> None:
    volume = random_volume((24, 60, 70), (5, 20, 20), channels=2)
    options = {"shape": (4, 10, 10), "voxel_size_um": UM, "n_channels": 2}
    options |= {"batch_size": batch_size, "memory_bytes": memory}
    positions = anywhere(volume, 100)
    runs = [list(read_candidates(volume, positions, threads=n, **options)) for n in (threads, 1)]
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a.index, b.index)
        np.testing.assert_array_equal(a.padded, b.padded)
        assert torch.equal(a.cuboids, b.cuboids)


def test_candidates_of_other_voxels_are_resampled() -> None:
    volume = Volume("v", random_volume((20, 60, 60), (8, 16, 16)).channels, (5.0, 2.0, 2.0))
    positions = anywhere(volume, 30)
    shape, own_shape = (6, 20, 20), (6, 10, 10)
    cuts, _ = padded_cuts(volume, positions, own_shape)
    found = read_all_candidates(volume, positions, shape=shape, voxel_size_um=UM, n_channels=1)
    torch.testing.assert_close(found.cuboids, resample(cuts, shape))


def test_no_candidates_give_no_cuboids() -> None:
    volume, none = random_volume((4, 8, 8), (4, 8, 8)), np.empty((0, 3))
    options = {"shape": (2, 4, 4), "voxel_size_um": UM, "n_channels": 1}
    assert list(read_candidates(volume, none, **options)) == []
    assert read_all_candidates(volume, none, **options).cuboids.shape == (0, 1, 2, 4, 4)


def test_a_volume_smaller_than_a_cuboid_is_refused_at_once() -> None:
    volume = random_volume((4, 8, 8), (4, 8, 8))
    with pytest.raises(VolumeTooSmall, match=r"\(5, 4, 4\)"):
        read_candidates(
            volume, np.array([[2.0, 4, 4]]), shape=(5, 4, 4), voxel_size_um=UM, n_channels=1
        )


def readers() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith("candidates")}


def reading(volume: Volume) -> Iterator[candidates.CandidateCuboids]:
    return read_candidates(
        volume,
        anywhere(volume, 500),
        shape=(4, 10, 10),
        voxel_size_um=UM,
        n_channels=1,
        batch_size=8,
    )


@pytest.mark.usefixtures("by_chunk")
def test_an_abandoned_iteration_leaves_no_threads() -> None:
    volume = random_volume((32, 60, 60), (4, 10, 10))
    parts = reading(volume)
    next(parts)
    assert readers()
    del parts
    assert not readers()
    (channel,) = volume.channels
    assert isinstance(channel, Counting)
    assert channel.counts.total() < 8 * 6 * 6  # it stopped where it was

    for _ in reading(volume):
        break
    assert not readers()
    assert list(reading(volume))
    assert not readers()


@pytest.mark.usefixtures("by_chunk")
def test_an_error_of_a_decoding_thread_is_raised_as_it_is() -> None:
    class Broken(ArraySource):
        def __getitem__(self, key):
            if key[0].start >= 16:
                raise VolumeError("v: a chunk cannot be decoded")
            return super().__getitem__(key)

    volume = Volume("v", (Broken(np.zeros((32, 60, 60), np.uint16), (4, 10, 10)),), UM)
    with pytest.raises(VolumeError, match="a chunk cannot be decoded"):
        list(reading(volume))
    assert not readers()


class Broken(ArraySource):
    """Cannot decode some of its chunks."""

    broken: frozenset[tuple[int, ...]]

    def __getitem__(self, key):
        touched = (
            range(s.start // c, -(-s.stop // c)) for s, c in zip(key, self.chunks, strict=True)
        )
        for chunk in product(*touched):
            if chunk in self.broken:
                raise VolumeError(f"chunk {chunk} is broken")
        return super().__getitem__(key)


@given(cases(), st.integers(1, 9), st.data())
def test_candidates_in_broken_chunks_are_flagged_and_no_others(case, batch_size: int, data) -> None:
    """Although several chunks are read at a time, where they are small."""
    (dims, chunks, dtype, _), positions, shape = case
    array = np.random.default_rng(0).integers(0, 256, dims).astype(dtype)
    every = list(product(*(range(-(-n // c)) for n, c in zip(dims, chunks, strict=True))))
    broken = frozenset(data.draw(st.lists(st.sampled_from(every), max_size=3)))
    source = Broken(array, chunks)
    object.__setattr__(source, "broken", broken)
    volume, whole = Volume("v", (source,), UM), Volume("v", (ArraySource(array, chunks),), UM)
    cuts, _ = padded_cuts(whole, positions, shape)
    told: list[str] = []
    options = {"shape": shape, "voxel_size_um": UM, "n_channels": 1, "batch_size": batch_size}
    parts = list(read_raw_candidates(volume, positions, on_fault=told.append, **options))
    unread = np.zeros(len(positions), bool)
    for part in parts:
        unread[part.index] = part.unread
        good = ~part.unread
        np.testing.assert_array_equal(part.cuboids[torch.from_numpy(good)], cuts[part.index[good]])
    needed = []
    for start in starts_around(positions, shape):
        voxels = [
            np.unique(reflect(s + np.arange(n), size) // c)
            for s, n, size, c in zip(start, shape, dims, chunks, strict=True)
        ]
        spans = [range(v.min(), v.max() + 1) for v in voxels]  # what lies between is read too
        needed.append(not broken.isdisjoint(product(*spans)))
    np.testing.assert_array_equal(unread, needed)
    assert bool(told) == bool(unread.any())
    if unread.any():
        with pytest.raises(VolumeError, match="is broken"):
            list(read_raw_candidates(volume, positions, **options))


class Failing(Counting):
    """Cannot decode its first chunk, so many times."""

    fails: list[int]

    def __getitem__(self, key):
        box = super().__getitem__(key)
        if self.fails[0] and all(s.start < c for s, c in zip(key, self.chunks, strict=True)):
            self.fails[0] -= 1
            raise VolumeError("the first chunk is broken")
        return box


def failing(n: int) -> tuple[Volume, Failing, np.ndarray]:
    """A volume of two chunks whose first fails `n` times, and many positions in it."""
    source = Failing(np.ones((20, 60, 200), np.uint16), (20, 60, 100))
    object.__setattr__(source, "counts", Counter())
    object.__setattr__(source, "fails", [n])
    volume = Volume("v", (source,), UM)
    return volume, source, anywhere(volume, 300)


@pytest.mark.parametrize("cell", [(1, 1, 1), (20, 60, 200)])  # the chunks one by one, and together
def test_a_broken_chunk_is_not_decoded_again_for_each_of_its_candidates(
    cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "_CELL", cell)
    volume, source, positions = failing(1_000_000)
    told: list[str] = []
    options = {"shape": (8, 20, 20), "voxel_size_um": UM, "n_channels": 1}
    parts = list(read_raw_candidates(volume, positions, on_fault=told.append, **options))
    assert sum(int(part.unread.sum()) for part in parts) > 100
    assert told == ["the first chunk is broken"]
    assert max(source.counts.values()) <= 3


def test_what_is_read_the_second_time_is_no_fault(by_chunk: None) -> None:
    volume, _, positions = failing(1)
    told: list[str] = []
    options = {"shape": (8, 20, 20), "voxel_size_um": UM, "n_channels": 1}
    parts = list(read_raw_candidates(volume, positions, on_fault=told.append, **options))
    assert told == []
    assert not any(part.unread.any() for part in parts)
    assert all((part.cuboids == 1).all() for part in parts)


def test_a_value_that_is_not_finite_costs_those_alone_that_hold_it() -> None:
    array = np.ones((20, 60, 200), np.float32)
    array[10, 30, 50] = np.nan
    volume = Volume("v", (counting(array, (20, 60, 100)),), UM)
    positions = anywhere(volume, 300)
    told: list[str] = []
    options = {"shape": (8, 20, 20), "voxel_size_um": UM, "n_channels": 1}
    unread = np.zeros(300, bool)
    for part in read_raw_candidates(volume, positions, on_fault=told.append, **options):
        unread[part.index] = part.unread
        assert np.isfinite(part.cuboids.numpy()).all()
    cuts, _ = padded_cuts(
        Volume("v", (ArraySource(np.nan_to_num(array)),), UM), positions, (8, 20, 20)
    )
    held = (cuts == 0).any(axis=(1, 2, 3, 4))
    assert held.any()
    assert unread[held].all()
    assert unread.sum() < 60  # reflected ones may have had it read beside them
    assert "not finite" in told[0]


def test_which_cuboids_come_together_depends_on_no_thread() -> None:
    """Even where memory is so short that threads could not all have their chunk."""
    volume = random_volume((40, 300, 300), (16, 32, 32))
    positions = anywhere(volume, 500)
    options = {"shape": (8, 20, 20), "voxel_size_um": UM, "n_channels": 1, "memory_bytes": 400_000}
    together = [
        sorted(
            tuple(part.index.tolist())
            for part in read_raw_candidates(volume, positions, threads=threads, **options)
        )
        for threads in (1, 3, 16)
    ]
    assert together[0] == together[1] == together[2]
