import asyncio
import itertools
import math
import shutil
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec

from cubeclf_core import sources
from cubeclf_core.errors import VolumeError, VoxelSizeMissing
from cubeclf_core.volumes import ArraySource, Volume, open_volume

SHAPE = (12, 20, 30)
UM = (5.0, 2.0, 2.0)


def noise(shape: tuple[int, ...] = SHAPE, dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape).astype(dtype)


def whole(volume: Volume) -> np.ndarray:
    return volume.read((0, 0, 0), volume.shape)


def in_a_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def write_planes(folder: Path, array: np.ndarray, name: str = "plane{}.tif", **how: Any) -> Path:
    folder.mkdir(parents=True)
    for z, plane in enumerate(array):
        tifffile.imwrite(folder / name.format(z), plane, **how)
    return folder


def write_ome(
    path: Path,
    levels: Sequence[np.ndarray],
    scales: Sequence[dict[str, float] | None],
    *,
    axes: str = "zyx",
    unit: str | None = "micrometer",
    version: str = "0.4",
    **how: Any,
) -> Path:
    """An OME-Zarr by hand, 0.4 on zarr v2 or 0.5 on zarr v3; its levels are s0, s1, …"""
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    for i, array in enumerate(levels):
        chunks = tuple(min(n, 8) for n in array.shape)
        group.create_array(f"s{i}", data=array, **{"chunks": chunks, **how})
    kinds = {"t": "time", "c": "channel"}
    entries = [{"name": a, "type": kinds.get(a, "space")} for a in axes]
    for entry in entries:
        if unit and entry["type"] == "space":
            entry["unit"] = unit
    datasets: list[dict[str, Any]] = [{"path": f"s{i}"} for i in range(len(levels))]
    for dataset, scale in zip(datasets, scales, strict=True):
        if scale is not None:
            transform = {"type": "scale", "scale": [scale.get(a, 1.0) for a in axes]}
            dataset["coordinateTransformations"] = [transform]
    image = {"version": version, "axes": entries, "datasets": datasets}
    if version == "0.4":
        group.attrs["multiscales"] = [image]
    else:
        group.attrs["ome"] = {"version": version, "multiscales": [image]}
    return path


def write_ome_04(
    path: Path, array: np.ndarray, axes: str, scale: dict[str, float], unit: str | None
) -> Path:
    """An OME-Zarr 0.4 of one level."""
    return write_ome(path, [array], [scale], axes=axes, unit=unit)


@settings(deadline=None, max_examples=40)
@given(
    st.permutations("tczyx"),
    st.sampled_from(["", "t", "c", "tc"]),
    st.sampled_from(["0.4", "0.5"]),
    st.booleans(),
    st.data(),
)
def test_ome_zarr_with_its_axes_in_any_order(
    tmp_path_factory: pytest.TempPathFactory,
    order: list[str],
    without: str,
    version: str,
    threaded: bool,
    data: st.DataObject,
) -> None:
    axes = "".join(axis for axis in order if axis not in without)
    sizes = {"t": 2, "c": 2, "z": 9, "y": 10, "x": 11}
    array = noise(tuple(sizes[a] for a in axes))
    path = tmp_path_factory.mktemp("v") / "brain.ome.zarr"
    scale = {"z": 0.005, "y": 0.002, "x": 0.001}
    write_ome(path, [array], [scale], axes=axes, unit="millimeter", version=version)
    volume = open_volume(path)

    full = np.expand_dims(array, tuple(range(len(without))))
    full = full.transpose([("".join(without) + axes).index(a) for a in "tczyx"])
    expected = full[0]
    assert volume.voxel_size_um == pytest.approx((5, 2, 1))
    assert volume.shape == (9, 10, 11)
    assert volume.chunk_shape == (8, 8, 8)
    assert volume.name == "brain"
    start = [data.draw(st.integers(0, n - 1)) for n in volume.shape]
    stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, volume.shape, strict=True)]
    z, y, x = map(slice, start, stop)
    box = (in_a_thread if threaded else lambda work: work())(lambda: volume.read(start, stop))
    np.testing.assert_array_equal(box, expected[:, z, y, x])


