"""How big a cuboid is in a volume's own voxels, and where it starts.

Both are those of cellfinder 1.10, so that a classifier sees the same
voxels here and there.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cubeclf_core.axes import Shape3, Size3
from cubeclf_core.errors import VolumeError, VolumeTooSmall
from cubeclf_core.volumes import Volume

_COARSEST = 10  # times the network's voxel, along any axis


def source_shape(shape: Shape3, voxel_size_um: Size3, volume: Volume) -> Shape3:
    """Say how many of a volume's voxels a cuboid covers.

    Parameters
    ----------
    shape
        The cuboid, z y x, in voxels of `voxel_size_um`.
    voxel_size_um
        z y x, of the network.
    volume
        Where the cuboid is to be cut.

    Raises
    ------
    VolumeTooSmall
        If the volume is smaller than the cuboid along an axis.
    VolumeError
        If its voxels are over ten times as coarse as the network's.
    """
    z, y, x = (
        max(1, round(n * network / own))
        for n, network, own in zip(shape, voxel_size_um, volume.voxel_size_um, strict=True)
    )
    coarser = [own / net for own, net in zip(volume.voxel_size_um, voxel_size_um, strict=True)]
    if max(coarser) > _COARSEST:
        raise VolumeError(
            f"{volume.name} has voxels of {volume.voxel_size_um} µm (z, y, x), over {_COARSEST} "
            f"times as coarse as the network's {voxel_size_um}; is the voxel size right?"
        )
    if any(have < need for have, need in zip(volume.shape, (z, y, x), strict=True)):
        raise VolumeTooSmall(
            f"{volume.name} has {volume.shape} voxels of {volume.voxel_size_um} µm (z, y, x); "
            f"a cuboid of {shape} voxels of {voxel_size_um} µm needs at least {(z, y, x)}"
        )
    return z, y, x


def starts_around(positions: npt.NDArray[np.float64], shape: Shape3) -> npt.NDArray[np.int64]:
    """Find the first voxel of the cuboid around each position, centred as cellfinder does.

    Parameters
    ----------
    positions
        Shape (n, 3), z y x in voxels of the volume.
    shape
        The cuboid in voxels of the volume.

    Returns
    -------
    numpy.ndarray
        Shape (n, 3); may be negative near the border.
    """
    z = np.trunc(positions[:, :1] - shape[0] // 2)
    yx = np.rint(positions[:, 1:] - np.array(shape[1:]) / 2)  # rint rounds half to even, as Python
    return np.concatenate([z, yx], axis=1).astype(np.int64)
