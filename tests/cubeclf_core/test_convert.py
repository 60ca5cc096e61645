import errno
import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from cubeclf_core import sources
from cubeclf_core.config import ConvertConfig
from cubeclf_core.convert import convert
from cubeclf_core.errors import InputError, OutputExists, RunFailed
from cubeclf_core.pyramid import write_ome_zarr
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


def write_planes(folder: Path, array: np.ndarray, compression: str | None = None) -> Path:
    folder.mkdir()
    for z, plane in enumerate(array):
        tifffile.imwrite(folder / f"plane{z}.tif", plane, compression=compression)
    return folder


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
    assert volume.chunk_shape == (32, 64, 64)
    np.testing.assert_array_equal(volume.read((0, 0, 0), SHAPE), np.stack(channels), strict=True)
    assert [p.name for p in out.parent.iterdir()] == ["brain.ome.zarr"]
    ome, _ = levels_of(out)
    assert ome["version"] == "0.5"
    assert [c["label"] for c in ome["omero"]["channels"]] == ["signal", "background"]
    axes = ome["multiscales"][0]["axes"]
    assert [axis["name"] for axis in axes] == ["c", "z", "y", "x"]
    array = zarr.open_array(out / "0", mode="r")
    assert (array.metadata.zarr_format, array.chunks) == (3, (1, 32, 64, 64))
    assert array.shards == (1, 32, 192, 320)  # as large as the level, in whole chunks


def test_each_plane_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PLANE_CACHE_BYTES", 1)
    planes = write_planes(tmp_path / "ch0", noise((70, 40, 50)), "zlib")
    decoded: list[Path] = []
    pages = tifffile.TiffPage.asarray

    def counting(page: tifffile.TiffPage, *args: Any, **kwargs: Any) -> np.ndarray:
        decoded.append(Path(page.parent.filename))
        return pages(page, *args, **kwargs)

    monkeypatch.setattr(tifffile.TiffPage, "asarray", counting)
    convert(ConvertConfig((str(planes),), out=tmp_path / "a.ome.zarr", voxel_size_um=UM))
    assert len(decoded) == len(set(decoded)) == 70


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_one_stack_is_one_channel(tmp_path: Path, compression: str | None) -> None:
    array = noise((9, 30, 40), "uint8")
    tifffile.imwrite(tmp_path / "stack.tif", array, compression=compression)
    out = tmp_path / "a.ome.zarr"
    convert(ConvertConfig((str(tmp_path / "stack.tif"),), out=out, voxel_size_um=UM))
    volume = open_volume(out)
    np.testing.assert_array_equal(volume.read((0, 0, 0), volume.shape), array[None], strict=True)
    assert [c["label"] for c in levels_of(out)[0]["omero"]["channels"]] == ["signal"]


def test_a_converted_brain_converts_again(tmp_path: Path) -> None:
    write_ome_zarr(tmp_path / "a.ome.zarr", [noise((9, 30, 40)), noise((9, 30, 40), seed=1)], UM)
    out = tmp_path / "b.ome.zarr"
    convert(ConvertConfig((str(tmp_path / "a.ome.zarr"),), out=out, voxel_size_um=UM))
    a, b = open_volume(tmp_path / "a.ome.zarr"), open_volume(out)
    np.testing.assert_array_equal(a.read((0, 0, 0), a.shape), b.read((0, 0, 0), b.shape))


def test_what_exists_is_overwritten_only_when_told(tmp_path: Path) -> None:
    stack = tmp_path / "stack.tif"
    tifffile.imwrite(stack, noise((9, 30, 40)))
    out = tmp_path / "a.ome.zarr"
    write_ome_zarr(out, [noise((5, 6, 7))], UM)
    with pytest.raises(OutputExists):
        convert(ConvertConfig((str(tmp_path / "missing"),), out=out, voxel_size_um=UM))
    assert open_volume(out).shape == (5, 6, 7)
    convert(ConvertConfig((str(stack),), out=out, voxel_size_um=UM, overwrite=True))
    assert open_volume(out).shape == (9, 30, 40)


def test_raw_data_is_never_overwritten(tmp_path: Path) -> None:
    planes = write_planes(tmp_path / "ch0", noise((3, 30, 40)))
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "notes.txt").touch()
    for out in (planes, tmp_path, notes):
        with pytest.raises(InputError, match="choose another --out"):
            convert(ConvertConfig((str(planes),), out=out, voxel_size_um=UM, overwrite=True))
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