def test_an_ome_zarr_without_z_is_one_plane(tmp_path: Path) -> None:
    array = noise((2, 10, 11))
    path = write_ome_04(tmp_path / "a.zarr", array, "cyx", {"y": 2, "x": 1}, "micrometer")
    with pytest.raises(VoxelSizeMissing):
        open_volume(path)
    np.testing.assert_array_equal(whole(open_volume(path, voxel_size_um=UM)), array[:, None])


UNITS_UM = {
    "angstrom": 1e-4,
    "attometer": 1e-12,
    "centimeter": 1e4,
    "decimeter": 1e5,
    "exameter": 1e24,
    "femtometer": 1e-9,
    "foot": 304_800,
    "gigameter": 1e15,
    "hectometer": 1e8,
    "inch": 25_400,
    "kilometer": 1e9,
    "megameter": 1e12,
    "meter": 1e6,
    "micrometer": 1,
    "mile": 1.609344e9,
    "millimeter": 1e3,
    "nanometer": 1e-3,
    "parsec": 3.0856775814913673e22,
    "petameter": 1e21,
    "picometer": 1e-6,
    "terameter": 1e18,
    "yard": 914_400,
    "yoctometer": 1e-18,
    "yottameter": 1e30,
    "zeptometer": 1e-15,
    "zettameter": 1e27,
    # Not in the specification, but in files.
    "micron": 1,
    "µm": 1,
    "Micrometre": 1,
    "mm": 1e3,
}


@pytest.mark.parametrize(("unit", "um"), UNITS_UM.items())
def test_units_of_length(tmp_path: Path, unit: str, um: float) -> None:
    path = write_ome_04(tmp_path / "a.zarr", noise(), "zyx", {"z": 3, "y": 2, "x": 2}, unit)
    assert open_volume(path).voxel_size_um == pytest.approx((3 * um, 2 * um, 2 * um))


@pytest.mark.parametrize("unit", [None, "second", "parrot"])
def test_without_a_unit_of_length_the_voxel_size_must_be_given(
    tmp_path: Path, unit: str | None
) -> None:
    path = write_ome_04(tmp_path / "a.zarr", noise(), "zyx", {"z": 3, "y": 2, "x": 2}, unit)
    with pytest.raises(VoxelSizeMissing, match="--voxel-size-um"):
        open_volume(path)
    assert open_volume(path, voxel_size_um=UM).voxel_size_um == UM


def test_a_given_voxel_size_wins_over_the_files(tmp_path: Path) -> None:
    path = write_ome_04(tmp_path / "a.zarr", noise(), "zyx", {"z": 3, "y": 2, "x": 2}, "micrometer")
    assert open_volume(path, voxel_size_um=UM).voxel_size_um == UM


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", ">u2"])
@pytest.mark.parametrize("n_channels", [None, 1, 2])
def test_plain_zarr_arrays(
    tmp_path: Path, zarr_format: int, dtype: str, n_channels: int | None
) -> None:
    array = noise(SHAPE if n_channels is None else (n_channels, *SHAPE), dtype)
    stored = zarr.create_array(
        tmp_path / "a.zarr", data=array, chunks=(8,) * array.ndim, zarr_format=zarr_format
    )
    assert stored.shape == array.shape
    volume = open_volume(tmp_path / "a.zarr", voxel_size_um=UM)
    expected = array.reshape(-1, *SHAPE)
    np.testing.assert_array_equal(whole(volume), expected)
    np.testing.assert_array_equal(volume.read((1, 2, 3), (2, 4, 6), 1), expected[:1, 1:2, 2:4, 3:6])
    assert whole(volume).dtype == volume.dtype == np.dtype(dtype).newbyteorder("=")
    with pytest.raises(VoxelSizeMissing):
        open_volume(tmp_path / "a.zarr")


