"""cellfinder's labelled cubes: a training YAML that names folders of TIFF cubes.

A cube is ``pCellz{z}y{y}x{x}Ch{c}.tif``, or ``pCellx{x}_y{y}_z{z}Ch{c}.tif`` as brainglobe-utils
writes it: 20 × 50 × 50 voxels of 5 × 1 × 1 µm, z y x. Its class is that of its YAML entry.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import torch
import yaml

from cubeclf_core.errors import CellsError, InputError
from cubeclf_core.vit import Vit3dConfig
from finetune.labels import Labelled

_KINDS = {"cell": 1, "no_cell": 0}
_CUBE = re.compile(r"(?P<at>.*[xyz]\d+.*)Ch(?P<channel>\d+)\.tiff?$", re.IGNORECASE)


def read_cubes(file: Path, network: Vit3dConfig) -> Labelled:
    """Read all cubes of a training YAML.

    Parameters
    ----------
    file
        ``data``: a list with ``cube_dir``, ``type`` (cell, no_cell), ``signal_channel``,
        ``bg_channel`` (negative: none). Other keys are not needed here. A relative path is tried
        against the YAML's folder and then against the working directory.
    network
        What the cubes are for.

    Raises
    ------
    InputError
        If the YAML or a folder cannot be read.
    CellsError
        If there is no cube, or one has another shape than the network takes.
    """
    cuboids: list[npt.NDArray[np.float32]] = []
    labels: list[int] = []
    for entry in _entries(file):
        before = len(cuboids)
        cuboids.extend(_read_folder(entry, file, network))
        labels.extend([_KINDS[entry["type"]]] * (len(cuboids) - before))
    return Labelled(
        torch.from_numpy(np.stack(cuboids)), np.array(labels), [file.stem] * len(labels)
    )


def _entries(file: Path) -> list[dict[str, Any]]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read as YAML: {error}") from error
    entries = content.get("data") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{file} is no training YAML: expected a list under the key 'data'")
    kinds: dict[Path, str] = {}
    for entry in entries:
        _check_entry(entry, file)
        folder = _resolve(entry["cube_dir"], file).resolve()
        if kinds.setdefault(folder, entry["type"]) != entry["type"]:
            raise InputError(f"{file} names the folder {folder} both as cell and as no_cell")
    return entries


def _check_entry(entry: Any, file: Path) -> None:
    if not isinstance(entry, dict) or not isinstance(entry.get("cube_dir"), str):
        raise InputError(f"{file}: each entry needs a cube_dir, a folder")
    if entry.get("type") not in list(_KINDS):
        raise InputError(f"{file}: type is {entry.get('type')!r}, expected cell or no_cell")
    for key, lowest in (("signal_channel", 0), ("bg_channel", -(2**31))):
        value = entry.get(key, 0)
        if not isinstance(value, int) or value < lowest:
            raise InputError(f"{file}: {key} is {value!r}, expected the number of a channel")
    if entry.get("cell_def"):
        raise InputError(
            f"{file}: cell_def is {entry['cell_def']!r}; choosing cubes by a list of cells is not "
            "supported yet, so leave it empty and keep each class in a folder of its own"
        )


def _read_folder(
    entry: dict[str, Any], file: Path, network: Vit3dConfig
) -> Iterator[npt.NDArray[np.float32]]:
    folder = _resolve(str(entry["cube_dir"]), file)
    channels = [int(entry.get("signal_channel", 0)), int(entry.get("bg_channel", -1))]
    channels = [channel for channel in channels if channel >= 0][: network.channels]
    cubes: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        if match := _CUBE.match(path.name):
            cubes.setdefault(match["at"], {})[int(match["channel"])] = path
    if not cubes:
        raise CellsError(f"{folder} holds no cubes; expected files like pCellz1y2x3Ch0.tif")
    for at, paths in cubes.items():
        lacking = [channel for channel in channels if channel not in paths]
        if lacking:
            raise CellsError(f"{folder}: cube {at} lacks channel {lacking[0]}")
        yield _read_cube([paths[channel] for channel in channels], network)


def _read_cube(paths: list[Path], network: Vit3dConfig) -> npt.NDArray[np.float32]:
    cube = np.zeros((network.channels, *network.cuboid_shape), np.float32)
    for channel, path in enumerate(paths):
        try:
            voxels = tifffile.imread(path)
        except (OSError, ValueError) as error:  # tifffile's own errors are ValueErrors
            raise CellsError(f"{path} cannot be read as TIFF: {error}") from error
        if voxels.shape != network.cuboid_shape:
            raise CellsError(
                f"{path} has shape {voxels.shape}; the backbone takes {network.cuboid_shape}"
            )
        if not np.isfinite(voxels).all():
            raise CellsError(f"{path} holds values that are not finite")
        cube[channel] = voxels
    return cube


def _resolve(path: str, file: Path) -> Path:
    tried = [file.parent / path, Path.cwd() / path]
    for folder in tried:
        if folder.is_dir():
            return folder
    raise InputError(f"{file} names the folder {path}, which is neither {tried[0]} nor {tried[1]}")
