from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cubeclf_core.tiles import choose_tiling, tile_axis


@given(
    n_voxels=st.integers(1, 300),
    chunk=st.integers(1, 90),
    extent=st.integers(1, 60),
    span=st.integers(1, 200),
)
def test_every_origin_is_in_one_tile_and_its_cuboid_in_the_tiles_voxels(
    n_voxels, chunk, extent, span
) -> None:
    extent = min(extent, n_voxels)
    tiles = tile_axis(n_voxels, chunk, extent, span)
    covered = [np.arange(a, b) for a, b in zip(tiles.start, tiles.stop, strict=True)]
    np.testing.assert_array_equal(np.concatenate(covered), np.arange(n_voxels - extent + 1))
    assert (tiles.start + tiles.voxels <= n_voxels).all()
    last = tiles.start + tiles.voxels - 1
    chunks = last // chunk - tiles.start // chunk + 1
    np.testing.assert_array_equal(tiles.decoded, chunks * chunk)
    longest = max(chunk if chunk <= span else 0, span, 2 * extent - 1)
    assert tiles.voxels.max() <= longest


def test_cuboids_inside_a_chunk_need_only_that_one() -> None:
    tiles = tile_axis(640, chunk=64, extent=20, span=64)
    inside = tiles.start % 64 == 0
    assert (tiles.decoded[inside] == 64).all()
    assert (tiles.decoded[~inside] == 128).all()
    assert (tiles.voxels[~inside] == 38).all()  # not all of the two chunks is kept


def test_tiles_are_as_large_as_memory_and_their_number_allow() -> None:
    brain, chunk, extent = (2000, 8000, 6000), (64, 128, 128), (20, 50, 50)
    spent = []
    for gigabytes in (0.5, 1, 4, 16):
        tiling = choose_tiling(
            brain, chunk, extent, voxel_bytes=4, pool_bytes=int(gigabytes * 1e9), wanted=256
        )
        spent.append(256 * tiling.mean_voxels * 4 / 1e9)
    assert spent == sorted(spent)
    assert 0.5 < spent[0] < 1  # chunks are the least that can be decoded
    assert all(0.4 * g < s <= g for g, s in zip((1, 4, 16), spent[1:], strict=True))
    few = choose_tiling(
        (200, 256, 256), chunk, extent, voxel_bytes=4, pool_bytes=10**10, wanted=256
    )
    assert np.prod(few.shape) == 6 * 3 * 3  # the smallest: blocks of one chunk


def test_whole_planes_are_kept_in_part() -> None:
    tiling = choose_tiling(
        (300, 5000, 4000),
        (1, 5000, 4000),
        (20, 50, 50),
        voxel_bytes=2,
        pool_bytes=10**9,
        wanted=256,
    )
    assert tiling.mean_voxels * 2 * 256 < 10**9
