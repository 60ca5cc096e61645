import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import tifffile
import zarr

from cubeclf_core import sources
from cubeclf_core.config import ConvertConfig
from cubeclf_core.convert import convert
from cubeclf_core.errors import InputError, OutputExists
from cubeclf_core.pyramid import count_chunks, write_ome_zarr
from cubeclf_core.volumes import open_volume

ROOT = Path(__file__).parents[2]
UM = (5.0, 2.0, 2.0)
SHAPE = (70, 150, 260)  # more than one chunk along each axis, none of them whole


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = "from cubeclf_core.commands import convert; convert()"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )


def noise(shape: tuple[int, ...] = SHAPE, dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) * 250).astype(dtype)


def write_planes(folder: Path, array: np.ndarray) -> Path:
    folder.mkdir()
    for z, plane in enumerate(array):
        tifffile.imwrite(folder / f"plane{z}.tif", plane)
    return folder


def naive_means(array: np.ndarray, step: tuple[int, ...]) -> np.ndarray:
    """Mean of each block of z y x voxels, one by one."""
    shape = [-(-n // s) for n, s in zip(array.shape, step, strict=True)]
    means = np.empty(shape)
    for corner in np.ndindex(*shape):
        means[corner] = array[
            tuple(slice(i * s, (i + 1) * s) for i, s in zip(corner, step, strict=True))
        ].mean()
    return means


def levels_of(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    group = zarr.open_group(path, mode="r")
    ome = dict(group.attrs)["ome"]
    assert isinstance(ome, dict)
    return ome, [np.asarray(group[d["path"]][...]) for d in ome["multiscales"][0]["datasets"]]


def test_two_folders_of_planes_become_one_brain(tmp_path: Path) -> None:
    channels = [noise(), noise(seed=1)]
    inputs = [write_planes(tmp_path / f"ch{c}", channels[c]) for c in (0, 1)]
    out = tmp_path / "new" / "brain.ome.zarr"
    done = command(*inputs, "--out", out, "--voxel-size-um", *UM)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"{out}: 2 channel(s) of 70 × 150 × 260 voxels (z y x), uint16, 5 × 2 × 2 µm, 3 level(s)"
    )
    volume = open_volume(out)
    assert (volume.name, volume.voxel_size_um, volume.n_channels) == ("brain", UM, 2)
    assert volume.chunk_shape == (64, 128, 128)
    np.testing.assert_array_equal(volume.read((0, 0, 0), SHAPE), np.stack(channels), strict=True)
    assert [p.name for p in out.parent.iterdir()] == ["brain.ome.zarr"]
    ome, _ = levels_of(out)
    assert ome["version"] == "0.5"
    assert [c["label"] for c in ome["omero"]["channels"]] == ["signal", "background"]
    axes = ome["multiscales"][0]["axes"]
    assert [axis["name"] for axis in axes] == ["c", "z", "y", "x"]
    array = zarr.open_array(out / "0", mode="r")
    assert (array.metadata.zarr_format, array.chunks) == (3, (1, 64, 128, 128))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_pyramid_is_of_means_and_says_where_its_voxels_lie(tmp_path: Path, dtype: str) -> None:
    array = noise((21, 130, 301), dtype)
    out = tmp_path / "a.ome.zarr"
    ticks: list[int] = []
    write_ome_zarr(out, [array], UM, chunks=(8, 32, 64), on_chunk=ticks.append)
    assert sum(ticks) == count_chunks(array.shape, 1, UM, (8, 32, 64))
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


def test_each_plane_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PLANE_CACHE_BYTES", 1)
    planes = write_planes(tmp_path / "ch0", noise((70, 40, 50)))
    decoded: list[Path] = []
    pages = tifffile.TiffPage.asarray

    def counting(page: tifffile.TiffPage, *args: Any, **kwargs: Any) -> np.ndarray:
        decoded.append(Path(page.parent.filename))
        return pages(page, *args, **kwargs)

    monkeypatch.setattr(tifffile.TiffPage, "asarray", counting)
    convert(ConvertConfig((planes,), out=tmp_path / "a.ome.zarr", voxel_size_um=UM))
    assert len(decoded) == len(set(decoded)) == 70


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_one_stack_is_one_channel(tmp_path: Path, compression: str | None) -> None:
    array = noise((9, 30, 40), "uint8")
    tifffile.imwrite(tmp_path / "stack.tif", array, compression=compression)
    out = tmp_path / "a.ome.zarr"
    convert(ConvertConfig((tmp_path / "stack.tif",), out=out, voxel_size_um=UM))
    volume = open_volume(out)
    np.testing.assert_array_equal(volume.read((0, 0, 0), volume.shape), array[None], strict=True)
    assert [c["label"] for c in levels_of(out)[0]["omero"]["channels"]] == ["signal"]


def test_a_converted_brain_converts_again(tmp_path: Path) -> None:
    write_ome_zarr(tmp_path / "a.ome.zarr", [noise((9, 30, 40)), noise((9, 30, 40), seed=1)], UM)
    out = tmp_path / "b.ome.zarr"
    convert(ConvertConfig((tmp_path / "a.ome.zarr",), out=out, voxel_size_um=UM))
    a, b = open_volume(tmp_path / "a.ome.zarr"), open_volume(out)
    np.testing.assert_array_equal(a.read((0, 0, 0), a.shape), b.read((0, 0, 0), b.shape))


def test_what_exists_is_overwritten_only_when_told(tmp_path: Path) -> None:
    stack = tmp_path / "stack.tif"
    tifffile.imwrite(stack, noise((9, 30, 40)))
    out = tmp_path / "a.ome.zarr"
    write_ome_zarr(out, [noise((5, 6, 7))], UM)
    with pytest.raises(OutputExists):
        convert(ConvertConfig((tmp_path / "missing",), out=out, voxel_size_um=UM))
    assert open_volume(out).shape == (5, 6, 7)
    convert(ConvertConfig((stack,), out=out, voxel_size_um=UM, overwrite=True))
    assert open_volume(out).shape == (9, 30, 40)


def test_raw_data_is_never_overwritten(tmp_path: Path) -> None:
    planes = write_planes(tmp_path / "ch0", noise((3, 30, 40)))
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "notes.txt").touch()
    for out in (planes, tmp_path, notes):
        with pytest.raises(InputError, match="choose another --out"):
            convert(ConvertConfig((planes,), out=out, voxel_size_um=UM, overwrite=True))
    assert len(list(planes.iterdir())) == 3


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shelf = tmp_path_factory.mktemp("shelf")
    tifffile.imwrite(shelf / "good.tif", noise((9, 30, 40)))
    tifffile.imwrite(shelf / "narrow.tif", noise((9, 30, 39)))
    tifffile.imwrite(shelf / "bytes.tif", noise((9, 30, 40), "uint8"))
    tifffile.imwrite(shelf / "double.tif", noise((9, 30, 40), "float64"))
    planes = write_planes(shelf / "planes", noise((9, 30, 40)))
    (planes / "plane4.tif").write_bytes(b"II*\0 torn")
    return shelf


@pytest.mark.parametrize(
    ("inputs", "options", "says"),
    [
        (["missing"], [], "does not exist"),
        (["double.tif"], [], "float64"),
        (["good.tif", "narrow.tif"], [], "channels must agree"),
        (["good.tif", "bytes.tif"], [], "channels must agree"),
        (["good.tif", "good.tif", "good.tif"], [], "3 channels"),
        (["planes"], [], "plane4.tif"),
        (["good.tif"], ["--voxel-size-um", "0", "2", "2"], "voxel size"),
        (["good.tif"], ["--voxel-size-um", "5", "2"], "voxel-size-um"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    shelf: Path, tmp_path: Path, inputs: list[str], options: list[str], says: str
) -> None:
    out = tmp_path / "out.ome.zarr"
    size = options or ["--voxel-size-um", *UM]
    done = command(*(shelf / name for name in inputs), "--out", out, *size)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_left_alone(shelf: Path, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    done = command(shelf / "good.tif", "--out", tmp_path, "--voxel-size-um", *UM)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {tmp_path} exists already; choose another --out or add --overwrite"
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["note"]


def test_help_imports_no_array_library() -> None:
    code = (
        "import sys\n"
        "from cubeclf_core.commands import convert\n"
        "try: convert()\n"
        "except SystemExit as e: assert not e.code\n"
        "assert not {'torch', 'numpy', 'zarr', 'dask'} & set(sys.modules), 'imported'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--voxel-size-um" in done.stdout


def test_the_serial_two_photon_crop(tmp_path: Path) -> None:
    data = Path(os.environ.get("CUBECLF_REAL_DATA", ROOT / "../shared/data")) / "serial2p_crop"
    if not data.is_dir():
        pytest.skip(f"no real data at {data}; set CUBECLF_REAL_DATA")
    out = tmp_path / "crop.ome.zarr"
    done = command(data / "ch0", data / "ch1", "--out", out, "--voxel-size-um", *UM)
    assert done.returncode == 0, done.stderr
    volume = open_volume(out)
    raw = [
        [tifffile.imread(data / f"ch{c}" / f"ch{c}{z:04d}.tif") for z in range(30)] for c in (0, 1)
    ]
    np.testing.assert_array_equal(volume.read((0, 0, 0), volume.shape), np.array(raw), strict=True)
