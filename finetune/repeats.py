"""Labels that are given more than once: found by their places and their voxels, and kept once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor

from cubeclf_core.errors import InputError

Pairs = npt.NDArray[np.int64]
"""Shape (m, 2): which labels are the same as which."""

_SHOWN = 3  # examples in a message


def pair_by_place(volumes: Sequence[str], positions: npt.NDArray[np.float64]) -> Pairs:
    """Pair labels of one volume that lie less than one voxel apart along each axis.

    Parameters
    ----------
    volumes
        The volume that each lies in.
    positions
        Shape (n, 3), z y x in voxels of that volume; NaN is near nothing.
    """
    members: dict[str, list[int]] = {}
    for i in np.flatnonzero(np.isfinite(positions).all(axis=1)).tolist():
        members.setdefault(volumes[i], []).append(i)
    pairs = [np.zeros((0, 2), np.int64)]
    for index in map(np.array, members.values()):
        near = cKDTree(positions[index]).query_pairs(np.nextafter(1, 0), p=np.inf)
        if near:
            pairs.append(index[np.array(sorted(near))])
    return np.concatenate(pairs)


def pair_by_voxels(cuboids: Float[Tensor, "n c z y x"]) -> Pairs:
    """Pair cuboids whose signal is the same in every voxel, and is not one value throughout."""
    first: dict[bytes, int] = {}
    pairs = []
    for i, signal in enumerate(cuboids[:, 0].numpy()):
        if signal.min() == signal.max():  # outside of tissue, say: that is no sign of one place
            continue
        same = first.setdefault(hashlib.blake2b(signal.tobytes()).digest(), i)
        if same != i:
            pairs.append((same, i))
    return np.array(pairs, np.int64).reshape(-1, 2)


def keep_once(
    pairs: Pairs, labels: npt.NDArray[np.int64], sources: Sequence[str]
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Keep the first of labels that are the same.

    Parameters
    ----------
    pairs
        Which are the same; what is the same as a third is the same too.
    labels
        Shape (n,), their class.
    sources
        What to call them.

    Returns
    -------
    index : numpy.ndarray
        Sorted, those to keep.
    remarks : list of str
        A sentence on what was left out, if anything was.

    Raises
    ------
    InputError
        If labels that are the same are of different classes.
    """
    n = len(labels)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    place = connected_components(graph, directed=False)[1] if n else np.zeros(0, np.int64)
    _, firsts, which = np.unique(place, return_index=True, return_inverse=True)
    same_as = firsts[which]  # the first label of each label's place
    repeated = np.flatnonzero(same_as != np.arange(n))
    against = repeated[labels[repeated] != labels[same_as[repeated]]]
    if len(against):
        told = "; ".join(
            f"{sources[first]} ({_kind(labels, first)}) and {sources[i]} ({_kind(labels, i)})"
            for i, first in zip(against[:_SHOWN], same_as[against], strict=False)
        )
        raise InputError(
            f"{_count(len(against))} another of the same place: {told}"
            f"{_more(against)}; correct or remove one of each in these files (cubes of different "
            "animals need a `group` each)"
        )
    if not len(repeated):
        return np.arange(n), []
    told = "; ".join(
        sources[i] if sources[i] == sources[same_as[i]] else f"{sources[same_as[i]]} = {sources[i]}"
        for i in repeated[:_SHOWN]
    )
    was = "label is" if len(repeated) == 1 else "labels are"
    remark = f"{len(repeated)} {was} given twice; kept once: {told}{_more(repeated)}"
    return np.sort(firsts).astype(np.int64), [remark]


def _count(n: int) -> str:
    return "1 label contradicts" if n == 1 else f"{n} labels contradict"


def _more(index: npt.NDArray[np.int64]) -> str:
    return f"; and {len(index) - _SHOWN} more" if len(index) > _SHOWN else ""


def _kind(labels: npt.NDArray[np.int64], i: np.int64) -> str:
    return {0: "no cell", 1: "cell"}.get(int(labels[i]), f"class {labels[i]}")
