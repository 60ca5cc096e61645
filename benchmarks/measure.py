"""All measurements of ``python -m benchmarks.streaming``, in turn."""

from __future__ import annotations

import os
import statistics
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.candidates import DENSE, SPARSE, Candidates
from benchmarks.config import StreamingConfig
from benchmarks.design_effect import design_effects
from benchmarks.forms import FORMS, forms
from benchmarks.limit import Limit
from benchmarks.meter import Rate
from benchmarks.output import Figures, machine, working_folder, write_files
from benchmarks.probe import probe
from benchmarks.report import RATIOS, findings, plot, table
from benchmarks.streams import (
    CUBOID,
    VOXEL_SIZE_UM,
    Streamed,
    decoded_chunks,
    live_regions,
    make_stream,
    to_fill,
    told,
    unread,
)
from benchmarks.volume import write_brain
from benchmarks.ways import OneByOne, Stored, one_by_one, open_array
from cubeclf_core.axes import Shape3
from cubeclf_core.console import say
from cubeclf_core.errors import require
from cubeclf_core.sources import by
from cubeclf_core.tiles import CHUNK_VOXELS
from cubeclf_core.tissue import Survey, survey
from cubeclf_core.volumes import Volume, open_volume

DRAWS = (20, 32, 128)
STEP = 100_000  # deep in training
_BASES = {
    f"candidates_{name}{raw}": f"zarr_{name}"
    for name in ("sparse", "dense")
    for raw in ("", "_raw")
}
PACKAGES = ("numpy", "zarr", "numcodecs", "dask", "tensorstore", "cubeclf")


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes
    ----------
    shape
        Of the volume that is made, z y x.
    small
        Of those in other forms.
    rounds
        In each of which everything is measured once; figures are medians over them.
    seconds
        Of processor time for each way in a round.
    candidates
        To read in a round, at most.
    batches
        To judge how independent cuboids are.
    gigabyte
        What counts as one, in bytes.
    live_chunks
        That were decoded for the pool of a resume, of 64 × 128 × 128 voxels.
    """

    shape: Shape3
    small: Shape3
    rounds: int
    seconds: float
    candidates: int
    batches: int
    gigabyte: int = 1 << 30
    live_chunks: int = 1024


FULL = Effort((512, 1280, 1280), (256, 1024, 1024), 5, 4.0, 50_000, 600)
QUICK = Effort((256, 896, 1024), (128, 512, 1024), 3, 1.2, 12_000, 100)


def measure(config: StreamingConfig, effort: Effort) -> Figures:
    """Measure, print the table, and write the plot and the JSON file.

    Parameters
    ----------
    config
        What the user said.
    effort
        How much to measure.

    Raises
    ------
    InputError
        If there is no such volume, or it is no zarr.
    """
    require(config.memory_gb > 0, "--memory-gb", config.memory_gb, "more than 0")
    require(config.threads is None or config.threads > 0, "--threads", config.threads, "at least 1")
    threads = config.threads or min(8, os.cpu_count() or 1)
    figures: Figures = {**machine(PACKAGES), "threads": threads}
    with working_folder(config.folder) as folder:
        path = config.volume or _made(folder, effort.shape)
        volume = open_volume(path, voxel_size_um=VOXEL_SIZE_UM)
        stored = open_array(path, volume.n_channels)
        figures |= _described(volume, stored)
        seen = survey(volume, volume.n_channels)
        setting = int(config.memory_gb * effort.gigabyte)
        options = {"memory_bytes": setting, "threads": threads}
        figures |= _rates(volume, stored, seen, effort, **options)
        say("measuring how independent the cuboids of a batch are")
        for name, effect in design_effects(volume, effort.batches, **options).items():
            figures |= {name: effect.value, f"{name}_error": effect.error}
        figures |= _processes(path, volume, effort, threads)
        for name, found in forms(volume, folder, effort.small, effort.seconds, **options):
            figures[f"{name}_per_cpu_second"] = found.cpu
            figures[f"{name}_over_plain"] = found.cpu / float(figures["stream_32_per_cpu_second"])
            figures[f"{name}_draws_per_chunk"] = found.draws_per_chunk
            say(f"stream, {FORMS[name]}: {found.cpu:.0f} per CPU-second")
    print(table(figures), "", *findings(figures), sep="\n", flush=True)
    plotted = config.plot or (config.json or Path("streaming.json")).with_suffix(".png")
    write_files(figures, plot(figures), json_file=config.json, plot=plotted)
    return figures


def _rates(
    volume: Volume, stored: Stored, seen: Survey, effort: Effort, *, memory_bytes: int, threads: int
) -> Figures:
    """Measure every way once a round, so that whatever else the machine does hits all alike."""
    say("filling the pools of three streams")
    finest = told(volume)
    streams = {
        draws: Streamed(
            finest,
            make_stream(
                finest, seen, memory_bytes=memory_bytes, draws_per_chunk=draws, threads=threads
            ),
        )
        for draws in DRAWS
    }
    random, last = np.random.default_rng(0), np.subtract(stored.shape, CUBOID)
    anywhere = random.integers(0, last, (4096, 3), endpoint=True)
    cuts = one_by_one(stored, threads)
    alone = {name: OneByOne(cut, anywhere) for name, cut in cuts.items()}
    spots = {
        name: Candidates(volume, each, effort.candidates, threads)
        for name, each in (("sparse", SPARSE), ("dense", DENSE))
    }
    alone |= {f"zarr_{name}": OneByOne(cuts["zarr"], c.origins()) for name, c in spots.items()}
    limit = Limit(volume, threads, effort.gigabyte)

    rounds: list[dict[str, float]] = []
    for i in range(effort.rounds):
        rates: dict[str, Rate] = {}
        found: dict[str, float] = {}
        for name, way in alone.items():
            rates[name] = way.measure(effort.seconds)
        for draws, streamed in streams.items():
            # The more draws, the fewer regions a second: longer, to see as many.
            rates[f"stream_{draws}"] = streamed.measure(effort.seconds * max(1, draws / 32))
            found[f"draws_per_chunk_{draws}"] = streamed.draws_per_chunk
            if draws == 32:
                costs = limit.measure(streamed.reads, streamed.draws, effort.seconds / 4)
                found |= dict(zip(("decode_seconds", "gather_seconds"), costs, strict=True))
        for name, candidates in spots.items():
            rates[f"candidates_{name}"] = candidates.measure(raw=False)
            rates[f"candidates_{name}_raw"] = candidates.measure(raw=True)
        rounds.append(_figures(rates, found))
        shown = ", ".join(f"{name} {rate.cpu:.0f}" for name, rate in rates.items())
        say(f"round {i + 1} of {effort.rounds}, cuboids per CPU-second: {shown}")
    for streamed in streams.values():
        streamed.close()
    figures: Figures = {key: statistics.median(found[key] for found in rounds) for key in rounds[0]}
    return figures | {f"n_candidates_{name}": len(c.positions) for name, c in spots.items()}


def _figures(rates: dict[str, Rate], found: dict[str, float]) -> dict[str, float]:
    """Work out the ratios within one round."""
    figures = dict(found)
    for name, rate in rates.items():
        figures[f"{name}_per_cpu_second"] = rate.cpu
        figures[f"{name}_per_wall_second"] = rate.wall
        if name in RATIOS:
            figures[RATIOS[name]] = rate.cpu / rates[_BASES.get(name, "zarr")].cpu
    limit = 1 / (found["decode_seconds"] + found["gather_seconds"])
    figures["limit_per_cpu_second"] = limit
    figures["limit_share"] = rates["stream_32"].cpu / limit
    return figures


def _processes(path: Path, volume: Volume, effort: Effort, threads: int) -> Figures:
    """Measure memory, and how long a resume takes, each in a fresh process."""
    figures: Figures = {}
    for n in (1, 4):
        say(f"measuring the memory of a stream that may take {n} GB")
        setting = n * effort.gigabyte
        found = probe(path, memory_bytes=setting, threads=threads)
        figures[f"memory_over_setting_{n}gb"] = found["peak_bytes"] / setting
        figures[f"memory_before_{n}gb"] = found["before_bytes"] / setting
    say(f"measuring a resume at step {STEP:,}")
    setting, decoded = _memory_for(volume, effort.live_chunks)
    found = probe(path, memory_bytes=setting, threads=threads, step=STEP)
    return figures | {
        "resume_seconds": found["first_batch_s"],
        "resume_pool_seconds": found["pool_s"],
        "resume_live_chunks": decoded,
        "resume_memory_bytes": setting,
    }


def _memory_for(volume: Volume, n_chunks: int) -> tuple[int, float]:
    """Find a setting with which a stream's live regions are what was kept of so many chunks."""
    anything, seen = unread(volume, volume.shape)
    setting = n_chunks * CHUNK_VOXELS * volume.dtype.itemsize * volume.n_channels
    while True:
        anything.reads.clear()
        stream = make_stream(anything, seen, memory_bytes=setting)
        deque(stream.batches(0, to_fill(stream)), maxlen=0)
        decoded = decoded_chunks(anything.reads[: live_regions(stream)], volume.chunk_shape)
        if decoded >= n_chunks:
            return setting, decoded
        setting += setting // 16


def _made(folder: Path, shape: Shape3) -> Path:
    path = folder / f"brain-{'x'.join(map(str, shape))}.ome.zarr"
    if not path.exists():
        say(f"making a volume of 2 × {by(shape)} voxels in {folder}")
        write_brain(path, shape)
    return path


def _described(volume: Volume, stored: Stored) -> Figures:
    array = stored.array
    ratio = array.nbytes / array.nbytes_stored()
    chunks, channels = by(volume.chunk_shape), volume.n_channels
    print(
        f"{by(volume.shape)} voxels of {volume.dtype}, {channels} channel(s), in chunks of "
        f"{chunks}, compressed {ratio:.2f}-fold"
    )
    return {
        "shape": by(volume.shape),
        "chunks": chunks,
        "dtype": str(volume.dtype),
        "channels": channels,
        "compression_ratio": ratio,
    }
