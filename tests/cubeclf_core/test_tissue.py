from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cubeclf_core.cells import read_cells
from cubeclf_core.errors import VolumeError
from cubeclf_core.plots import tissue_map
from cubeclf_core.pyramid import write_ome_zarr
from cubeclf_core.tissue import Overview, examine, overview, statistics, survey, tissue_mask
from cubeclf_core.volumes import ArraySource, Volume, open_volume

UM = (20.0, 20.0, 20.0)


def brain(
    level: float = 200.0, offset: float = 100.0, spots: bool = True, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """An ellipsoid of textured tissue in a bath, two channels, and where it is."""
    shape = (40, 80, 60)
    rng = np.random.default_rng(seed)
    axes = [np.linspace(-1, 1, n) for n in shape]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    inside = (z / 0.7) ** 2 + (y / 0.8) ** 2 + (x / 0.65) ** 2 < 1
    texture = np.exp(0.15 * ndimage.zoom(rng.normal(size=(5, 10, 6)), (8, 8, 10), order=3))
    light = ndimage.gaussian_filter(inside * texture, 0.7) * level
    channels = light + offset + rng.normal(0, 3, (2, *shape))
    if spots:
        channels[0, inside & (rng.random(shape) < 0.002)] += 20_000
    return np.clip(np.rint(channels), 0, 65535).astype(np.uint16), inside


def volume(channels: np.ndarray, voxel_size_um: tuple[float, float, float] = UM) -> Volume:
    return Volume("mouse", tuple(ArraySource(c) for c in channels), voxel_size_um)


def seen(channels: np.ndarray) -> Overview:
    return Overview(channels.astype(np.float32), UM, (1.0, 1.0, 1.0))


def check(mask: np.ndarray, inside: np.ndarray, around: int = 3) -> None:
    """All tissue is found, and only a few voxels around it."""
    assert mask[inside].mean() > 0.999
    near = ndimage.binary_dilation(inside, np.ones((3, 3, 3)), around)
    assert not (mask & ~near).any()


@pytest.mark.parametrize("n_channels", [1, 2])
@pytest.mark.parametrize(
    "how",
    [{}, {"level": 40.0}, {"level": 20.0, "spots": False}, {"offset": 3.0}, {"level": 3000.0}],
)
def test_a_brain_in_a_bath(n_channels: int, how: dict[str, Any]) -> None:
    channels, inside = brain(**how)
    check(survey(volume(channels), n_channels).mask, inside)


@pytest.mark.parametrize("n_channels", [1, 2])
def test_a_piece_of_tissue_is_all_tissue(n_channels: int) -> None:
    channels, _ = brain()
    piece = np.ascontiguousarray(channels[:, 14:26, 24:56, 22:38])
    assert survey(volume(piece), n_channels).mask.all()


@pytest.mark.parametrize("share", [0.03, 0.1, 0.3])
def test_bright_labelling_does_not_make_the_rest_a_bath(share: float) -> None:
    rng = np.random.default_rng(0)
    where = ndimage.gaussian_filter(rng.normal(size=(30, 60, 60)), 2)
    tissue = 400 * np.exp(0.2 * rng.normal(size=where.shape))
    tissue[where > np.quantile(where, 1 - share)] *= 2.5
    assert tissue_mask(seen(tissue[None])).all()


@pytest.mark.parametrize("constant", [0, 100, 250, 5000])
def test_a_constant_around_a_stitched_brain_is_outside(constant: int) -> None:
    channels, inside = brain()
    channels[:, ~inside] = constant
    check(tissue_mask(seen(channels)), inside)


@pytest.mark.parametrize("constant", [0, 100, 250, 5000])
def test_a_constant_around_a_bath_is_outside_too(constant: int) -> None:
    channels, inside = brain()
    channels[:, :, :20] = constant
    channels[..., :12] = constant
    inside[:, :20] = False
    inside[..., :12] = False
    check(tissue_mask(seen(channels)), inside)


def test_tissue_that_only_the_background_shows() -> None:
    channels, inside = brain()
    channels[0] = np.random.default_rng(1).normal(100, 3, inside.shape).astype(np.uint16)
    check(tissue_mask(seen(channels)), inside)


def test_specks_are_dropped_and_holes_filled() -> None:
    channels, inside = brain(spots=False)
    channels[:, 2:4, 2:4, 2:4] = 300
    channels[:, 19:22, 38:42, 29:32] = 100
    check(tissue_mask(seen(channels)), inside)


@given(st.floats(0, 65535), st.sampled_from([(1, 1, 1), (1, 70, 3), (5, 5, 5)]))
def test_where_nothing_can_be_told_all_is_tissue(value: float, shape: tuple[int, ...]) -> None:
    assert tissue_mask(seen(np.full((1, *shape), value))).all()


@settings(max_examples=15)
@given(st.integers(0, 9), st.floats(1e-3, 1e3))
def test_gain_does_not_change_the_mask(seed: int, gain: float) -> None:
    channels, _ = brain(seed=seed)
    before, after = tissue_mask(seen(channels)), tissue_mask(seen(channels * gain))
    assert (before != after).mean() < 1e-3  # rounding moves a bin's edge


@settings(max_examples=15)
@given(st.integers(0, 9), st.floats(0.01, 100), st.floats(-500, 500))
def test_statistics_follow_gain_and_offset(seed: int, gain: float, offset: float) -> None:
    channels, inside = brain(seed=seed)
    before = statistics(seen(channels), inside).channels
    after = statistics(seen(channels * gain + offset), inside).channels
    for b, a in zip(before, after, strict=True):
        for level in ("median", "low", "high", "brightest"):
            expected = gain * getattr(b, level) + offset
            assert getattr(a, level) == pytest.approx(expected, rel=1e-4, abs=1e-2)
        assert a.spread == pytest.approx(gain * b.spread, rel=1e-3, abs=1e-2)


@settings(max_examples=15)
@given(st.integers(0, 2**32))
def test_statistics_are_of_tissue_only(seed: int) -> None:
    channels, inside = brain()
    before = statistics(seen(channels), inside)
    channels[:, ~inside] = np.random.default_rng(seed).integers(0, 65535, (2, (~inside).sum()))
    assert statistics(seen(channels), inside) == before


def test_statistics_say_what_they_are() -> None:
    values = np.arange(1000.0).reshape(1, 10, 10, 10)
    found = asdict(statistics(seen(values), np.arange(1000).reshape(10, 10, 10) >= 500))
    assert found["tissue"] == 0.5
    assert found["voxel_size_um"] == UM
    (signal,) = found["channels"]
    assert signal["median"] == pytest.approx(749.5)
    assert signal["spread"] == pytest.approx(249.5 / 1.349)
    assert (signal["low"], signal["high"]) == pytest.approx((504.99, 998.501))
    assert signal["brightest"] == 999


@settings(max_examples=30)
@given(
    st.tuples(st.integers(1, 600), st.integers(1, 600), st.integers(1, 600)).filter(
        lambda s: s[0] * s[1] * s[2] < 1 << 20
    )
)
def test_an_overview_covers_the_whole_volume(shape: tuple[int, int, int]) -> None:
    found = survey(volume(np.ones((1, *shape), np.uint8), (5.0, 2.0, 1.0)), 1)
    assert max(found.mask.shape) <= 256
    assert np.multiply(found.scale, found.mask.shape) == pytest.approx(shape)
    assert np.multiply(found.scale, (5.0, 2.0, 1.0)) == pytest.approx(
        found.statistics.voxel_size_um
    )


def test_a_small_pyramid_level_is_enough(tmp_path: Path) -> None:
    channels = np.tile(np.arange(512, dtype=np.uint16), (2, 8, 512, 1))
    write_ome_zarr(tmp_path / "b.zarr", list(channels), (8.0, 1.0, 1.0))
    found = overview(open_volume(tmp_path / "b.zarr"), 1)
    assert found.voxels.shape == (1, 8, 128, 128)
    assert found.voxel_size_um == (8.0, 4.0, 4.0)
    assert found.scale == (1.0, 4.0, 4.0)
    assert found.voxels[0, 0, 0, 0] == 2  # the level's own rounded mean


def test_a_damaged_level_is_passed_over(tmp_path: Path) -> None:
    write_ome_zarr(tmp_path / "b.zarr", [np.ones((8, 512, 512), np.uint16)], (8.0, 1.0, 1.0))
    for chunk in (tmp_path / "b.zarr" / "2").rglob("*"):
        if chunk.is_file() and chunk.name != "zarr.json":
            chunk.write_bytes(b"no chunk")
    found = overview(open_volume(tmp_path / "b.zarr"), 1)
    assert found.voxels.shape == (1, 8, 256, 256)
    assert (found.voxels == 1).all()


def plain(path: Path, channel: np.ndarray, chunks: tuple[int, int, int]) -> zarr.Array[Any]:
    array = zarr.create_array(path, shape=channel.shape, chunks=chunks, dtype=channel.dtype)
    array[:] = channel
    return array


def test_planes_of_a_large_volume_without_a_pyramid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cubeclf_core.tissue.READ_WHOLE", 1000)
    channels, inside = brain()
    fine = channels[0].repeat(8, axis=1).repeat(8, axis=2)
    plain(tmp_path / "b.zarr", fine, (16, 128, 128))
    big = open_volume(tmp_path / "b.zarr", voxel_size_um=UM)
    found = overview(big, 1)
    assert found.voxels.shape == (1, 32, 160, 240)
    assert found.scale == (1.25, 4.0, 2.0)
    planes = ((np.arange(32) + 0.5) * 1.25).astype(int)
    expected = channels[0][planes].repeat(2, axis=1).repeat(4, axis=2)
    np.testing.assert_array_equal(found.voxels[0], expected)
    check(tissue_mask(found), inside[planes].repeat(2, axis=1).repeat(4, axis=2), 8)
    assert "cubeclf-convert" in capsys.readouterr().err


def test_a_damaged_chunk_does_not_stop_a_survey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cubeclf_core.tissue.READ_WHOLE", 1000)
    channels, inside = brain()
    plain(tmp_path / "b.zarr", channels[0], (16, 80, 60))
    (tmp_path / "b.zarr" / "c" / "1" / "0" / "0").write_bytes(b"no chunk")
    found = survey(open_volume(tmp_path / "b.zarr", voxel_size_um=UM), 1)
    assert 0.5 < found.mask.mean() / inside.mean() < 2
    (tmp_path / "b.zarr" / "c" / "0" / "0" / "0").write_bytes(b"no chunk")
    with pytest.raises(VolumeError, match="cannot be decoded"):
        survey(open_volume(tmp_path / "b.zarr", voxel_size_um=UM), 1)


@pytest.mark.parametrize("n_channels", [1, 2])
def test_the_picture_shows_each_channel_and_the_outline(n_channels: int) -> None:
    channels, inside = brain()
    found = seen(channels[:n_channels])
    figure = tissue_map("mouse", found.voxels, examine(found).mask, found.voxel_size_um)
    assert len(figure.axes) == 4 * n_channels
    assert figure.get_suptitle().startswith("mouse: 2")
    z_um = 20 * int(np.median(np.nonzero(inside)[0]))
    assert any(abs(float(a.get_title("left").split()[1]) - z_um) <= 20 for a in figure.axes[:1])
    (bar,) = figure.axes[0].lines
    assert np.ptp(bar.get_xdata()) == 200
    figure.canvas.draw()


@pytest.mark.parametrize("channels", [np.zeros((1, 1, 5, 5)), np.full((1, 4, 1, 9), -3.5)])
def test_a_picture_of_next_to_nothing(channels: np.ndarray) -> None:
    found = seen(channels)
    tissue_map("mouse", found.voxels, tissue_mask(found), UM).canvas.draw()


CROPS = {"695": (0.65, 0.75), "753": (0.88, 0.95), "969": (0.92, 0.97)}  # seen by eye: a surface


@pytest.mark.parametrize("block", CROPS)
def test_cfos_blocks_end_at_the_brains_surface(real_data: Path, block: str) -> None:
    found = survey(open_volume(real_data / f"cfos/{block}.tif", voxel_size_um=(6, 1.62, 1.62)), 1)
    low, high = CROPS[block]
    assert low < found.mask.mean() < high
    cells = read_cells(real_data / f"cfos/{block}.xml").positions / found.scale
    assert found.mask[tuple(np.floor(cells).astype(int).T)].all()


@pytest.mark.parametrize("block", ["microglia/1874", "microglia/6003", "microglia/7082"])
def test_real_blocks_of_tissue_are_all_tissue(real_data: Path, block: str) -> None:
    whole = open_volume(real_data / f"{block}.tif", voxel_size_um=(6, 1.62, 1.62))
    assert survey(whole, 1).mask.mean() >= 0.98


def test_white_matter_is_no_bath(real_data: Path) -> None:
    block = tifffile.imread(real_data / "cfos/969.tif")[45:]
    assert survey(volume(block[None], (6.0, 1.62, 1.62)), 1).mask.mean() >= 0.98


@pytest.mark.parametrize("n_channels", [1, 2])
def test_the_serial_two_photon_crop(real_data: Path, n_channels: int) -> None:
    folder = real_data / "serial2p_crop"
    crop = open_volume(folder / "ch0", background=folder / "ch1", voxel_size_um=(5, 2, 2))
    found = survey(crop, n_channels)
    assert 0.88 < found.mask.mean() < 0.93  # a corner of it is bath
    cells = read_cells(folder / "cells.xml").positions / found.scale
    assert found.mask[tuple(np.floor(cells).astype(int).T)].all()
