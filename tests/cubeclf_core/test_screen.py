import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import ZstdCodec

from cubeclf_core.errors import VolumeError
from cubeclf_core.levels import block_means
from cubeclf_core.screen import Limits, implausible, limits_from
from cubeclf_core.tissue import Brightness, Overview, Statistics, examine, survey
from cubeclf_core.volumes import open_volume

CHUNK = (64, 128, 128)


def limits(dtype: str, *levels: tuple[float, float]) -> Limits:
    """Those of a brain with these lows and highs, channel by channel."""
    channels = tuple(Brightness((a + b) / 2, 1.0, a, b, 2 * b) for a, b in levels)
    return limits_from(Statistics(channels, 1.0, (1.0, 1.0, 1.0)), dtype)


def tissue(seed: int = 0, shape: tuple[int, ...] = CHUNK) -> np.ndarray:
    """Photon noise on a smooth background of 200 to 800 counts."""
    z, y, x = np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij")
    light = 500 + 300 * np.sin(z + y) * np.cos(x)
    return np.random.default_rng(seed).poisson(light).astype(np.uint16)


BRAIN = limits("uint16", (150.0, 900.0))


def test_noise_of_random_bytes_is_found_wherever_it_is() -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        voxels = tissue(seed)
        at = int(random.integers(0, voxels.size - 4096))
        voxels.reshape(-1)[at : at + 4096] = random.integers(0, 65536, 4096)
        why = implausible(voxels[None], BRAIN)
        assert why is not None
        assert why.startswith("channel 0 holds noise")


def test_noise_in_the_second_channel_is_found_by_its_own_limits() -> None:
    both = limits("uint16", (150.0, 9000.0), (150.0, 900.0))
    voxels = np.stack([tissue(), tissue(1)])
    voxels[1, 5, :64] = np.random.default_rng(0).integers(0, 16000, (64, 128))
    assert str(implausible(voxels, both)).startswith("channel 1")
    assert implausible(voxels[::-1], both) is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(value: float) -> None:
    voxels = tissue().astype(np.float32)[None]
    floats = limits("float32", (150.0, 900.0))
    assert implausible(voxels, floats) is None
    voxels[0, 3, 4, 5] = value
    assert "not finite" in str(implausible(voxels, floats))


def test_absurd_floats() -> None:
    voxels = tissue().astype(np.float32)
    garbage = np.random.default_rng(0).integers(0, 2**32, 8192, np.uint32).view(np.float32)
    voxels[7].reshape(-1)[:8192] = np.where(np.isfinite(garbage), garbage, 3e38)
    assert implausible(voxels[None], limits("float32", (150.0, 900.0))) is not None


@given(st.integers(0, 2**32), st.sampled_from(["uint8", "uint16", "float32"]))
def test_objects_however_bright_with_sharp_edges_are_real(seed: int, dtype: str) -> None:
    random = np.random.default_rng(seed)
    voxels = random.poisson(20, (8, 64, 96)).astype(dtype)
    brightest = 1e6 if dtype == "float32" else np.iinfo(dtype).max
    for z, y, x in random.integers(0, (8, 64, 96), (40, 3)):
        size = random.integers(2, 20)
        voxels[z : z + 2, y : y + size, x : x + size] = brightest
    for z, y, x in random.integers(0, (8, 64, 96), (40, 3)):  # hot pixels
        voxels[z, y, x] = brightest
    assert implausible(voxels[None], limits(dtype, (5.0, 40.0))) is None


@given(st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 140)))
def test_regions_of_any_shape_and_brains_of_any_brightness(shape: tuple[int, ...]) -> None:
    for dtype in ("uint8", "uint16", "float32"):
        for levels in ((0.0, 0.0), (-5.0, -1.0), (0.0, 100.0), (0.0, 65535.0)):
            assert implausible(np.full((1, *shape), 200, dtype), limits(dtype, levels)) is None
    random = np.random.default_rng(0).integers(0, 65536, (1, *shape)).astype(np.uint16)
    assert (implausible(random, BRAIN) is not None) >= (shape[1] > 32 and shape[2] > 32)