def test_verify_compares_every_level(tmp_path: Path) -> None:
    planes = write_planes(tmp_path / "ch0", noise())
    out = tmp_path / "a.ome.zarr"
    words = (planes, "--out", out, "--voxel-size-um", *UM, "--verify")
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"{out} is verified: level 0 is the input bit by bit, the other levels are its means"
    )
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    again = command(*words)
    assert again.returncode == 0, again.stderr
    assert again.stderr.splitlines()[0] == f"{out} exists: it is verified, not written"
    assert again.stderr.splitlines()[-1] == done.stderr.splitlines()[-1]
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before

    tifffile.imwrite(planes / "plane40.tif", noise()[40] + (np.arange(260) == 7).astype("uint16"))
    wrong = command(*words)
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[-1] == (
        f"error: {out} at level 0, channel 0, z y x 40–41, 0–150, 7–8 differs from the input in "
        "150 voxel(s); convert again with --overwrite"
    )


def test_verify_finds_a_wrong_voxel_at_any_level(tmp_path: Path) -> None:
    inputs = tuple(str(write_planes(tmp_path / f"ch{c}", noise(seed=c))) for c in (0, 1))
    out = tmp_path / "a.ome.zarr"
    config = ConvertConfig(inputs, out=out, voxel_size_um=UM, verify=True)
    convert(config)
    for level, origin in ((2, "the means of level 1"), (0, "the input")):
        array = zarr.open_array(out / str(level), mode="r+")
        array[1, 3, 5, 7] = np.asarray(array[1, 3, 5, 7]) + 1
        where = f"level {level}, channel 1, z y x 3–4, 5–6, 7–8 differs from {origin} in 1 voxel"
        with pytest.raises(RunFailed, match=where):
            convert(config)


def test_verify_reports_what_cannot_be_read_or_compared(tmp_path: Path) -> None:
    stack = tmp_path / "stack.tif"
    tifffile.imwrite(stack, noise((9, 30, 40)))
    out = tmp_path / "a.ome.zarr"
    config = ConvertConfig((str(stack),), out=out, voxel_size_um=UM, verify=True)
    convert(config)
    for other in (
        replace(config, voxel_size_um=(5.0, 2.0, 2.5)),
        replace(config, inputs=(str(stack), str(stack))),
    ):
        with pytest.raises(RunFailed, match="other channels, shapes, voxel sizes or levels"):
            convert(other)
    chunk = out / "0" / "c" / "0" / "0" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(RunFailed, match="level 0, channel 0, z y x 0–9, 0–30, 0–40 cannot be read"):
        convert(config)


@pytest.mark.parametrize(
    ("options", "marker", "shards"),
    [
        ([], "zarr.json", (1, 32, 192, 320)),
        (["--no-shard"], "zarr.json", None),
        (["--ome-version", "0.4"], ".zgroup", None),
    ],
)
def test_layouts(
    tmp_path: Path, options: list[str], marker: str, shards: tuple[int, ...] | None
) -> None:
    planes = write_planes(tmp_path / "ch0", noise())
    out = tmp_path / "a.ome.zarr"
    words = (planes, "--out", out, "--voxel-size-um", *UM, *options, "--overwrite", "--verify")
    for _ in range(2):  # over what it wrote, too
        done = command(*words)
        assert done.returncode == 0, done.stderr
    assert (out / marker).exists()
    array = zarr.open_array(out / "0", mode="r")
    assert array.shards == shards
    assert array.chunks == ((1, 32, 64, 64) if shards else (1, 64, 128, 128))
    volume = open_volume(out)
    np.testing.assert_array_equal(volume.read((0, 0, 0), SHAPE)[0], noise())


@pytest.mark.slow
def test_planes_that_do_not_fit_are_read_in_rows(tmp_path: Path) -> None:
    array = np.add.outer(np.arange(40), noise((2100, 1500)) > 200).astype("uint8")
    planes = write_planes(tmp_path / "ch0", array, "zlib")
    out = tmp_path / "a.ome.zarr"
    words = (planes, "--out", out, "--voxel-size-um", 5, 2, 2)
    small = command(*words, "--memory-gb", 0.4)
    assert small.returncode == 2
    assert len(small.stderr.splitlines()) == 1
    assert small.stderr.startswith("error: --memory-gb leaves ")
    done = command(*words, "--memory-gb", 0.46, "--verify")
    assert done.returncode == 0, done.stderr
    volume = open_volume(out)
    np.testing.assert_array_equal(volume.read((0, 0, 0), volume.shape)[0], array)


def test_a_url_is_an_input(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    write_ome_zarr(tmp_path / "a.ome.zarr", [noise((9, 30, 40))], UM)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "a.ome.zarr"), "/convert/a.ome.zarr", recursive=True)
    out = tmp_path / "b.ome.zarr"
    url = "memory://convert/a.ome.zarr"
    convert(ConvertConfig((url,), out=out, voxel_size_um=UM, verify=True))
    volume = open_volume(out)
    np.testing.assert_array_equal(volume.read((0, 0, 0), volume.shape)[0], noise((9, 30, 40)))


