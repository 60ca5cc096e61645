"""The stream on other forms of the data: a larger canvas, one channel, TIFF planes, shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tifffile

from benchmarks.streams import VOXEL_SIZE_UM, Streamed, make_stream, told
from benchmarks.volume import Tissue
from cubeclf_core.axes import Shape3
from cubeclf_core.pyramid import INNER_CHUNKS, SHARDS, write_ome_zarr
from cubeclf_core.tissue import survey
from cubeclf_core.volumes import Volume, open_volume

CANVAS: Shape3 = (24, 60, 60)

FORMS = {
    "canvas": "canvases of 24 × 60 × 60",
    "one_channel": "one channel",
    "sharded": "shards, as cubeclf-convert writes them",
    "tiff": "TIFF planes, not compressed",
}
"""What is measured beside, and what to call it."""


@dataclass(frozen=True)
class Found:
    """Cuboids (or canvases) a second of processor time, and draws for each chunk decoded."""

    cpu: float
    draws_per_chunk: float


def forms(
    volume: Volume, folder: Path, shape: Shape3, seconds: float, **options: Any
) -> Iterator[tuple[str, Found]]:
    """Measure the stream, as it is on the volume, on each other form.

    Parameters
    ----------
    volume
        That the plain figures are of.
    folder
        To write smaller volumes of the same kind into.
    shape
        Of those, z y x.
    seconds
        Of processor time for each.
    options
        Of the streams.

    Yields
    ------
    str, Found
        A key of `FORMS`, and what was found.
    """
    yield "canvas", _rate(volume, seconds, shape=CANVAS, **options)
    yield "one_channel", _rate(volume, seconds, n_channels=1, **options)
    channels = [Tissue(shape, seed) for seed in range(2)]
    sharded = folder / "sharded.ome.zarr"
    write_ome_zarr(sharded, channels, VOXEL_SIZE_UM, chunks=INNER_CHUNKS, shards=SHARDS)
    yield "sharded", _rate(open_volume(sharded), seconds, **options)
    folders = [folder / "planes" / str(c) for c in range(2)]
    for channel, planes in zip(channels, folders, strict=True):
        _write_planes(channel, planes)
    signal, background = folders
    opened = open_volume(signal, background=background, voxel_size_um=VOXEL_SIZE_UM)
    yield "tiff", _rate(opened, seconds, **options)


def _rate(volume: Volume, seconds: float, **options: Any) -> Found:
    seen = survey(volume, options.get("n_channels", volume.n_channels))
    finest = told(volume)
    streamed = Streamed(finest, make_stream(finest, seen, **options))
    rate = streamed.measure(seconds).cpu
    streamed.close()
    return Found(rate, streamed.draws_per_chunk)


def _write_planes(channel: Tissue, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    depth, height, width = channel.shape
    for z in range(depth):
        plane = channel[z : z + 1, 0:height, 0:width][0]
        tifffile.imwrite(folder / f"plane{z}.tif", plane)