CHOICES = [
    (3, None, None, "holds 3 channels; say which are the signal .* brains file"),
    (2, None, [0, 1], None),
    (2, [1], [1], None),
    (3, [2, 0], [2, 0], None),
    (3, [2], [2], None),
    (3, [3], None, r"channels is \[3\]; expected one or two different numbers from 0 to 2"),
    (3, [-1], None, "expected one or two"),
    (3, [1, 1], None, "expected one or two"),
    (3, [], None, "expected one or two"),
    (3, [0, 1, 2], None, "expected one or two"),
    (1, [0], [0], None),
    (1, [0, 1], None, "from 0 to 0"),
]


@pytest.mark.parametrize(("stored", "channels", "read", "says"), CHOICES)
def test_channels_are_chosen_never_guessed(
    tmp_path: Path, stored: int, channels: list[int] | None, read: list[int] | None, says: str
) -> None:
    array = noise((stored, *SHAPE))
    zarr.create_array(tmp_path / "a.zarr", data=array)
    if read is None:
        with pytest.raises(VolumeError, match=says):
            open_volume(tmp_path / "a.zarr", channels=channels, voxel_size_um=UM)
    else:
        volume = open_volume(tmp_path / "a.zarr", channels=channels, voxel_size_um=UM)
        np.testing.assert_array_equal(whole(volume), array[read])


def test_each_of_two_stores_gives_one_channel(tmp_path: Path) -> None:
    array, other = noise((2, *SHAPE)), noise(seed=1)
    both, one = tmp_path / "both.zarr", tmp_path / "one.zarr"
    zarr.create_array(both, data=array)
    zarr.create_array(one, data=other)
    with pytest.raises(VolumeError, match=r"both\.zarr holds 2 channels; say which is the signal"):
        open_volume(both, background=one, voxel_size_um=UM)
    with pytest.raises(VolumeError, match="expected one number from 0 to 1"):
        open_volume(both, background=one, channels=[0, 1], voxel_size_um=UM)
    with pytest.raises(VolumeError, match=r"both\.zarr holds 2 channels; expected the background"):
        open_volume(one, background=both, voxel_size_um=UM)
    volume = open_volume(both, background=one, channels=[1], voxel_size_um=UM)
    np.testing.assert_array_equal(whole(volume), np.stack([array[1], other]))


LEVELS = [noise((2, 9, 41, 30)), noise((2, 9, 21, 15), seed=1), noise((2, 5, 11, 8), seed=2)]
SCALES: list[dict[str, float] | None] = [
    {"z": 5, "y": 2, "x": 2},
    {"z": 5, "y": 4, "x": 4},
    {"z": 10, "y": 8, "x": 8},
]


def write_pyramid(path: Path, levels: Sequence[np.ndarray] = LEVELS, **how: Any) -> Path:
    return write_ome(path, levels, **{"scales": SCALES, "axes": "czyx", **how})


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_pyramid_is_seen_finest_first(
    tmp_path: Path, version: str, order: tuple[int, ...]
) -> None:
    levels, scales = [LEVELS[i] for i in order], [SCALES[i] for i in order]
    path = write_pyramid(tmp_path / "a.ome.zarr", levels, scales=scales, version=version)
    volume = open_volume(path)
    assert volume.voxel_size_um == (5, 2, 2)
    assert [level.voxel_size_um for level in volume.levels] == [(5, 2, 2), (5, 4, 4), (10, 8, 8)]
    assert volume.levels[1:] == volume.coarser
    assert not any(level.coarser for level in volume.levels)
    assert {level.name for level in volume.levels} == {"a"}
    np.testing.assert_array_equal(whole(volume), LEVELS[0])
    for level, array in zip(volume.levels, LEVELS, strict=True):
        np.testing.assert_array_equal(whole(level), array)
    signal = open_volume(path, channels=[1])
    np.testing.assert_array_equal(whole(signal.coarser[1]), LEVELS[2][1:])


def test_a_given_voxel_size_scales_the_whole_pyramid(tmp_path: Path) -> None:
    for unit in ("micrometer", None):  # ratios need no unit
        path = write_pyramid(tmp_path / "a.zarr", unit=unit)
        levels = open_volume(path, voxel_size_um=(1, 3, 4)).levels
        assert [level.voxel_size_um for level in levels] == [(1, 3, 4), (1, 6, 8), (2, 12, 16)]


