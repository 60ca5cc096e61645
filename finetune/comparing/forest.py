"""A random forest on radial means: what shape and brightness say without any network."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor

from cubeclf_core.axes import Size3
from cubeclf_core.normalise import normalise

SHELLS = 20
SHELL_UM = 1.25  # thickness: the outermost ends at the sides of a cuboid of 50 µm
TREES = 200
LEAF = 5
"""Labels that a leaf has at least, where there are enough of them."""


def leaf(labels: int) -> int:
    """How many labels a leaf has at least: with few, five leave next to nothing to split."""
    return max(1, min(LEAF, labels // 20))


def radial_means(
    cuboids: Float[Tensor, "n c z y x"], voxel_size_um: Size3
) -> Float[Tensor, "n feature"]:
    """Mean of normalised cuboids in spherical shells around the central voxel, by channel."""
    shape = cuboids.shape[2:]
    axes = [(torch.arange(n) - n // 2) * um for n, um in zip(shape, voxel_size_um, strict=True)]
    squares = torch.meshgrid(*(axis.square() for axis in axes), indexing="ij")
    shell = (sum(squares).sqrt() / SHELL_UM).long().flatten()  # type: ignore[union-attr]
    masks = torch.stack([shell == i for i in range(SHELLS)]).float()
    masks = masks[masks.sum(1) > 0]  # voxels may be coarser than a shell
    means = masks / masks.sum(1, keepdim=True)
    parts = [(normalise(p).flatten(2) @ means.T).flatten(1) for p in cuboids.split(256)]
    return torch.cat(parts)


def forest_scores(
    known: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    tested: npt.NDArray[np.float32],
    seed: int,
) -> npt.NDArray[np.float64]:
    """Learn features of labelled cuboids, and give others their probability of being a cell.

    Parameters
    ----------
    known
        Shape (n, feature).
    labels
        Shape (n,), 1 cell, 0 not.
    tested
        Shape (m, feature).
    seed
        Of the trees.
    """
    trees = RandomForestClassifier(
        TREES, min_samples_leaf=leaf(len(known)), class_weight="balanced", random_state=seed
    )
    trees.fit(known, labels)
    return np.asarray(trees.predict_proba(tested)[:, 1], np.float64)
