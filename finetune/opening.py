"""The brain or brains that a command works on, as its arguments name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cubeclf_core.brains import Brain, VolumeAt, load_brains
from cubeclf_core.cells import read_cells
from cubeclf_core.errors import InputError
from cubeclf_core.inside import check_inside
from cubeclf_core.locations import on_disk, same_name


def open_brain(brain: str, background: str | None, voxel_size_um: Sequence[float] | None) -> Brain:
    """Open one brain.

    Parameters
    ----------
    brain
        OME-Zarr or zarr array (also by URL), folder of TIFF planes, TIFF stack, or a brains file of
        one brain.
    background
        Volume of the second channel, where `brain` has one only.
    voxel_size_um
        z y x, if the brain does not say.

    Raises
    ------
    InputError
        If it cannot be opened, or a brains file lists several.
    """
    brains = _open(brain, background, voxel_size_um)
    if len(brains) > 1:
        raise InputError(f"{brain} lists {len(brains)} brains; expected one")
    return brains[0]


def open_with_candidates(
    brain: str,
    background: str | None,
    voxel_size_um: Sequence[float] | None,
    cells: Path | None,
) -> list[Brain]:
    """Open one brain or several, each with its candidates.

    Parameters
    ----------
    brain, background, voxel_size_um
        See `open_brain`; a brains file may list several.
    cells
        Candidates of the one brain; by default those that the brains file names.

    Raises
    ------
    InputError
        If a brain cannot be opened, or has no candidates or such as lie outside of it.
    """
    given = None if cells is None else read_cells(cells)
    brains = _open(brain, background, voxel_size_um)
    if given is not None and len(brains) > 1:
        raise InputError(
            f"--cells is of one brain, but {brain} lists {len(brains)}; name the candidates of "
            "each in the brains file, as cells"
        )
    if given is not None:
        check_inside(given, brains[0].volume, cells)
        brains = [replace(brains[0], cells=given, cells_path=cells)]
    for found in brains:
        if found.cells is None:
            raise InputError(
                f"{found.name} has no candidates; give --cells FILE, or cells in a brains file"
            )
    return brains


def _open(brain: str, background: str | None, voxel_size_um: Sequence[float] | None) -> list[Brain]:
    if not background:
        return load_brains([brain], voxel_size_um=voxel_size_um)
    at = VolumeAt(brain, background=background, voxel_size_um=voxel_size_um)
    volume = at.open()
    return [Brain(volume.name, volume, None, on_disk(brain, background), same_name(brain), at=at)]
