from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cubeclf_core.candidates import read_all_candidates, read_candidates
from cubeclf_core.errors import VolumeTooSmall
from cubeclf_core.geometry import source_shape, starts_around
from cubeclf_core.resample import resample
from cubeclf_core.volumes import ArraySource, Volume

UM = (5.0, 1.0, 1.0)
CUBOID = (4, 10, 10)


def volume_of(shape: tuple[int, int, int], channels: int = 1, um=UM, chunks=(8, 16, 16)) -> Volume:
    n = int(np.prod(shape))
    arrays = [
        np.arange(c * n, (c + 1) * n, dtype=np.float32).reshape(shape) for c in range(channels)
    ]
    return Volume("v", tuple(ArraySource(array, chunks) for array in arrays), um)


def cellfinder_start(position: float, n: int, axis: str) -> int:
    """The rule as cellfinder states it, one coordinate at a time."""
    return int(position - n // 2) if axis == "z" else round(position - n / 2)


@given(
    st.lists(st.tuples(*[st.integers(0, 500)] * 3), min_size=1, max_size=20),
    st.tuples(*[st.integers(1, 60)] * 3),
)
def test_cuboids_are_centred_as_cellfinder_does(positions, shape) -> None:
    starts = starts_around(np.array(positions, np.float64), shape)
    expected = [
        [cellfinder_start(p, n, axis) for p, n, axis in zip(position, shape, "zyx", strict=True)]
        for position in positions
    ]
    np.testing.assert_array_equal(starts, expected)


def test_source_shape_follows_the_voxel_size() -> None:
    assert source_shape((20, 50, 50), UM, volume_of((20, 50, 50))) == (20, 50, 50)
    cfos = volume_of((17, 31, 31), um=(6.0, 1.62, 1.62))
    assert source_shape((20, 50, 50), UM, cfos) == (17, 31, 31)
    with pytest.raises(VolumeTooSmall, match=r"\(20, 50, 50\)"):
        source_shape((20, 50, 50), UM, volume_of((19, 50, 50)))


def test_resampling_is_trilinear_and_skipped_where_shapes_agree() -> None:
    raw = np.random.default_rng(0).integers(0, 60000, (2, 1, 4, 6, 6)).astype(np.uint16)
    np.testing.assert_array_equal(resample(raw, (4, 6, 6)).numpy(), raw.astype(np.float32))
    expected = F.interpolate(torch.from_numpy(raw.astype(np.float32)), (8, 9, 9), mode="trilinear")
    torch.testing.assert_close(resample(raw, (8, 9, 9)), expected)


@given(
    st.lists(
        st.tuples(st.integers(0, 11), st.integers(0, 39), st.integers(0, 49)),
        min_size=1,
        max_size=30,
    ),
    st.integers(1, 7),
)
def test_every_candidate_gets_its_cuboid_in_the_callers_order(positions, batch_size: int) -> None:
    shape = (12, 40, 50)
    volume = volume_of(shape, channels=2)
    at = np.array(positions, np.float64)
    whole = volume.read((0, 0, 0), shape)
    margin = [(0, 0), *((n, n) for n in CUBOID)]
    padded = np.pad(whole, margin, mode="reflect")
    starts = starts_around(at, CUBOID)
    found = np.full(len(at), False)
    for part in read_candidates(
        volume, at, shape=CUBOID, voxel_size_um=UM, n_channels=2, batch_size=batch_size
    ):
        assert len(part.index) <= batch_size
        for row, cuboid, flag in zip(part.index, part.cuboids.numpy(), part.padded, strict=True):
            assert not found[row]
            found[row] = True
            z, y, x = starts[row] + CUBOID
            expected = padded[:, z : z + CUBOID[0], y : y + CUBOID[1], x : x + CUBOID[2]]
            np.testing.assert_array_equal(cuboid, expected)
            inside = (starts[row] >= 0).all() and (starts[row] + CUBOID <= shape).all()
            assert flag == (not inside)
    assert found.all()


def test_candidates_of_other_voxels_are_resampled() -> None:
    volume = volume_of((12, 40, 50), um=(10.0, 2.0, 2.0))
    at = np.array([[6.0, 20, 25]])
    found = read_all_candidates(volume, at, shape=CUBOID, voxel_size_um=UM, n_channels=1)
    raw = volume.read((5, 18, 22), (7, 23, 27))[None]  # 2×5×5 voxels of twice the size
    torch.testing.assert_close(found.cuboids, resample(raw, CUBOID))