def test_it_costs_a_fraction_of_decoding() -> None:
    voxels = tissue(shape=(128, 128, 128))[None]
    times = []
    for _ in range(20):
        start = time.process_time()
        assert implausible(voxels, BRAIN) is None
        times.append(time.process_time() - start)
    assert min(times) < 1e-3  # measured: under 0.1 ms for these 4 MB; decoding takes 4 ms


def test_damaged_chunks_on_disk(tmp_path: Path) -> None:
    """Of damage that makes 500 voxels brighter than any tissue, nearly all is found."""
    voxels = tissue()
    array = zarr.create_array(
        tmp_path / "b.zarr",
        shape=CHUNK,
        chunks=CHUNK,
        dtype="uint16",
        compressors=ZstdCodec(level=3),
    )
    array[:] = voxels
    file = tmp_path / "b.zarr" / "c" / "0" / "0" / "0"
    intact = file.read_bytes()
    random = np.random.default_rng(0)
    found = []
    for _ in range(100):
        at = int(random.integers(16, len(intact) - 4096))
        file.write_bytes(intact[:at] + random.bytes(4096) + intact[at + 4096 :])
        brain = open_volume(tmp_path / "b.zarr", voxel_size_um=(5, 1, 1))
        try:
            decoded = brain.read((0, 0, 0), CHUNK)
        except VolumeError:
            continue
        differ = np.abs(decoded[0].astype(np.int64) - voxels)
        why = implausible(decoded, BRAIN)
        if (differ > 8 * 900).sum() >= 500:
            found.append(why is not None)
        elif (differ <= 900).all():
            assert why is None
    assert len(found) >= 10
    assert np.mean(found) > 0.9


def every_scale(brain: np.ndarray) -> dict[str, np.ndarray]:
    """The brain as it is, and as if imaged coarsely: by means, and by leaving voxels out."""
    means = np.stack([block_means(c, (2, 4, 4)) for c in brain])
    return {"fine": brain, "means": means, "left out": brain[:, ::2, ::4, ::4]}


def check_passes(brain: np.ndarray) -> None:
    for name, voxels in every_scale(brain).items():
        for step in ((1, 1, 1), (2, 4, 4), (4, 16, 16)):  # of the overview, that averages
            small = np.stack([block_means(c, step) for c in voxels]).astype(np.float32)
            found = examine(Overview(small, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))).statistics
            assert implausible(voxels, limits_from(found, voxels.dtype)) is None, (name, step)


BLOCKS = [f"cfos/{n}" for n in (753, 969, 1230)]
BLOCKS += [f"microglia/{n}" for n in (4923, 6003, 6506, 7082, 7466)]


@pytest.mark.parametrize(
    "block",
    ["cfos/695", "microglia/1874", *(pytest.param(b, marks=pytest.mark.slow) for b in BLOCKS)],
)
def test_real_blocks_pass(real_data: Path, block: str) -> None:
    whole = open_volume(real_data / f"{block}.tif", voxel_size_um=(6, 1.62, 1.62))
    voxels = whole.read((0, 0, 0), whole.shape)
    assert implausible(voxels, limits_from(survey(whole, 1).statistics, whole.dtype)) is None
    check_passes(voxels[:, :64])


def test_the_serial_two_photon_crop_passes(real_data: Path) -> None:
    folder = real_data / "serial2p_crop"
    crop = open_volume(folder / "ch0", background=folder / "ch1", voxel_size_um=(5, 2, 2))
    voxels = crop.read((0, 0, 0), crop.shape)
    assert implausible(voxels, limits_from(survey(crop, 2).statistics, crop.dtype)) is None
    check_passes(voxels[:, 5:17])


def test_simulated_brains_pass(simulated: Callable[[int], Any]) -> None:
    whole = open_volume(simulated(0).volume)
    voxels = whole.read((0, 0, 0), whole.shape)
    assert implausible(voxels, limits_from(survey(whole, 2).statistics, whole.dtype)) is None
    check_passes(voxels)
