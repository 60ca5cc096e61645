"""The brain that a command works on, as its arguments name it."""

from __future__ import annotations

from collections.abc import Sequence

from cubeclf_core.brains import Brain, load_brains
from cubeclf_core.errors import InputError
from cubeclf_core.locations import on_disk, same_name
from cubeclf_core.volumes import open_volume


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
    if background:
        volume = open_volume(brain, background=background, voxel_size_um=voxel_size_um)
        return Brain(volume.name, volume, None, on_disk(brain, background), same_name(brain))
    brains = load_brains([brain], voxel_size_um=voxel_size_um)
    if len(brains) > 1:
        raise InputError(f"{brain} lists {len(brains)} brains; expected one")
    return brains[0]