def test_without_scales_shapes_tell_the_voxel_size(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.zarr", scales=[None] * 3)
    with pytest.raises(VoxelSizeMissing):
        open_volume(path)
    levels = open_volume(path, voxel_size_um=(5, 2, 2)).levels
    assert levels[1].voxel_size_um == pytest.approx((5, 2 * 41 / 21, 4))
    assert levels[2].voxel_size_um == pytest.approx((5 * 9 / 5, 2 * 41 / 11, 2 * 30 / 8))


@pytest.mark.parametrize(
    "bad",
    [
        LEVELS[1].astype("uint8"),
        LEVELS[1].astype("int64"),
        LEVELS[1][:1],
        LEVELS[1][0],
        LEVELS[0],  # as large as the whole, whose voxels are half as long
        None,
    ],
)
def test_a_level_that_cannot_be_used_is_left_out(tmp_path: Path, bad: np.ndarray | None) -> None:
    path = write_pyramid(tmp_path / "a.zarr")
    shutil.rmtree(path / "s1")
    if bad is not None:
        zarr.create_array(path / "s1", data=bad, zarr_format=2)
    volume = open_volume(path)
    assert [level.shape for level in volume.levels] == [(9, 41, 30), (5, 11, 8)]
    np.testing.assert_array_equal(whole(volume), LEVELS[0])


def test_levels_of_two_stores_pair_by_shape(tmp_path: Path) -> None:
    signal, background = ([level[c] for level in LEVELS] for c in (0, 1))
    first = write_pyramid(tmp_path / "a.zarr", signal, axes="zyx")
    second = write_pyramid(
        tmp_path / "b.zarr", [background[0], background[2]], scales=SCALES[::2], axes="zyx"
    )
    volume = open_volume(first, background=second)
    assert [level.shape for level in volume.levels] == [(9, 41, 30), (5, 11, 8)]
    for level, array in zip(volume.levels, LEVELS[::2], strict=True):
        np.testing.assert_array_equal(whole(level), array)
    zarr.create_array(tmp_path / "c.zarr", data=background[0])
    assert not open_volume(first, background=tmp_path / "c.zarr").coarser


def in_memory(*sizes_um: tuple[float, ...]) -> Volume:
    finest, *coarser = (
        Volume(str(i), (ArraySource(np.zeros((1, 1, 1), "uint8")),), (z, y, x))
        for i, (z, y, x) in enumerate(sizes_um)
    )
    return Volume(finest.name, finest.channels, finest.voxel_size_um, tuple(coarser))


micrometres = st.tuples(*[st.floats(0.1, 100)] * 3)


@given(st.lists(micrometres, min_size=1, max_size=5), micrometres)
def test_the_nearest_level_differs_least_in_voxel_size(
    sizes: list[tuple[float, ...]], wanted: tuple[float, ...]
) -> None:
    volume = in_memory(*sizes)

    def off(size: tuple[float, ...]) -> float:
        return sum(abs(math.log(a) - math.log(b)) for a, b in zip(size, wanted, strict=True))

    chosen = volume.nearest(wanted)
    assert chosen.name in [level.name for level in volume.levels]
    assert off(chosen.voxel_size_um) == pytest.approx(min(map(off, sizes)), abs=1e-8)
    for size in sizes:
        assert volume.nearest(size).voxel_size_um == pytest.approx(size, rel=1e-6)


def test_of_two_levels_equally_near_the_finer_is_taken() -> None:
    volume = in_memory((5, 1, 1), (5, 2, 2), (10, 4, 4))
    assert volume.nearest((5, 2**0.5, 2**0.5)).name == "0"
    assert volume.nearest((5, 1.5, 1.5)).name == "1"  # as ratios, not as differences
    assert volume.nearest((50, 50, 50)).name == "2"
    assert not volume.nearest((5, 1, 1)).coarser


@pytest.mark.parametrize(("version", "sharded"), [("0.4", False), ("0.5", False), ("0.5", True)])
@pytest.mark.parametrize("threaded", [False, True])
def test_a_missing_chunk_is_the_fill_value(
    tmp_path: Path, version: str, sharded: bool, threaded: bool
) -> None:
    array = np.full((1, 16, 16, 16), 7, "uint16")
    array[0, 8:] = noise((8, 16, 16)) + 8
    array[0, 8:12, :4, :4] = 7  # an inner chunk of a shard that is there
    how: dict[str, Any] = {"fill_value": 7, "chunks": (1, 4, 4, 4)}
    if sharded:
        how |= {"shards": (1, 8, 8, 8), "compressors": BloscCodec(cname="zstd")}
    path = write_ome(
        tmp_path / "a.zarr",
        [array],
        [{"z": 1, "y": 1, "x": 1}],
        axes="czyx",
        version=version,
        **how,
    )
    stored = [f for f in (path / "s0").rglob("*") if f.is_file() and f.name[0] not in ".z"]
    assert len(stored) == (4 if sharded else 31)  # of 8 and 64
    volume = open_volume(path)
    assert volume.chunk_shape == (4, 4, 4)  # what is decoded together, not the shard
    read = in_a_thread if threaded else lambda work: work()
    np.testing.assert_array_equal(read(lambda: whole(volume)), array)
    for start in itertools.product((0, 3, 8), repeat=3):
        z, y, x = (slice(a, a + 5) for a in start)
        box = read(lambda a=start: volume.read(a, [n + 5 for n in a]))
        np.testing.assert_array_equal(box, array[:, z, y, x])


def test_a_box_can_be_read_into_an_array(tmp_path: Path) -> None:
    array = noise((2, *SHAPE))
    zarr.create_array(tmp_path / "a.zarr", data=array.astype(">u2"), chunks=(1, 5, 6, 7))
    tifffile.imwrite(tmp_path / "ch0.tif", array[0], compression="zlib")
    planes = write_planes(tmp_path / "ch1", array[1], byteorder=">")
    volumes = (
        open_volume(tmp_path / "a.zarr", voxel_size_um=UM),
        open_volume(tmp_path / "ch0.tif", background=planes, voxel_size_um=UM),
        Volume("a", (ArraySource(array[0]), ArraySource(array[1])), UM),
    )
    for volume, run in itertools.product(volumes, (in_a_thread, lambda work: work())):
        pool = np.zeros((4, 2, 10, 10, 10), "uint16")
        out = pool[2, :, 1:5, ::2, 3:8]  # voxels that lie apart
        assert run(lambda v=volume, o=out: v.read((3, 4, 5), (7, 9, 10), out=o)) is out
        np.testing.assert_array_equal(out, array[:, 3:7, 4:9, 5:10])
        assert np.count_nonzero(pool) == np.count_nonzero(out)
        one = volume.read((3, 4, 5), (7, 9, 10), 1, out=out[:1])
        np.testing.assert_array_equal(one, array[:1, 3:7, 4:9, 5:10])


def test_a_thread_with_an_event_loop_can_read(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=noise())
    volume = open_volume(tmp_path / "a.zarr", voxel_size_um=UM)

    async def read() -> np.ndarray:
        return whole(volume)

    np.testing.assert_array_equal(in_a_thread(lambda: asyncio.run(read()))[0], noise())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_found_when_it_is_read(tmp_path: Path, value: float) -> None:
    array = noise(dtype="float32")
    array[7, 3, 2] = value
    zarr.create_array(tmp_path / "a.zarr", data=array)
    volume = open_volume(tmp_path / "a.zarr", voxel_size_um=UM)
    volume.read((8, 0, 0), (12, 20, 30))
    with pytest.raises(VolumeError, match="not finite in channel 0 at z, y, x = 7, 3, 2"):
        volume.read((6, 0, 0), (12, 20, 30))


def test_planes_come_in_natural_order_and_only_they(tmp_path: Path) -> None:
    folder = write_planes(tmp_path / "ch0", noise(), compression="zlib")
    (folder / "._plane0.tif").write_text("left by a Mac")
    (folder / "notes.txt").write_text("mind the gap")
    volume = open_volume(folder, voxel_size_um=UM)
    np.testing.assert_array_equal(whole(volume), noise()[None])
    np.testing.assert_array_equal(volume.read((3, 4, 5), (7, 9, 25)), noise()[None, 3:7, 4:9, 5:25])
    assert volume.chunk_shape == (1, 20, 30)
    assert volume.name == "ch0"
    with pytest.raises(VoxelSizeMissing):
        open_volume(folder)


def test_planes_of_an_ome_tiff_set_are_planes(tmp_path: Path) -> None:
    folder = write_planes(tmp_path / "a", noise(), "p{}.ome.tif", ome=True)
    np.testing.assert_array_equal(whole(open_volume(folder, voxel_size_um=UM)), noise()[None])


def test_of_planes_that_are_uncompressed_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    array = noise((6, 600, 700))
    for name, byteorder in {"little": "<", "big": ">"}.items():
        folder = write_planes(tmp_path / name, array, byteorder=byteorder)
        volume = open_volume(folder, voxel_size_um=UM)
        assert volume.chunk_shape == (6, 128, 128)
        volume.read((0, 0, 0), (6, 1, 1))
        tracemalloc.start()
        try:
            box = volume.read((1, 100, 200), (5, 110, 230))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        np.testing.assert_array_equal(box[0], array[1:5, 100:110, 200:230], strict=True)
        assert peak < 600 * 700 * 2 / 4


def test_planes_may_be_compressed_in_part(tmp_path: Path) -> None:
    for first, others in ((None, "zlib"), ("zlib", None)):
        folder = write_planes(tmp_path / str(first), noise(), compression=others)
        tifffile.imwrite(folder / "plane0.tif", noise()[0], compression=first)
        volume = open_volume(folder, voxel_size_um=UM)
        np.testing.assert_array_equal(whole(volume), noise()[None])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    "how",
    [
        {"bigtiff": True},
        {"bigtiff": True, "compression": "zlib"},
        {"bigtiff": True, "byteorder": ">"},
        {"ome": True},
        {"ome": True, "compression": "zlib"},
        {"imagej": True},
    ],
)
def test_every_kind_of_tiff_in_every_dtype(tmp_path: Path, dtype: str, how: dict[str, Any]) -> None:
    array = noise(dtype=dtype)
    stack_only = {} if "bigtiff" in how else {"metadata": {"axes": "ZYX"}}
    tifffile.imwrite(tmp_path / "stack.tif", array, **how, **stack_only)
    planes = write_planes(tmp_path / "planes", array, **how)
    for path in (tmp_path / "stack.tif", planes):
        volume = open_volume(path, voxel_size_um=UM)
        assert volume.dtype == dtype
        np.testing.assert_array_equal(whole(volume), array[None], strict=True)


