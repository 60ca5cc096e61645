from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cubeclf_core.brains import Brain
from cubeclf_core.cells import Cells
from cubeclf_core.chunk_cache import ChunkCache
from cubeclf_core.errors import VolumeTooSmall
from cubeclf_core.stream import CuboidStream
from cubeclf_core.volumes import ArraySource, Volume

UM = (5.0, 1.0, 1.0)


def brain(shape=(6, 12, 14), cells: Cells | None = None, um=UM, name: str = "a") -> Brain:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return Brain(name, Volume(name, (ArraySource(array, (4, 8, 8)),), um), cells, ())


def stream(
    *brains: Brain, shape=(2, 5, 5), batch_size: int = 8, seed: int = 0, **options
) -> CuboidStream:
    return CuboidStream(
        brains,
        shape=shape,
        voxel_size_um=UM,
        n_channels=1,
        batch_size=batch_size,
        seed=seed,
        **options,
    )


def test_cuboids_are_what_the_volume_holds_at_their_origin() -> None:
    batch = stream(brain()).batch(3)
    whole = brain().volume.read((0, 0, 0), (6, 12, 14))
    for cuboid, (z, y, x) in zip(batch.cuboids.numpy(), batch.origin, strict=True):
        np.testing.assert_array_equal(cuboid, whole[:, z : z + 2, y : y + 5, x : x + 5])


def test_a_step_is_a_pure_function_of_seed_and_step() -> None:
    first = [batch.cuboids for batch in stream(brain()).batches(0, 6)]
    later = [batch.cuboids for batch in stream(brain()).batches(4, 6, ahead=1)]
    assert all(map(torch.equal, first[4:], later))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], stream(brain(), seed=1).batch(0).cuboids)


def test_every_origin_is_drawn_equally_often() -> None:
    source = stream(brain(), batch_size=500)
    origins = np.concatenate([source.batch(step).origin for step in range(40)])
    counts = np.zeros((5, 8, 10))
    np.add.at(counts, tuple(origins.T), 1)
    expected = len(origins) / counts.size
    chi_square = ((counts - expected) ** 2 / expected).sum() / (counts.size - 1)
    assert 0.85 < chi_square < 1.15  # 1 ± 3.2 standard deviations


def test_candidates_are_inside_their_cuboids() -> None:
    cells = Cells(np.array([[3.0, 6, 7], [0, 0, 0]]), np.array([2, 1]))
    batch = stream(brain(cells=cells), batch_size=50, candidate_share=1.0, jitter_um=0.0).batch(0)
    around = {tuple(origin) for origin in batch.origin.tolist()}
    assert around == {(2, 4, 4), (0, 0, 0)}  # half to even for y and x; moved in from the border


def test_brains_of_other_voxels_are_resampled_and_mixed() -> None:
    coarse = brain(um=(10.0, 2.0, 2.0), name="b")
    batch = stream(brain(), coarse, batch_size=40).batch(0)
    assert set(batch.brain) == {0, 1}
    assert batch.cuboids.shape == (40, 1, 2, 5, 5)
    assert torch.isfinite(batch.cuboids).all()


def test_volume_smaller_than_a_cuboid_is_refused() -> None:
    with pytest.raises(VolumeTooSmall):
        stream(brain(), shape=(7, 5, 5))


@given(st.data())
def test_chunk_cache_reads_what_the_volume_holds(data: st.DataObject) -> None:
    volume = brain().volume
    cache = ChunkCache(volume, 1, data.draw(st.sampled_from([0, 3000, 10**9])))
    for _ in range(4):
        start = np.array([data.draw(st.integers(0, n - 1)) for n in volume.shape])
        stop = np.array(
            [data.draw(st.integers(a + 1, n)) for a, n in zip(start, volume.shape, strict=True)]
        )
        np.testing.assert_array_equal(cache.read(start, stop), volume.read(start, stop))


def test_chunk_cache_decodes_once_and_keeps_to_its_bytes() -> None:
    reads: list[object] = []

    class Counting(ArraySource):
        def __getitem__(self, key):
            reads.append(key)
            return super().__getitem__(key)

    array = np.zeros((8, 16, 16), np.float32)
    volume = Volume("v", (Counting(array, (4, 8, 8)),), UM)
    whole = np.array([0, 0, 0]), np.array([8, 16, 16])
    roomy, tight = ChunkCache(volume, 1, 1 << 20), ChunkCache(volume, 1, 1024)
    roomy.read(*whole), roomy.read(*whole)
    assert len(reads) == 8
    tight.read(*whole), tight.read(*whole)
    assert len(reads) == 24
