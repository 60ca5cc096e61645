import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cubeclf_core import sources
from cubeclf_core.errors import VolumeError, VoxelSizeMissing
from cubeclf_core.volumes import ArraySource, Volume, open_volume

SHAPE = (12, 20, 30)
UM = (5.0, 2.0, 2.0)


def noise(shape: tuple[int, ...] = SHAPE, dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape).astype(dtype)


def whole(volume: Volume) -> np.ndarray:
    return volume.read((0, 0, 0), volume.shape)


def write_planes(folder: Path, array: np.ndarray, name: str = "plane{}.tif", **how: Any) -> Path:
    folder.mkdir(parents=True)
    for z, plane in enumerate(array):
        tifffile.imwrite(folder / name.format(z), plane, **how)
    return folder


def write_ome_04(
    path: Path, array: np.ndarray, axes: str, scale: dict[str, float], unit: str | None
) -> Path:
    """OME-Zarr 0.4 by hand, on zarr v2."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    level = group.create_array(
        "full", shape=array.shape, chunks=tuple(min(n, 8) for n in array.shape), dtype=array.dtype
    )
    level[...] = array
    kinds = {"t": "time", "c": "channel"}
    entries = [{"name": a, "type": kinds.get(a, "space")} for a in axes]
    for entry in entries:
        if unit and entry["type"] == "space":
            entry["unit"] = unit
    transform = {"type": "scale", "scale": [scale.get(a, 1.0) for a in axes]}
    dataset = {"path": "full", "coordinateTransformations": [transform]}
    group.attrs["multiscales"] = [{"version": "0.4", "axes": entries, "datasets": [dataset]}]
    return path


@settings(deadline=None, max_examples=40)
@given(st.permutations("tczyx"), st.sampled_from(["", "t", "c", "tc"]), st.data())
def test_ome_zarr_04_with_its_axes_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, order: list[str], without: str, data: st.DataObject
) -> None:
    axes = "".join(axis for axis in order if axis not in without)
    sizes = {"t": 2, "c": 2, "z": 9, "y": 10, "x": 11}
    array = noise(tuple(sizes[a] for a in axes))
    path = tmp_path_factory.mktemp("v") / "brain.ome.zarr"
    scale = {"z": 0.005, "y": 0.002, "x": 0.001}
    volume = open_volume(write_ome_04(path, array, axes, scale, "millimeter"))

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
    np.testing.assert_array_equal(volume.read(start, stop), expected[:, z, y, x])


def test_an_ome_zarr_without_z_is_one_plane(tmp_path: Path) -> None:
    array = noise((2, 10, 11))
    path = write_ome_04(tmp_path / "a.zarr", array, "cyx", {"y": 2, "x": 1}, "micrometer")
    with pytest.raises(VoxelSizeMissing):
        open_volume(path)
    np.testing.assert_array_equal(whole(open_volume(path, voxel_size_um=UM)), array[:, None])


@pytest.mark.parametrize(
    ("unit", "um"), [("nanometer", 1e-3), ("micron", 1), ("µm", 1), ("centimeter", 1e4)]
)
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
@pytest.mark.parametrize("n_channels", [None, 1, 2, 3])
def test_plain_zarr_arrays(
    tmp_path: Path, zarr_format: int, dtype: str, n_channels: int | None
) -> None:
    array = noise(SHAPE if n_channels is None else (n_channels, *SHAPE), dtype)
    stored = zarr.create_array(
        tmp_path / "a.zarr", data=array, chunks=(8,) * array.ndim, zarr_format=zarr_format
    )
    assert stored.shape == array.shape
    volume = open_volume(tmp_path / "a.zarr", voxel_size_um=UM)
    expected = array.reshape(-1, *SHAPE)[:2]
    np.testing.assert_array_equal(whole(volume), expected)
    np.testing.assert_array_equal(volume.read((1, 2, 3), (2, 4, 6), 1), expected[:1, 1:2, 2:4, 3:6])
    assert whole(volume).dtype == volume.dtype == np.dtype(dtype).newbyteorder("=")
    with pytest.raises(VoxelSizeMissing):
        open_volume(tmp_path / "a.zarr")


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
    (path / "full" / ".zarray").unlink()


def ome_without_datasets(path: Path, _: np.ndarray) -> None:
    zarr.open_group(path, mode="w", zarr_format=2).attrs["multiscales"] = [{"axes": []}]


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
    "no array.zarr": (ome_without_array, noise(), "lacks its array 'full'"),
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
    volume.read((0, 0, 0), (6, 20, 30))
    with pytest.raises(VolumeError, match="cannot be decoded"):
        volume.read((6, 0, 0), (12, 20, 30))


def test_truncated_stacks_are_volume_errors(tmp_path: Path) -> None:
    for how in ({}, {"compression": "zlib"}):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, noise(), **how)
        path.write_bytes(path.read_bytes()[:-3000])
        with pytest.raises(VolumeError, match=r"a\.tif"):
            whole(open_volume(path, voxel_size_um=UM))
