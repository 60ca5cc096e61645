from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cubeclf_core.errors import InputError, VolumeError
from cubeclf_core.levels import block_means
from cubeclf_core.pyramid import INNER_CHUNKS, SHARDS, write_ome_zarr
from cubeclf_core.volumes import open_volume

UM = (5.0, 2.0, 2.0)
DTYPES = ("uint8", "uint16", "float32")


def noise(shape: tuple[int, ...], dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) * 250).astype(dtype)


def levels_of(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    group = zarr.open_group(path, mode="r")
    attributes: Any = dict(group.attrs)
    ome = attributes.get("ome", attributes)
    return ome, [np.asarray(group[d["path"]][...]) for d in ome["multiscales"][0]["datasets"]]


def any_bits(shape: tuple[int, ...], dtype: str, seed: int, share: float) -> np.ndarray:
    """All that can be stored: zeros and, as floats, NaN, infinities and -0 too."""
    rng = np.random.default_rng(seed)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    array = np.frombuffer(rng.bytes(size), dtype).reshape(shape).copy()
    array[rng.random(shape) >= share] = -0.0 if dtype == "float32" and seed % 2 else 0
    return array


def naive_means(array: np.ndarray, step: tuple[int, ...]) -> np.ndarray:
    """Mean of each block of z y x voxels, one by one."""
    shape = [-(-n // s) for n, s in zip(array.shape, step, strict=True)]
    means = np.empty(shape)
    for corner in np.ndindex(*shape):
        means[corner] = array[
            tuple(slice(i * s, (i + 1) * s) for i, s in zip(corner, step, strict=True))
        ].mean()
    return means


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_pyramid_is_of_means_and_says_where_its_voxels_lie(tmp_path: Path, dtype: str) -> None:
    array = noise((21, 130, 301), dtype)
    out = tmp_path / "a.ome.zarr"
    write_ome_zarr(out, [array], UM, chunks=(8, 32, 64))
    ome, levels = levels_of(out)
    np.testing.assert_array_equal(levels[0][0], array, strict=True)
    steps = [(1, 2, 2), (2, 2, 2)]  # z is coarse at first
    assert len(levels) == 3
    for finer, coarser, step in zip(levels[:-1], levels[1:], steps, strict=True):
        means = naive_means(finer[0].astype(float), step)
        if dtype != "float32":
            means = np.floor(means + 0.5)
        np.testing.assert_allclose(coarser[0], means, rtol=1e-6)
        assert coarser.dtype == array.dtype
    transforms = [d["coordinateTransformations"] for d in ome["multiscales"][0]["datasets"]]
    assert [[t["type"] for t in pair] for pair in transforms] == [["scale", "translation"]] * 3
    assert [s["scale"] for s, _ in transforms] == [[1, 5, 2, 2], [1, 5, 4, 4], [1, 10, 8, 8]]
    assert [t["translation"] for _, t in transforms] == [
        [0, 0, 0, 0],
        [0, 0, 1, 1],
        [0, 2.5, 3, 3],
    ]


def test_a_dask_array_is_written_as_it_is(tmp_path: Path) -> None:
    array = noise((30, 40, 50))
    lazy = dask.array.from_array(array, chunks=(7, 11, 13))
    write_ome_zarr(tmp_path / "a.ome.zarr", [lazy], UM, chunks=(8, 16, 16))
    np.testing.assert_array_equal(levels_of(tmp_path / "a.ome.zarr")[1][0][0], array)


def sides(most: int) -> st.SearchStrategy[tuple[int, int, int]]:
    return st.tuples(*[st.integers(1, most)] * 3)


@settings(max_examples=12)
@given(
    shape=sides(30),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(["0.4", "plain", "sharded"]),
    chunks=sides(12),
    read=sides(50),
    per_shard=sides(3),
    memory=st.integers(12, 20),
    seed=st.integers(0, 2**32),
    share=st.sampled_from([0, 0.01, 1]),
)
def test_level_0_is_the_input_bit_by_bit(
    shape: tuple[int, int, int],
    dtype: str,
    layout: str,
    chunks: tuple[int, int, int],
    read: tuple[int, int, int],
    per_shard: tuple[int, int, int],
    memory: int,
    seed: int,
    share: float,
) -> None:
    array = any_bits(shape, dtype, seed, share)
    lazy = dask.array.from_array(array, chunks=tuple(map(min, read, shape)), name=False)
    shards = tuple(c * n for c, n in zip(chunks, per_shard, strict=True))
    options: dict[str, Any] = {
        "0.4": {"ome_version": "0.4"},
        "plain": {},
        "sharded": {"shards": shards},
    }[layout]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.ome.zarr"
        try:  # in as many parts as there can be
            write_ome_zarr(path, [lazy], UM, chunks=chunks, memory_bytes=2**memory, **options)
        except InputError:
            write_ome_zarr(path, [lazy], UM, chunks=chunks, **options)
        _, levels = levels_of(path)
    found = levels[0][0]
    assert (found.shape, found.dtype) == (array.shape, array.dtype)
    assert found.tobytes() == array.tobytes()


@given(
    shape=sides(9),
    dtype=st.sampled_from(DTYPES),
    step=st.tuples(*[st.integers(1, 2)] * 3),
    seed=st.integers(0, 2**32),
)
def test_a_block_has_one_mean_in_whatever_box(
    shape: tuple[int, int, int], dtype: str, step: tuple[int, int, int], seed: int
) -> None:
    array = any_bits(shape, dtype, seed, 1)
    means = block_means(array, step)
    for corner in np.ndindex(means.shape):
        box = tuple(slice(i * s, (i + 1) * s) for i, s in zip(corner, step, strict=True))
        assert block_means(array[box], step).tobytes() == means[corner].tobytes()


def test_too_little_memory_says_how_much_it_takes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"leaves 0.00 GB .* raise it by 0.1"):
        write_ome_zarr(tmp_path / "a.ome.zarr", [noise((70, 600, 600))], UM, memory_bytes=1e6)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shards", [None, SHARDS])
def test_a_flipped_byte_is_an_error(tmp_path: Path, shards: tuple[int, int, int] | None) -> None:
    out = tmp_path / "a.ome.zarr"
    write_ome_zarr(out, [noise((40, 70, 80))], UM, chunks=INNER_CHUNKS, shards=shards)
    file = out / "0" / "c" / "0" / "0" / "0" / "0"
    whole = file.read_bytes()
    volume = open_volume(out)
    intact = volume.read((0, 0, 0), volume.shape)
    for at in np.linspace(0, len(whole) - 1, 50).astype(int):  # in a shard's index, too
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(VolumeError, match=r"a\.ome\.zarr"):
            open_volume(out).read((0, 0, 0), volume.shape)
    file.write_bytes(whole)
    np.testing.assert_array_equal(open_volume(out).read((0, 0, 0), volume.shape), intact)


def test_small_levels_have_small_chunks_and_shards(tmp_path: Path) -> None:
    out = tmp_path / "a.ome.zarr"
    write_ome_zarr(out, [noise((40, 70, 1100))], UM, chunks=INNER_CHUNKS, shards=SHARDS)
    arrays = [zarr.open_array(out / str(level), mode="r") for level in range(5)]
    assert [array.shape[1:] for array in arrays[:2]] == [(40, 70, 1100), (40, 35, 550)]
    assert [array.chunks[1:] for array in arrays[:2]] == [(32, 64, 64), (32, 35, 64)]
    assert [array.shards[1:] for array in arrays[:2] if array.shards] == [
        (32, 128, 1024),
        (32, 35, 576),
    ]
    assert (arrays[4].shape[1:], arrays[4].chunks[1:]) == ((5, 5, 69), (5, 5, 64))
    assert arrays[4].shards == (1, 5, 5, 128)


def test_version_04_is_zarr_v2_with_its_metadata_at_the_top(tmp_path: Path) -> None:
    array = noise((21, 130, 301))
    out = tmp_path / "a.ome.zarr"
    write_ome_zarr(out, [array, array + 1], UM, chunks=(8, 32, 64), ome_version="0.4")
    assert json.loads((out / ".zgroup").read_text()) == {"zarr_format": 2}
    about = json.loads((out / ".zattrs").read_text())
    assert set(about) == {"multiscales", "omero"}
    (image,) = about["multiscales"]
    assert (image["version"], image["name"]) == ("0.4", "a")
    assert [axis["name"] for axis in image["axes"]] == ["c", "z", "y", "x"]
    assert {axis.get("unit") for axis in image["axes"][1:]} == {"micrometer"}
    assert [d["path"] for d in image["datasets"]] == ["0", "1", "2"]
    assert [c["label"] for c in about["omero"]["channels"]] == ["signal", "background"]
    stored = json.loads((out / "0" / ".zarray").read_text())
    assert (stored["zarr_format"], stored["dimension_separator"]) == (2, "/")
    assert (stored["dtype"], stored["chunks"]) == ("<u2", [1, 8, 32, 64])
    assert (stored["compressor"]["id"], stored["compressor"]["cname"]) == ("blosc", "zstd")
    assert (out / "0" / "1" / "2" / "4" / "4").is_file()
    volume = open_volume(out)
    assert volume.voxel_size_um == UM
    np.testing.assert_array_equal(volume.read((0, 0, 0), volume.shape), [array, array + 1])
