"""Simple rules that every table shows beside the networks: brightness alone, and crowding alone.

A network that does not beat the best of them has learned nothing worth having.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from sklearn.metrics import roc_auc_score

from cubeclf_core.errors import CellsError

RULES = ("peak", "peak - median", "peak / median", "(peak - median) / std")
PEAK_RADIUS_UM = 6.5


def contrast_scores(
    cuboids: npt.NDArray[Any], voxel_size_um: Sequence[float] = (5.0, 1.0, 1.0)
) -> dict[str, npt.NDArray[np.float64]]:
    """Score cuboids by each rule of brightness.

    The peak is the largest value, unfiltered, at most 6.5 µm from the central voxel (n // 2 along
    each axis); the median and the standard deviation are those of the whole cuboid.

    Parameters
    ----------
    cuboids
        Shape (n, z, y, x), the signal channel around n candidates.
    voxel_size_um
        z y x.

    Returns
    -------
    dict
        From each name in `RULES` to scores, shape (n,), float64; brighter is higher. A median or
        standard deviation of 0 counts as 1.

    Examples
    --------
    >>> cuboids = np.ones((1, 3, 3, 3))
    >>> cuboids[0, 1, 1, 1] = 5
    >>> contrast_scores(cuboids)["peak - median"]
    array([4.])
    """
    flat = cuboids.reshape(len(cuboids), -1)
    near = _near_centre(cuboids.shape[1:], voxel_size_um).ravel()
    peak = flat[:, near].max(axis=1).astype(np.float64)
    median = np.median(flat, axis=1).astype(np.float64)
    std = flat.std(axis=1, dtype=np.float64)
    above = peak - median
    scores = (peak, above, peak / _no_zero(median), above / _no_zero(std))
    return dict(zip(RULES, scores, strict=True))


def contrast(
    cuboids: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    voxel_size_um: Sequence[float] = (5.0, 1.0, 1.0),
) -> tuple[str, npt.NDArray[np.float64]]:
    """Choose the rule of brightness with the highest AUC on these very labels.

    That it is chosen on the tested block favours the rule: it is the bar to pass.

    Parameters
    ----------
    cuboids
        Shape (n, z, y, x), the signal channel.
    labels
        Shape (n,), 1 cell, 0 not; both must occur.
    voxel_size_um
        z y x.

    Returns
    -------
    name : str
        The best of `RULES`, the first of equals.
    scores : numpy.ndarray
        Its scores, shape (n,), float64.

    Raises
    ------
    CellsError
        If the labels are all of one class.
    """
    if len(np.unique(labels)) < 2:
        raise CellsError("the labels are of one class only; contrast needs cells and others")
    scores = contrast_scores(cuboids, voxel_size_um)
    best = max(RULES, key=lambda name: float(roc_auc_score(labels, scores[name])))
    return best, scores[best]


def density(
    positions: npt.NDArray[np.float64], voxel_size_um: Sequence[float], radius_um: float = 50.0
) -> npt.NDArray[np.float64]:
    """Count the other candidates around each candidate, without looking at a voxel.

    Parameters
    ----------
    positions
        Shape (n, 3), z y x in voxels.
    voxel_size_um
        z y x.
    radius_um
        Up to which distance, inclusive.

    Returns
    -------
    numpy.ndarray
        Shape (n,), float64, whole numbers.

    Examples
    --------
    >>> density(np.array([[0.0, 0, 0], [10, 0, 0], [20, 0, 0]]), (5, 1, 1))
    array([1., 2., 1.])
    """
    tree = cKDTree(positions * np.asarray(voxel_size_um, np.float64))
    counts = tree.query_ball_point(tree.data, radius_um, return_length=True)
    return np.asarray(counts, np.float64) - 1


def _near_centre(shape: Sequence[int], voxel_size_um: Sequence[float]) -> npt.NDArray[np.bool_]:
    axes = [(np.arange(n) - n // 2) * size for n, size in zip(shape, voxel_size_um, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return np.asarray(z**2 + y**2 + x**2 <= PEAK_RADIUS_UM**2)


def _no_zero(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(values == 0, 1.0, values)
