"""TIFF planes or stacks to OME-Zarr: the format in which any part of a brain is quick to read."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import zarr

from cubeclf_core.axes import Size3
from cubeclf_core.config import ConvertConfig
from cubeclf_core.console import progress, say
from cubeclf_core.conversion import Conversion, conversion
from cubeclf_core.errors import InputError, RunFailed, require
from cubeclf_core.files import check_output
from cubeclf_core.levels import pyramid
from cubeclf_core.locations import locate, on_disk
from cubeclf_core.pyramid import (
    INNER_CHUNKS,
    SHARDS,
    Layout,
    create,
    datasets,
    describe,
    open_levels,
    write_unit,
)
from cubeclf_core.sources import BROKEN, Slices, Source, by, kept_bytes
from cubeclf_core.volumes import check_match, check_voxel_size, open_volume, stem
from cubeclf_core.work_units import Unit, Voxels, count_units, each_unit

PROGRAM_BYTES = 0.2e9  # what the process takes before it holds a voxel
NAMES = ("signal", "background")


@dataclass(frozen=True)
class _Job:
    """What to convert, and how."""

    out: Path
    inputs: tuple[str, ...]
    channels: tuple[Source, ...]
    voxel_size_um: Size3
    layout: Layout
    memory_bytes: float


def convert(config: ConvertConfig) -> None:
    """Write the channels of a brain as one OME-Zarr with a pyramid, or verify that one.

    What was interrupted before goes on where it was.

    Parameters
    ----------
    config
        The inputs, one a channel, and where and how to write.

    Raises
    ------
    OutputExists
        If the output exists and may not be overwritten, or another process is writing it.
    InputError
        If an input is no volume or cannot be read, the channels do not agree, or the memory does
        not suffice.
    RunFailed
        If the output cannot be written, or is not what the inputs hold.
    """
    require(0 < config.memory_gb < math.inf, "--memory-gb", config.memory_gb, "more than 0")
    marker = ".zgroup" if (config.out / ".zgroup").exists() else "zarr.json"
    if config.verify and not config.overwrite and (config.out / marker).exists():
        say(f"{config.out} exists: it is verified, not written")
        _verify(_open(config))
        return
    inputs = on_disk(*config.inputs)
    check_output(config.out, overwrite=config.overwrite, inputs=inputs, marker=marker)
    job = _open(config)
    with conversion(config.out) as work:
        try:
            _write(job, work)
            work.put_in_place(config.out)
        except OSError as error:
            raise RunFailed(
                f"{config.out} cannot be written: {error.strerror or error}; mend that and run the "
                "same command again"
            ) from error
    shape, size = job.channels[0].shape, job.voxel_size_um
    say(
        f"{config.out}: {len(job.channels)} channel(s) of {by(shape)} voxels (z y x), "
        f"{job.channels[0].dtype}, {' × '.join(f'{s:g}' for s in size)} µm, "
        f"{len(pyramid(shape, size))} level(s)"
    )
    if config.verify:
        _verify(job)


def _open(config: ConvertConfig) -> _Job:
    size = check_voxel_size(config.voxel_size_um, "--voxel-size-um")
    opened = [
        (given, source)
        for given in config.inputs
        for source in open_volume(given, voxel_size_um=size).channels
    ]
    channels = tuple(source for _, source in opened)
    if len(channels) > len(NAMES):
        raise InputError(
            f"the inputs hold {len(channels)} channels; expected a signal and a background"
        )
    for given, source in opened[1:]:
        check_match(channels[0], source, opened[0][0], given)
    if config.ome_version == "0.5" and config.shard:
        layout = Layout(chunks=INNER_CHUNKS, shards=SHARDS)
    else:
        layout = Layout(config.ome_version)
    memory = config.memory_gb * 1e9 - PROGRAM_BYTES - sum(map(kept_bytes, channels))
    return _Job(config.out, config.inputs, channels, size, layout, memory)


def _write(job: _Job, work: Conversion) -> None:
    first = job.channels[0]

    def empty(store: Path) -> None:
        n_channels = len(job.channels)
        create(store, n_channels, first.shape, first.dtype, job.voxel_size_um, job.layout)

    changed = work.begin(_settings(job), empty)
    arrays = open_levels(work.store)
    n_units, n_before = count_units(arrays), len(work.done)
    if changed:
        say(f"starting over: {' and '.join(changed)} changed since the conversion was interrupted")
    if n_before:
        say(f"continuing: {n_before} of {n_units} units are done")
    one_at_a_time = Lock()
    try:
        with progress("converting", n_units - n_before, unit="units") as advance:

            def write(unit: Unit, array: zarr.Array[Any], box: Slices, voxels: Voxels) -> None:
                write_unit(unit, array, box, voxels)
                with one_at_a_time:
                    work.add(unit)
                    advance()

            done = frozenset(work.done)
            each_unit(arrays, job.channels, write, memory_bytes=job.memory_bytes, done=done)
        describe(work.store, stem(job.out), job.voxel_size_um, NAMES)
    except BaseException:
        if work.done:
            say(
                f"{len(work.done)} of {n_units} units are done and kept in {work.folder}; the same "
                "command goes on from there"
            )
        raise


def _settings(job: _Job) -> dict[str, object]:
    """Say what makes a conversion: one with other settings does not go on from it."""
    first = job.channels[0]
    return {
        "the inputs": [_identity(given) for given in job.inputs],
        "their shape": [len(job.channels), *first.shape],
        "their dtype": str(first.dtype),
        "--voxel-size-um": job.voxel_size_um,
        "the layout": asdict(job.layout),
    }


def _identity(given: str) -> dict[str, object]:
    """Name an input and what shows that it changed: names, sizes and times of its own files.

    Of a zarr these are its metadata and the times of its arrays' folders, not its million chunks;
    of a URL there is only the name.
    """
    location = locate(given)
    if not isinstance(location, Path):
        return {"url": location}
    digest = hashlib.sha256()
    files = sorted(location.iterdir()) if location.is_dir() else [location]
    for file in files:
        found = file.stat()
        size = 0 if file.is_dir() else found.st_size
        digest.update(f"{file.name}\0{size}\0{found.st_mtime_ns}\n".encode())
    return {"path": str(location.resolve()), "files": len(files), "state": digest.hexdigest()}


def _verify(job: _Job) -> None:
    """Compare the output with the inputs, and each lower level with the means of the finer.

    Raises
    ------
    RunFailed
        If they differ anywhere, or the output cannot be read back.
    """
    arrays = _open_output(job)
    n_units, one_at_a_time = count_units(arrays), Lock()
    with progress("verifying", n_units, unit="units") as advance:

        def compare(unit: Unit, array: zarr.Array[Any], box: Slices, expected: Voxels) -> None:
            where = f"{job.out} at level {unit.level}, channel {unit.channel}, z y x "
            try:
                found = np.asarray(array[(unit.channel, *box)])
            except BROKEN as error:
                raise RunFailed(
                    f"{where}{_spell(box)} cannot be read back ({error}); {_AGAIN}"
                ) from error
            bits = f"u{found.dtype.itemsize}"  # so that NaN equals itself, and 0 is not -0
            wrong = np.argwhere(found.view(bits) != expected.view(bits))
            if len(wrong):
                ends = zip(box, wrong.min(axis=0), wrong.max(axis=0), strict=True)
                at = [slice(s.start + low, s.start + high + 1) for s, low, high in ends]
                origin = "the input" if unit.level == 0 else f"the means of level {unit.level - 1}"
                raise RunFailed(
                    f"{where}{_spell(at)} differs from {origin} in {len(wrong)} voxel(s); {_AGAIN}"
                )
            with one_at_a_time:
                advance()

        each_unit(arrays, job.channels, compare, memory_bytes=job.memory_bytes)
    say(f"{job.out} is verified: level 0 is the input bit by bit, the other levels are its means")


_AGAIN = "convert again with --overwrite"


def _open_output(job: _Job) -> list[zarr.Array[Any]]:
    """Open the levels of the output, which must be laid out as the inputs want it."""
    first, n_channels = job.channels[0], len(job.channels)
    levels = pyramid(first.shape, job.voxel_size_um)
    try:
        attributes = zarr.open_group(job.out, mode="r").attrs.asdict()
        images: Any = attributes.get("ome", attributes)
        said = images["multiscales"][0]["datasets"]
        arrays = open_levels(job.out)
        found = [(array.shape, array.dtype) for array in arrays]
    except BROKEN as error:
        raise RunFailed(f"{job.out} cannot be opened ({error}); {_AGAIN}") from error
    wanted = [((n_channels, *level.shape), first.dtype) for level in levels]
    if found != wanted or said != datasets(levels, job.voxel_size_um):
        raise RunFailed(
            f"{job.out} has other channels, shapes, voxel sizes or levels than a conversion of the "
            f"inputs; {_AGAIN}"
        )
    return arrays


def _spell(box: Sequence[slice]) -> str:
    return ", ".join(f"{s.start}–{s.stop}" for s in box)
