"""A brain-like volume that is quick to make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from jaxtyping import Shaped

from benchmarks.streams import VOXEL_SIZE_UM
from cubeclf_core.axes import Shape3
from cubeclf_core.pyramid import CHUNKS, write_ome_zarr
from cubeclf_core.sources import Slices

KNOTS: Shape3 = (24, 48, 48)
"""Voxels between the knots of the brightness, z y x.

Chosen so that of its variance over cuboids about a third lies between chunks: then 32 cuboids of
one chunk say as much about a volume's mean as three of three chunks.
"""

# Of the noise, which repeats: more than a chunk's, so never within reach of its compression.
_PERIOD: Shape3 = (67, 131, 137)
_DARK, _BRIGHT = 200.0, 500.0  # counts

Weights = npt.NDArray[np.float32]


class Tissue:
    """A channel made as it is read: smooth random brightness, with the noise of counted photons.

    Parameters
    ----------
    shape
        z y x.
    seed
        Of brightness and noise.
    """

    dtype = np.dtype(np.uint16)
    chunks = CHUNKS
    ndim = 3

    def __init__(self, shape: Shape3, seed: int) -> None:
        random = np.random.default_rng((7, seed))
        self.shape = shape
        knots = n_knots(shape)
        self._knots = random.uniform(_DARK, _BRIGHT, knots).astype(np.float32)
        self._noise = random.standard_normal(_PERIOD, np.float32)

    def __getitem__(self, key: Slices) -> Shaped[np.ndarray, "z y x"]:
        z, y, x = (np.arange(*s.indices(n)) for s, n in zip(key, self.shape, strict=True))
        in_z, in_y, in_x = map(hats, (z, y, x), KNOTS, self._knots.shape)
        # A plane at a time, which fits into the cache.
        along_x = np.tensordot(in_z, np.tensordot(in_y, self._knots, (1, 1)), (1, 1))  # z, y, knot
        across = self._noise[:, :, x % _PERIOD[2]]
        counts = np.empty((len(z), len(y), len(x)), self.dtype)
        for plane, rows, at in zip(counts, along_x, z.tolist(), strict=True):
            smooth = rows @ in_x.T
            photons = across[at % _PERIOD[0]][y % _PERIOD[1]]
            photons *= np.sqrt(smooth)
            photons += smooth
            plane[...] = photons
        return counts


def n_knots(shape: Shape3) -> Shape3:
    """Knots along z y x of a volume."""
    z, y, x = (n // knot + 2 for n, knot in zip(shape, KNOTS, strict=True))
    return z, y, x


def hats(at: npt.NDArray[np.int64], knot: int, n: int) -> Weights:
    """Weights of linear interpolation between knots; shape (voxels, knots)."""
    weights = np.maximum(0, 1 - np.abs(at[:, None] / knot - np.arange(n)))
    return np.asarray(weights, np.float32)


def write_brain(path: Path, shape: Shape3) -> None:
    """Write two channels of tissue as an OME-Zarr, in the chunks that all figures are about."""
    channels = [Tissue(shape, seed) for seed in range(2)]
    write_ome_zarr(path, channels, VOXEL_SIZE_UM)
