"""Labels that are probably wrong, the likeliest first, as files to check them in napari by."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cubeclf_core.cells import CELL, NO_CELL, Cells, write_cells
from cubeclf_core.files import replacing

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def label_errors(labels: Ints, probabilities: Floats) -> tuple[Ints, Floats]:
    """Find labels that a classifier confidently disagrees with.

    Confident learning (Northcutt et al., arXiv:1911.00068): what counts as confident is, for each
    class, the mean probability of that class among its own labels; so neither a rare class nor a
    classifier that is too sure of itself is blamed for it. A label is suspected if, of the classes
    that are confident, the likeliest is another.

    Parameters
    ----------
    labels
        Shape (n,), as given, 0 to k - 1.
    probabilities
        Shape (n, k), of a classifier that was not trained on the very candidate, as of folds.

    Returns
    -------
    index : numpy.ndarray
        Shape (suspects,), the least believed label first.
    probability : numpy.ndarray
        Shape (suspects,), that the given label is right.
    """
    n, k = probabilities.shape
    assert len(labels) == n
    own = probabilities[np.arange(n), labels]
    counts = np.bincount(labels, minlength=k)
    sums = np.bincount(labels, weights=own, minlength=k)
    bars = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)  # no label, never confident
    confident = np.where(probabilities >= bars, probabilities, -1.0)
    found = np.flatnonzero((confident.max(axis=1) >= 0) & (confident.argmax(axis=1) != labels))
    order = found[np.argsort(own[found], kind="stable")]
    return order, own[order]


def write_label_errors(
    folder: Path,
    index: Ints,
    probability: Floats,
    labels: Ints,
    positions: Floats,
    brains: Sequence[str],
) -> list[Path]:
    """Write suspected labels as a cells XML and a CSV for each brain.

    Parameters
    ----------
    folder
        Where; made if missing.
    index, probability
        Of `label_errors`.
    labels
        Shape (n,), of all candidates; 1 is a cell. The XML has each under the label it was given.
    positions
        Shape (n, 3), z y x in voxels of its brain; NaN where not known.
    brains
        Name of the brain of each candidate.

    Returns
    -------
    list of pathlib.Path
        The XML files of brains with a suspect, by name. Beside each lies a CSV of the same name
        with the rank among all brains, position, given label and the probability that it is right.
        Suspects without a place are in the CSV alone, which is listed in the XML's stead where a
        brain has no other.
    """
    written = []
    for number, name in enumerate(sorted({brains[i] for i in index})):
        ranks = np.array([r for r, i in enumerate(index) if brains[i] == name], np.int64)
        path = folder / f"{_file_name(name, number)}.csv"
        rows = [
            (r + 1, *_place(positions[index[r]]), labels[index[r]], f"{probability[r]:.4f}")
            for r in ranks
        ]
        with replacing(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("rank", "z", "y", "x", "given_label", "probability_of_given_label"))
            writer.writerows(rows)
        own = index[ranks]
        placed = own[np.isfinite(positions[own]).all(axis=1)]
        if len(placed):
            path = path.with_suffix(".xml")
            types = np.where(labels[placed] == 1, CELL, NO_CELL).astype(np.int64)
            write_cells(path, Cells(positions[placed], types))
        written.append(path)
    return written


def _place(position: Floats) -> list[str]:
    return [f"{p:g}" if np.isfinite(p) else "" for p in position]


def _file_name(brain: str, number: int) -> str:
    """Make a name that any system takes as a file's; numbered where it had to be changed."""
    safe = re.sub(r"[^\w .+-]", "_", brain).strip(" .")[:80]
    return safe if safe == brain else f"{safe}_{number}"