@pytest.fixture
def torn(tmp_path: Path) -> Path:
    """Planes of which one in the second slab cannot be read."""
    planes = write_planes(tmp_path / "ch0", noise())
    (planes / "plane40.tif").write_bytes(b"II*\0 torn")
    return planes


def test_a_torn_plane_ends_it_and_what_is_done_stays(
    torn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.ome.zarr"
    done = command(torn, "--out", out, "--voxel-size-um", *UM)
    assert done.returncode == 2
    kept, error = done.stderr.splitlines()
    work = tmp_path / ".converting-a.ome.zarr"
    assert kept.startswith(f"1 of 8 units are done and kept in {work}; the same command goes on")
    assert error.startswith(f"error: {torn / 'plane40.tif'} cannot be read")
    assert not out.exists()

    # Mended, it is another input, though the plane is not among those that are done.
    tifffile.imwrite(torn / "plane40.tif", noise()[40])
    config = ConvertConfig((str(torn),), out=out, voxel_size_um=UM, verify=True)
    convert(config)
    assert capsys.readouterr().err.splitlines()[0] == (
        "starting over: the inputs changed since the conversion was interrupted"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ome.zarr", "ch0"]


def fail_at(monkeypatch: pytest.MonkeyPatch, call: int, error: BaseException) -> None:
    """Have the disk fail when some unit is flushed."""
    calls = itertools.count()
    fsync = os.fsync

    def failing(file: int) -> None:
        if next(calls) == call:
            raise error
        fsync(file)

    monkeypatch.setattr("cubeclf_core.pyramid.os.fsync", failing)


def test_a_full_disk_ends_it_and_what_is_done_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planes = write_planes(tmp_path / "ch0", noise())
    out = tmp_path / "a.ome.zarr"
    config = ConvertConfig((str(planes),), out=out, voxel_size_um=UM)
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        fail_at(patch, 5, full)
        with pytest.raises(RunFailed, match="No space left on device; mend that and run the same"):
            convert(config)
    assert not out.exists()
    convert(config)
    lines = capsys.readouterr().err.splitlines()
    assert "2 of 8 units are done and kept" in lines[0]
    assert lines[1] == "continuing: 2 of 8 units are done"
    np.testing.assert_array_equal(open_volume(out).read((0, 0, 0), SHAPE)[0], noise())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"voxel_size_um": (5.0, 2.0, 2.5)}, "--voxel-size-um"),
        ({"shard": False}, "the layout"),
        ({"shard": False, "voxel_size_um": (5.0, 3.0, 3.0)}, "--voxel-size-um and the layout"),
    ],
)
def test_other_settings_start_over_and_say_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    says: str,
) -> None:
    planes = write_planes(tmp_path / "ch0", noise())
    config = ConvertConfig((str(planes),), out=tmp_path / "a.ome.zarr", voxel_size_um=UM)
    with monkeypatch.context() as patch:
        fail_at(patch, 5, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            convert(config)
    convert(replace(config, verify=True, **change))
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == f"starting over: {says} changed since the conversion was interrupted"


def test_more_memory_does_not_start_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planes = write_planes(tmp_path / "ch0", noise())
    config = ConvertConfig((str(planes),), out=tmp_path / "a.ome.zarr", voxel_size_um=UM)
    with monkeypatch.context() as patch:
        fail_at(patch, 5, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            convert(config)
    convert(replace(config, memory_gb=1.0, verify=True))
    assert capsys.readouterr().err.splitlines()[1] == "continuing: 2 of 8 units are done"


def test_a_torn_record_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planes = write_planes(tmp_path / "ch0", noise())
    out = tmp_path / "a.ome.zarr"
    config = ConvertConfig((str(planes),), out=out, voxel_size_um=UM)
    with monkeypatch.context() as patch:
        fail_at(patch, 5, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            convert(config)
    work = tmp_path / ".converting-a.ome.zarr"
    journal = work / "done"
    journal.write_text(journal.read_text()[:-3])
    shards = sorted(f for f in (work / "store" / "0" / "c").rglob("*") if f.is_file())
    shards[-1].write_bytes(b"torn")
    (shards[-1].parent / "0.0123abcd.partial").write_bytes(b"torn")
    convert(config)
    assert "continuing: 1 of 8 units are done" in capsys.readouterr().err
    np.testing.assert_array_equal(open_volume(out).read((0, 0, 0), SHAPE)[0], noise())
    assert not list(out.rglob("*.partial"))


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
