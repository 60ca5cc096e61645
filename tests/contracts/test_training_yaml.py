"""Our reading of a training YAML against cellfinder's own, cube by cube and voxel by voxel."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tifffile
import torch
import yaml

from cubeclf_core.cells import Cells, write_cells
from cubeclf_core.vit import Vit3dConfig
from finetune.cubes import list_cubes, read_cubes

# brainglobe-utils calls functions of rapidyaml that newer versions of it call deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:(compute_)?emit_:DeprecationWarning")

PATTERNS = ("pCellz{z}y{y}x{x}Ch{c}.tif", "pCellx{x}_y{y}_z{z}Ch{c}.tif")


@pytest.fixture(scope="module")
def train_yaml() -> ModuleType:
    """Import cellfinder's module here only, as it takes seconds."""
    return pytest.importorskip(
        "cellfinder.core.train.train_yaml", reason="cellfinder is not installed"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cubes under both names and each dtype, and what may define cells."""
    path = tmp_path_factory.mktemp("cubes")
    random = np.random.default_rng(0)
    for dtype in ("uint8", "uint16", "float32"):
        (path / dtype).mkdir()
        for i in range(6):
            for channel in (0, 1, 2):
                name = PATTERNS[i % 2].format(z=i, y=30 + i, x=700 * i, c=channel)
                cube = random.integers(0, 250, (20, 50, 50)).astype(dtype)
                tifffile.imwrite(path / dtype / name, cube)
    # A position between voxels is cut off; XML rounds; one is of no cube; types do not matter.
    positions = np.array([[1.9, 31.9, 700.9], [2, 32, 1400], [8, 8, 8], [4, 34, 2800]])
    wanted = Cells(positions, np.array([2, 1, 2, -1]))
    for suffix in ("xml", "yml", "yaml"):
        write_cells(path / f"cells.{suffix}", wanted)
    (path / "named").mkdir()
    for name in ("pCellx1400_y32_z2Ch0.tif", "Cell_z358_y564_x4056", "z4y34x2800.png"):
        (path / "named" / name).write_bytes(b"")
    return path


def tiff_lists(train_yaml, entries):
    """Files of each cube and its point, as cellfinder reads its training YAML."""
    names, points = train_yaml.make_tiff_lists(train_yaml.get_tiff_files(entries))
    # From 1.11 on, with what it knows of each channel's brightness.
    return [each[0] if isinstance(each[0], list) else each for each in names], points


@pytest.mark.parametrize("cell_def", ["", "cells.xml", "cells.yml", "cells.yaml", "named"])
@pytest.mark.parametrize("background", [2, -1])
def test_the_same_cubes_are_of_the_same_class(
    train_yaml, folder: Path, monkeypatch, cell_def: str, background: int
) -> None:
    common = {"signal_channel": 1, "bg_channel": background}
    entries = [
        {"cube_dir": "uint16", "type": "cell", "cell_def": cell_def} | common,
        {"cube_dir": "uint8", "type": "no_cell", "cell_def": ""} | common,
    ]
    file = folder / "training.yaml"
    file.write_text(yaml.safe_dump({"data": entries}))
    monkeypatch.chdir(folder)  # cellfinder looks nowhere else
    parsed = train_yaml.parse_yaml([file])
    names, points = tiff_lists(train_yaml, parsed)
    ours = list_cubes(file)
    assert len(ours) == len(names) > 6
    found = {
        tuple(path.relative_to(folder).as_posix() for path in cube.paths): (
            cube.label,
            cube.position,
        )
        for cube in ours
    }
    assert found == {
        tuple(paths): (int(point.type == 2), (point.z, point.y, point.x))
        for paths, point in zip(names, points, strict=True)
    }


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_same_voxels_reach_the_network(train_yaml, folder, monkeypatch, dtype: str) -> None:
    entry = {"cube_dir": dtype, "type": "cell", "signal_channel": 0, "bg_channel": 1}
    file = folder / "training.yaml"
    file.write_text(yaml.safe_dump({"data": [entry]}))
    monkeypatch.chdir(folder)
    names, points = tiff_lists(train_yaml, [entry])
    dataset = train_yaml.CuboidTiffDataset(
        points=points,
        points_filenames=names,
        data_voxel_sizes=(1, 1, 1),
        network_voxel_sizes=(1, 1, 1),
        network_cuboid_voxels=(20, 50, 50),
        axis_order=("z", "y", "x"),
        target_output=None,
    )
    theirs = dataset[list(range(len(points)))].permute(0, 4, 3, 1, 2)  # from b y x z c
    data = read_cubes(file, Vit3dConfig())
    assert len(data) == len(theirs) == 6
    order = [data.sources.index(paths[0]) for paths in names]
    torch.testing.assert_close(data.cuboids[order], theirs.contiguous().float(), rtol=0, atol=0)
