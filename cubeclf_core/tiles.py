"""Tiles: a volume's cuboids, cut by their origins into boxes that are decoded together.

Along an axis, the cuboids that lie within a block of whole chunks make one tile, and those that
straddle the border to the next block another: every origin is in just one tile, and a tile keeps
only the voxels that its cuboids cover, however many chunks had to be decoded for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cubeclf_core.axes import Shape3

CHUNK_VOXELS = 1 << 20
"""Of a chunk of 64 × 128 × 128, the unit in which decoding is counted, whatever the chunks."""

_LEAST = 2  # cuboids along the side of a tile, so that most of them do not straddle
_LARGEST_BYTES = 64 << 20

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AxisTiles:
    """The tiles along one axis.

    Attributes
    ----------
    start, stop
        Shape (n,), the first origin of each and the one after its last; together all origins.
    extent
        Of a cuboid, in voxels.
    chunk
        Of the volume, in voxels.
    """

    start: Ints
    stop: Ints
    extent: int
    chunk: int

    @property
    def voxels(self) -> Ints:
        """Shape (n,), voxels that the cuboids of each tile cover."""
        return self.stop - self.start + (self.extent - 1)

    @property
    def decoded(self) -> Ints:
        """Shape (n,), voxels that have to be decoded for each tile: whole chunks."""
        last = self.stop + self.extent - 2
        return (last // self.chunk - self.start // self.chunk + 1) * self.chunk

    @property
    def mean_voxels(self) -> float:
        """Mean of `voxels` over origins."""
        return float(np.average(self.voxels, weights=self.stop - self.start))


def tile_axis(n_voxels: int, chunk: int, extent: int, span: int) -> AxisTiles:
    """Cut the origins along an axis into tiles.

    Parameters
    ----------
    n_voxels
        Of the volume, at least `extent`.
    chunk
        Voxels decoded together.
    extent
        Of a cuboid, in voxels.
    span
        About how many voxels a tile may cover: blocks are as many whole chunks as fit, and where
        not even one fits, tiles are parts of chunks.

    Examples
    --------
    >>> tiles = tile_axis(256, chunk=64, extent=20, span=128)
    >>> list(zip(tiles.start.tolist(), tiles.stop.tolist()))
    [(0, 109), (109, 128), (128, 237)]
    """
    end = n_voxels - extent + 1
    assert end > 0
    block = max(1, span // chunk) * chunk
    borders = np.arange(0, end, block)
    cuts = np.unique(np.concatenate([borders, borders - extent + 1, [end]]))
    cuts = cuts[(cuts >= 0) & (cuts <= end)]
    longest = max(1, max(block if chunk <= span else span, 2 * extent - 2) - extent + 1)
    pieces = [
        np.linspace(a, b, -(-(b - a) // longest), endpoint=False).astype(np.int64)
        for a, b in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)
    ]
    start = np.concatenate(pieces)
    return AxisTiles(start, np.append(start[1:], end), extent, chunk)


@dataclass(frozen=True)
class Tiling:
    """The tiles of a volume; tile i is counted in z y x order."""

    axes: tuple[AxisTiles, AxisTiles, AxisTiles]

    @property
    def shape(self) -> Shape3:
        """Number of tiles along z y x."""
        z, y, x = (len(axis.start) for axis in self.axes)
        return z, y, x

    @property
    def extent(self) -> Shape3:
        """Of a cuboid, z y x voxels."""
        z, y, x = (axis.extent for axis in self.axes)
        return z, y, x

    @property
    def n_origins(self) -> Shape3:
        """Origins along z y x."""
        z, y, x = (int(axis.stop[-1]) for axis in self.axes)
        return z, y, x

    @property
    def mean_voxels(self) -> float:
        """Voxels that a tile keeps, as a mean over origins."""
        return math.prod(axis.mean_voxels for axis in self.axes)

    @property
    def total_voxels(self) -> int:
        """Voxels that all tiles keep together."""
        return math.prod(int(axis.voxels.sum()) for axis in self.axes)

    @cached_property
    def chunks(self) -> npt.NDArray[np.float64]:
        """Shape (n,), what is decoded for each tile, in chunks of 64 × 128 × 128 voxels."""
        z, y, x = (axis.decoded for axis in self.axes)
        return (z[:, None, None] * y[:, None] * x).ravel() / CHUNK_VOXELS

    @cached_property
    def cuboids(self) -> npt.NDArray[np.float64]:
        """Shape (n,), how many cuboids' voxels each tile keeps."""
        z, y, x = (axis.voxels for axis in self.axes)
        return (z[:, None, None] * y[:, None] * x).ravel() / math.prod(self.extent)

    def origins(self, tile: int) -> tuple[Ints, Ints]:
        """First origin z y x of a tile, and the one after its last."""
        index = np.unravel_index(tile, self.shape)
        start = [axis.start[i] for axis, i in zip(self.axes, index, strict=True)]
        stop = [axis.stop[i] for axis, i in zip(self.axes, index, strict=True)]
        return np.array(start, np.int64), np.array(stop, np.int64)

    def voxels(self, tile: int) -> tuple[Ints, Ints]:
        """First voxel z y x of a tile, and the one after its last."""
        start, stop = self.origins(tile)
        return start, stop + (np.array(self.extent) - 1)


def choose_tiling(
    shape: Shape3, chunk: Shape3, extent: Shape3, *, voxel_bytes: int, pool_bytes: int, wanted: int
) -> Tiling:
    """Choose the largest tiles of which `wanted` fit into the memory of a pool.

    Large ones, since cuboids that straddle a border overlap each other more the smaller the blocks;
    and many, since those of one batch should come from as many places.

    Parameters
    ----------
    shape
        Of the volume, z y x, no smaller than `extent`.
    chunk
        Voxels decoded together, z y x.
    extent
        Of a cuboid, in the volume's voxels.
    voxel_bytes
        Of all channels that are read.
    pool_bytes
        Of all live regions.
    wanted
        Live regions.
    """
    spans = [_first_span(c, e) for c, e in zip(chunk, extent, strict=True)]

    def tiling(spans: list[int]) -> Tiling:
        z, y, x = (tile_axis(*of) for of in zip(shape, chunk, extent, spans, strict=True))
        return Tiling((z, y, x))

    while growing := [axis for axis in range(3) if spans[axis] < shape[axis]]:
        axis = min(growing, key=lambda axis: spans[axis] / extent[axis])
        larger = [span * (2 if i == axis else 1) for i, span in enumerate(spans)]
        grown = tiling(larger)
        too_large = grown.mean_voxels * voxel_bytes > min(pool_bytes / wanted, _LARGEST_BYTES)
        if too_large or math.prod(grown.shape) < wanted:
            break
        spans = larger
    return tiling(spans)


def _first_span(chunk: int, extent: int) -> int:
    """As few whole chunks as are worth it; a part of a chunk where that is far more than needed."""
    least = _LEAST * extent
    return least if chunk > 2 * least else -(-least // chunk) * chunk
