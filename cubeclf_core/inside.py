"""Whether candidates lie in the brain that they are said to be of, and if not, why not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cubeclf_core.cells import Cells
from cubeclf_core.errors import CellsOutside
from cubeclf_core.volumes import Volume

_MOST = 0.5  # share outside from which on the resolution must be another
_FACTORS = (1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 32, 40, 50, 64, 100)
_LEAST_REACH = 0.4  # of the volume along each axis, by candidates of a whole brain
_WHY = "were they found at another resolution, in another brain, or are x y z swapped?"


def check_inside(cells: Cells, volume: Volume, source: object) -> None:
    """Check that all positions, rounded to voxels, lie inside a volume.

    Parameters
    ----------
    cells
        Positions z y x in voxels of the volume.
    volume
        Where they should lie, 0 to shape - 1.
    source
        What to call the cells in the error: their file.

    Raises
    ------
    CellsOutside
        If any lies outside.
    """
    outside = _outside(cells.positions, volume)
    if not outside.any():
        return
    where = ", ".join(f"{p:g}" for p in cells.positions[outside][0])
    shape = " × ".join(str(n) for n in volume.shape)
    raise CellsOutside(
        f"{source}: {int(outside.sum())} of {len(cells)} positions lie outside "
        f"{volume.name}, whose shape z y x is {shape} (the first at {where}); "
        f"{_cause(cells.positions, float(outside.mean()), volume)}"
    )


def _cause(positions: npt.NDArray[np.float64], outside: float, volume: Volume) -> str:
    """Guess what is wrong with positions of which a share lies outside."""
    if not _outside(positions[:, ::-1], volume).any():
        return "with x and z swapped all would lie inside"
    if outside <= _MOST:
        return _WHY
    size = np.array(volume.voxel_size_um)
    if _fills(positions / size, volume):
        return "they seem to be in µm: divided by the voxel size all would lie inside"
    too_far = (positions.max(axis=0) + 0.5) / np.array(volume.shape)
    factor = next((f for f in _FACTORS if f >= too_far.max()), np.nan)
    divisor = np.where(too_far > 1, factor, 1)
    if not _fills(positions / divisor, volume):
        return _WHY
    finer = " × ".join(f"{um:.3g}" for um in size / divisor)
    along = " ".join(name for name, far in zip("zyx", too_far > 1, strict=True) if far)
    return (
        f"divided by {factor:g} along {along} all would lie inside: were they found at another "
        f"resolution, in voxels of about {finer} µm?"
    )


def _fills(positions: npt.NDArray[np.float64], volume: Volume) -> bool:
    """Tell whether all positions lie inside, and not in one corner only."""
    reach = positions.max(axis=0) / np.array(volume.shape)
    return bool((reach > _LEAST_REACH).all() and not _outside(positions, volume).any())


def _outside(positions: npt.NDArray[np.float64], volume: Volume) -> npt.NDArray[np.bool_]:
    voxels = np.rint(positions)
    return np.asarray(((voxels < 0) | (voxels > np.array(volume.shape) - 1)).any(axis=1))
