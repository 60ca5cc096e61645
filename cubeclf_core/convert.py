"""TIFF planes or stacks to OME-Zarr: the format in which any part of a brain is quick to read."""

from __future__ import annotations

import dask.array

from cubeclf_core.config import ConvertConfig
from cubeclf_core.console import progress, say
from cubeclf_core.errors import InputError
from cubeclf_core.files import check_output
from cubeclf_core.pyramid import count_chunks, pyramid, write_ome_zarr
from cubeclf_core.volumes import Source, check_match, check_voxel_size, open_volume


def convert(config: ConvertConfig) -> None:
    """Write the channels of a brain as one pyramidal OME-Zarr 0.5.

    Parameters
    ----------
    config
        The inputs, one a channel, and where to write.

    Raises
    ------
    OutputExists
        If the output exists and may not be overwritten.
    InputError
        If an input is no volume, or the channels do not agree.
    """
    check_output(config.out, overwrite=config.overwrite, inputs=config.inputs, marker="zarr.json")
    size = check_voxel_size(config.voxel_size_um, "--voxel-size-um")
    opened = [
        (path, source)
        for path in config.inputs
        for source in open_volume(path, voxel_size_um=size).channels
    ]
    if len(opened) > 2:
        raise InputError(
            f"the inputs hold {len(opened)} channels; expected a signal and a background"
        )
    sources = [source for _, source in opened]
    for path, source in opened[1:]:
        check_match(sources[0], source, opened[0][0], path)
    shape = sources[0].shape
    n_chunks = count_chunks(shape, len(sources), size)
    with progress("converting", n_chunks, unit="chunks") as advance:
        write_ome_zarr(config.out, [_lazy(source) for source in sources], size, on_chunk=advance)
    say(
        f"{config.out}: {len(sources)} channel(s) of {' × '.join(map(str, shape))} voxels (z y x), "
        f"{sources[0].dtype}, {' × '.join(f'{s:g}' for s in size)} µm, "
        f"{len(pyramid(shape, size))} level(s)"
    )


def _lazy(source: Source) -> dask.array.Array:
    """See a channel as a dask array: planes one by one, chunks in rows along x."""
    depth, height, _ = source.chunks
    chunks = (min(depth, source.shape[0]), min(height, source.shape[1]), source.shape[2])
    lazy: dask.array.Array = dask.array.from_array(  # type: ignore[no-untyped-call]
        source, chunks=chunks, name=False, asarray=False, lock=False
    )
    return lazy