@pytest.mark.parametrize("cache_bytes", [1, 2 * 20 * 30 * 3])
def test_many_threads_read_what_one_reads(
    tmp_path: Path, cache_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "PLANE_CACHE_BYTES", cache_bytes)
    planes = write_planes(tmp_path / "planes", noise(), compression="zlib")
    tifffile.imwrite(tmp_path / "stack.tif", noise(), compression="zlib")
    zarr.create_array(tmp_path / "a.zarr", data=noise(), chunks=(5, 6, 7))
    for path in (planes, tmp_path / "stack.tif", tmp_path / "a.zarr"):
        volume = open_volume(path, voxel_size_um=UM)
        corners = np.random.default_rng(1).integers(0, (8, 10, 20), (60, 3))
        with ThreadPoolExecutor(8) as pool:
            boxes = list(
                pool.map(lambda c, v=volume: v.read(c, c + np.array((4, 10, 10))), corners)
            )
        for (z, y, x), box in zip(corners, boxes, strict=True):
            np.testing.assert_array_equal(
                box[0], noise()[z : z + 4, y : y + 10, x : x + 10], strict=True
            )


def test_a_plane_is_decoded_once_however_many_threads_want_it() -> None:
    seen: list[int] = []
    gate = threading.Barrier(4)

    def decode(z: int) -> np.ndarray:
        seen.append(z)
        return noise()[z]

    source = sources.PlanesSource(SHAPE, np.dtype("uint16"), decode)

    def read(_: int) -> None:
        gate.wait()
        source[0:12, 0:5, 0:5]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
    assert sorted(seen) == list(range(12))


