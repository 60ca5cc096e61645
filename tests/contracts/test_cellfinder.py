"""Our cuboids against those that cellfinder's own code cuts for its classifier."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from cubeclf_core.candidates import read_all_candidates
from cubeclf_core.cells import read_cells
from cubeclf_core.geometry import source_shape, starts_around
from cubeclf_core.volumes import ArraySource, Volume, open_volume

SHAPE, UM = (20, 50, 50), (5.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def cube_generator() -> ModuleType:
    """Import cellfinder's module here only, as it takes seconds; it sets Keras' backend itself."""
    return pytest.importorskip(
        "cellfinder.core.classify.cube_generator", reason="cellfinder is not installed"
    )


def cut_by_cellfinder(
    cube_generator: ModuleType, volume: Volume, positions: np.ndarray
) -> tuple[np.ndarray, torch.Tensor]:
    """The positions that cellfinder keeps, and its cuboids (b, c, z, y, x) there."""
    from brainglobe_utils.cells.cells import Cell

    points = [Cell((0, 0, 0), Cell.UNKNOWN) for _ in positions]
    for point, (z, y, x) in zip(points, positions.tolist(), strict=True):
        point.z, point.y, point.x = z, y, x  # the constructor would cut off fractions
    whole = volume.read((0, 0, 0), volume.shape)
    dataset = cube_generator.CuboidArrayDataset(
        signal_array=whole[0],
        background_array=whole[1] if len(whole) > 1 else None,
        points=points,
        data_voxel_sizes=volume.voxel_size_um,
        network_voxel_sizes=UM,
        network_cuboid_voxels=SHAPE,
        axis_order=("z", "y", "x"),
        max_axis_0_cuboids_buffered=1,
    )
    kept = dataset.points_arr[:, 4].numpy().astype(np.int64)
    in_order = np.argsort(positions[kept, 0], kind="stable")  # its buffer of planes moves along z
    cuboids = dataset[in_order.tolist()].permute(0, 4, 3, 1, 2)  # from b y x z c
    return kept[in_order], cuboids


def assert_agrees(cube_generator: ModuleType, volume: Volume, positions: np.ndarray) -> None:
    kept, theirs = cut_by_cellfinder(cube_generator, volume, positions)
    ours = read_all_candidates(
        volume, positions, shape=SHAPE, voxel_size_um=UM, n_channels=volume.n_channels
    )
    assert 0 < len(kept) < len(positions)  # so both kinds are looked at
    np.testing.assert_array_equal(np.sort(kept), np.flatnonzero(~ours.padded))
    torch.testing.assert_close(ours.cuboids[torch.from_numpy(kept)], theirs.contiguous())


def anywhere(volume: Volume, n: int) -> np.ndarray:
    """Positions all over a volume, half of them whole voxels, and its corners."""
    random = np.random.default_rng(1)
    last = np.array(volume.shape) - 1
    positions = np.concatenate([random.uniform(0, 1, (n, 3)) * last, [[0, 0, 0], last]])
    positions[::2] = np.rint(positions[::2])
    positions[1::4] = np.floor(positions[1::4]) + 0.5  # where rounding has to choose
    return np.minimum(positions, last)


@pytest.mark.parametrize(
    "own_um",
    [UM, (5.0, 2.0, 2.0), (6.0, 1.62, 1.62), (2.5, 0.9, 1.1), (10.0, 3.0, 2.0)],
    ids=lambda um: "x".join(f"{n:g}" for n in um),
)
@pytest.mark.parametrize("channels", [1, 2])
def test_cuboids_are_cellfinders(cube_generator: ModuleType, own_um, channels: int) -> None:
    random = np.random.default_rng(0)
    arrays = [random.integers(0, 60_000, (64, 90, 100)).astype(np.uint16) for _ in range(channels)]
    volume = Volume("random", tuple(ArraySource(a, (16, 32, 32)) for a in arrays), own_um)
    assert_agrees(cube_generator, volume, anywhere(volume, 100))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_cuboids_of_other_dtypes_are_cellfinders(cube_generator: ModuleType, dtype: str) -> None:
    array = np.random.default_rng(0).uniform(0, 255, (40, 70, 80)).astype(dtype)
    volume = Volume("random", (ArraySource(array, (16, 32, 32)),), (5.0, 2.0, 2.0))
    assert_agrees(cube_generator, volume, anywhere(volume, 50))


@pytest.mark.parametrize("own_um", [(5.0, 2.0, 2.0), UM], ids=["as taken", "as the network's"])
def test_cuboids_of_real_tissue_are_cellfinders(
    cube_generator: ModuleType, real_data: Path, own_um
) -> None:
    crop = real_data / "serial2p_crop"
    volume = open_volume(crop / "ch0", background=crop / "ch1", voxel_size_um=own_um)
    cells = read_cells(crop / "cells.xml").positions
    assert_agrees(cube_generator, volume, np.concatenate([cells, anywhere(volume, 500)]))
    if own_um != UM:  # the labelled cells all have room
        assert len(cut_by_cellfinder(cube_generator, volume, cells)[0]) == len(cells) == 56


def test_the_rules_themselves_are_cellfinders(cube_generator: ModuleType) -> None:
    """Extents and starts over many sizes, one coordinate at a time."""
    array = np.broadcast_to(np.uint8(0), (2000, 2000, 2000))
    random = np.random.default_rng(2)
    for own_um in random.uniform(0.4, 9, (200, 3)).round(2).tolist():
        volume = Volume("v", (ArraySource(array),), tuple(own_um))
        extent = source_shape(SHAPE, UM, volume)
        assert extent == tuple(
            cube_generator.get_data_cuboid_voxels(*sizes)
            for sizes in zip(SHAPE, UM, own_um, strict=True)
        )
        positions = np.rint(random.uniform(0, 200, (5, 3)) * 2) / 2
        for position, start in zip(positions, starts_around(positions, extent), strict=True):
            ranges = map(cube_generator.get_data_cuboid_range, position, extent, "zyx")
            assert [first for first, _ in ranges] == start.tolist()
