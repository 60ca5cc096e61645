"""Candidates classified by cellfinder itself, as a command: the whole of what a user waits for.

Run by the benchmark. Settings are cellfinder's own defaults.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def make_resnet50(file: Path) -> None:
    """Write cellfinder's ResNet-50 with random weights, which are as fast as trained ones."""
    from cellfinder.core.classify.tools import get_model

    get_model(network_depth="50-layer").save(file)


def classify(given: argparse.Namespace) -> None:
    """Read, classify and write."""
    from brainglobe_utils.IO.cells import get_cells, save_cells
    from cellfinder.core.classify.classify import main

    signal = _array(given.signal, 0)
    background = _array(given.background or given.signal, 0 if given.background else 1)
    kept = main(
        points=get_cells(str(given.cells)),
        signal_array=signal,
        background_array=background,
        n_free_cpus=2,
        voxel_sizes=given.voxel_size_um,
        network_voxel_sizes=(5, 1, 1),
        batch_size=64,
        cube_height=50,
        cube_width=50,
        cube_depth=20,
        trained_model=given.model,
        model_weights=None,
        network_depth="50",
    )
    save_cells(kept, str(given.out))
    print(f"{len(kept)} kept")


def _array(path: Path, channel: int) -> npt.NDArray[Any]:
    """Planes in memory; also those of an OME-Zarr, of which dask would decode chunks for each."""
    if path.suffix == ".zarr":
        import dask.array as da

        whole = da.from_zarr(str(path), component="0")
        return np.asarray(whole[channel] if whole.ndim == 4 else whole)
    import tifffile

    return np.stack([tifffile.imread(plane) for plane in sorted(path.glob("*.tif"))])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.classifying.by_cellfinder")
    for flag in ("--signal", "--background", "--cells", "--model", "--out", "--make-resnet50"):
        parser.add_argument(flag, type=Path)
    parser.add_argument("--voxel-size-um", nargs=3, type=float)
    arguments = parser.parse_args()
    if arguments.make_resnet50:
        make_resnet50(arguments.make_resnet50)
    else:
        classify(arguments)