def test_a_box_is_the_callers_own(tmp_path: Path) -> None:
    volume = Volume("a", (ArraySource(noise()),), UM)
    whole(volume)[...] = 0
    np.testing.assert_array_equal(whole(volume)[0], noise())


@pytest.mark.parametrize(
    ("how", "um"),
    [
        ({}, None),
        ({"compression": "zlib"}, None),
        ({"bigtiff": True, "byteorder": ">"}, None),
        ({"imagej": True, "metadata": {"axes": "ZYX"}}, None),
        (
            {
                "imagej": True,
                "resolution": (0.5, 0.25),
                "metadata": {"axes": "ZYX", "spacing": 5, "unit": "um"},
            },
            (5, 4, 2),
        ),
        (
            {
                "imagej": True,
                "resolution": (2, 2),
                "metadata": {"axes": "ZYX", "spacing": 0.5, "unit": "\\u00B5m"},
            },
            (0.5, 0.5, 0.5),
        ),
        (
            {
                "ome": True,
                "compression": "zlib",
                "metadata": {
                    "axes": "ZYX",
                    "PhysicalSizeX": 2000,
                    "PhysicalSizeXUnit": "nm",
                    "PhysicalSizeY": 3,
                    "PhysicalSizeZ": 0.005,
                    "PhysicalSizeZUnit": "mm",
                },
            },
            (5, 3, 2),
        ),
        ({"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 2}}, None),
    ],
)
def test_tiff_stacks(
    tmp_path: Path, how: dict[str, Any], um: tuple[float, float, float] | None
) -> None:
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, noise(), **how)
    if um is None:
        with pytest.raises(VoxelSizeMissing):
            open_volume(path)
    else:
        assert open_volume(path).voxel_size_um == pytest.approx(um)
    volume = open_volume(path, voxel_size_um=UM)
    assert volume.voxel_size_um == UM
    np.testing.assert_array_equal(whole(volume)[0], noise(), strict=True)


def test_a_background_may_lie_elsewhere_and_be_of_another_kind(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "signal.tif", noise())
    planes = write_planes(tmp_path / "ch1", noise(seed=1))
    volume = open_volume(tmp_path / "signal.tif", background=planes, voxel_size_um=UM, name="m1")
    assert (volume.name, volume.n_channels) == ("m1", 2)
    np.testing.assert_array_equal(whole(volume), np.stack([noise(), noise(seed=1)]))
    for wrong in (noise((12, 20, 31)), noise(dtype="uint8")):
        tifffile.imwrite(tmp_path / "wrong.tif", wrong)
        with pytest.raises(VolumeError, match="channels must agree"):
            open_volume(
                tmp_path / "signal.tif", background=tmp_path / "wrong.tif", voxel_size_um=UM
            )


@pytest.mark.parametrize("size", [(0, 1, 1), (-5, 1, 1), (np.nan, 1, 1), (np.inf, 1, 1), (1, 1)])
def test_a_voxel_size_is_three_lengths(tmp_path: Path, size: tuple[float, ...]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise())
    with pytest.raises(VolumeError, match="voxel size"):
        open_volume(tmp_path / "a.tif", voxel_size_um=size)


def tiff(**how: Any) -> Callable[[Path, np.ndarray], object]:
    return lambda path, array: tifffile.imwrite(path, array, **how)


def group_of_one(path: Path, array: np.ndarray) -> None:
    zarr.open_group(path, mode="w").create_array("a", data=array)


def broken_zarr(path: Path, _: np.ndarray) -> None:
    path.mkdir()
    (path / "zarr.json").write_text("{")


def ome_without_array(path: Path, array: np.ndarray) -> None:
    write_ome_04(path, array, "zyx", {}, "micrometer")
    (path / "s0" / ".zarray").unlink()


def ome_without_datasets(path: Path, _: np.ndarray) -> None:
    write_ome(path, [], [])


def odd_last_plane(path: Path, array: np.ndarray) -> None:
    write_planes(path, array)
    tifffile.imwrite(path / "plane11.tif", array[0, 1:])


BAD: dict[str, tuple[Callable[[Path, np.ndarray], object], np.ndarray, str]] = {
    "missing": (lambda path, _: None, noise(), "does not exist"),
    "empty folder": (lambda path, _: path.mkdir(), noise(), "without TIFF planes"),
    "text": (lambda path, _: path.write_text("hello"), noise(), "expected an OME-Zarr"),
    "text.tif": (lambda path, _: path.write_text("hello"), noise(), "cannot be read"),
    "one plane.tif": (tiff(), noise((20, 30)), "stack z y x"),
    "channels.tif": (tiff(imagej=True, metadata={"axes": "CYX"}), noise(), "of one channel"),
    "colour.tif": (tiff(photometric="rgb"), noise((20, 30, 3), "uint8"), "stack z y x"),
    "int64.tif": (tiff(), noise(dtype="int64"), "int64; expected uint8"),
    "2d.zarr": (lambda path, a: zarr.create_array(path, data=a), noise((20, 30)), "2 axes"),
    "none.zarr": (
        lambda path, a: zarr.create_array(path, shape=a.shape, chunks=(1, 1, 1), dtype=a.dtype),
        noise((0, 20, 30)),
        "no voxels",
    ),
    "group.zarr": (group_of_one, noise(), "without OME-Zarr multiscales"),
    "broken.zarr": (broken_zarr, noise(), "cannot be opened"),
    "no array.zarr": (ome_without_array, noise(), "lacks its array 's0'"),
    "no datasets.zarr": (ome_without_datasets, noise(), "cannot be understood"),
    "odd axes.zarr": (
        lambda path, a: write_ome_04(path, a, "qyx", {}, "micrometer"),
        noise(),
        "expected y, x",
    ),
    "odd last plane": (odd_last_plane, noise(), "must agree"),
    "stacks as planes": (write_planes, noise((2, *SHAPE)), "one grey plane"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_volume_is_named_with_its_fault(tmp_path: Path, kind: str) -> None:
    make, array, says = BAD[kind]
    path = tmp_path / kind
    make(path, array)
    with pytest.raises(VolumeError, match=says) as error:
        open_volume(path, voxel_size_um=UM)
    assert str(path) in str(error.value)


def test_a_corrupt_plane_is_found_when_it_is_read(tmp_path: Path) -> None:
    folder = write_planes(tmp_path / "a", noise())
    (folder / "plane5.tif").write_bytes((folder / "plane5.tif").read_bytes()[:200])
    tifffile.imwrite(folder / "plane6.tif", noise((20, 31)))
    volume = open_volume(folder, voxel_size_um=UM)
    volume.read((0, 0, 0), (5, 20, 30))
    for z in (5, 6):
        with pytest.raises(VolumeError, match=rf"plane{z}\.tif"):
            volume.read((z, 0, 0), (z + 1, 20, 30))


def test_a_truncated_chunk_is_found_when_it_is_read(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=noise(), chunks=(6, 20, 30))
    chunk = tmp_path / "a.zarr" / "c" / "1" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    volume = open_volume(tmp_path / "a.zarr", voxel_size_um=UM)
    for run in (in_a_thread, lambda work: work()):
        run(lambda: volume.read((0, 0, 0), (6, 20, 30)))
        with pytest.raises(VolumeError, match="cannot be decoded"):
            run(lambda: volume.read((6, 0, 0), (12, 20, 30)))


def test_truncated_stacks_are_volume_errors(tmp_path: Path) -> None:
    for how in ({}, {"compression": "zlib"}):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, noise(), **how)
        path.write_bytes(path.read_bytes()[:-3000])
        with pytest.raises(VolumeError, match=r"a\.tif"):
            whole(open_volume(path, voxel_size_um=UM))
