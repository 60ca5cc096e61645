"""What a classifier is worth on labelled candidates: numbers, and how far to trust them.

Every number is given for each brain and for all of them pooled, with a 95 % interval of a bootstrap
that resamples blocks of space (`cubeclf_core.bootstrap`). A number that is not defined is None, as
most are where a brain has candidates of one class only. All is plain data, ready for strict JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from cubeclf_core.bootstrap import BLOCK_UM, Blocks, spatial_blocks
from cubeclf_core.calibration import brier_score, expected_calibration_error
from finetune.measures import (
    TOO_FEW_BLOCKS,
    Metrics,
    bootstrap,
    differences,
    groups_of,
    measure_classifier,
    measure_score,
    told,
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CELL = 1  # the class that is measured against the rest
N_RESAMPLES = 1000
_FEW_BLOCKS = 20


def evaluate(
    labels: Ints,
    probabilities: Floats,
    positions_um: Floats,
    brains: Sequence[str],
    threshold: float,
    *,
    uncalibrated: Floats | None = None,
    classes: Sequence[str] = ("no cell", "cell"),
    block_um: float = BLOCK_UM,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a classifier on candidates that it was not trained on.

    Class 1, the cell, is measured against the rest; the confusion is of all classes.

    Parameters
    ----------
    labels
        Shape (n,), the class of each candidate, 0 to k - 1.
    probabilities
        Shape (n, k), after temperature scaling.
    positions_um
        Shape (n, 3), z y x in µm; NaN where not known.
    brains
        Name of the brain of each candidate.
    threshold
        Probability of a cell from which on a candidate is called one. Any other is called the
        likeliest of the other classes.
    uncalibrated
        Shape (n, k), before temperature scaling.
    classes
        Names of the k classes.
    block_um
        Edge of the blocks that are resampled together.
    n_resamples, seed
        Of the bootstrap.

    Returns
    -------
    dict
        ``pooled`` and, by name, ``brains``: each with ``n``, ``cells``, ``blocks``, the metrics,
        ``intervals`` (name to [low, high] or None), ``confusion`` (rows as labelled, columns as
        called) and ``calibration`` ``before`` and ``after`` (``ece``, ``brier``).
        ``worst_brain`` is the name of the one with the lowest average precision less prevalence,
        None if fewer than two have one. ``notes`` are sentences on what could not be measured.
        Beside them ``threshold``, ``classes``, ``block_um`` and ``resamples``.
    """
    n, k = probabilities.shape
    assert len(labels) == len(positions_um) == len(brains) == n > 0
    assert k == len(classes) >= 2
    is_cell = (labels == CELL).astype(np.int64)
    measure = partial(measure_classifier, is_cell, probabilities[:, CELL], threshold)
    blocks = spatial_blocks(positions_um, brains, block_um)
    names, groups = groups_of(brains)
    called = call(probabilities, threshold)
    results = []
    for index, resamples in zip(
        groups, bootstrap(measure, groups, blocks, n_resamples, seed), strict=True
    ):
        result = _counts(is_cell, blocks, index)
        result |= told(measure(index, None), resamples, result["blocks"])
        result["confusion"] = _confusion(labels[index], called[index], k)
        result["calibration"] = {
            when: None if given is None else _calibration(is_cell[index], given[index, CELL])
            for when, given in (("before", uncalibrated), ("after", probabilities))
        }
        results.append(result)
    by_brain = dict(zip(names, results[1:], strict=True))
    return {
        "threshold": float(threshold),
        "classes": list(classes),
        "block_um": float(block_um),
        "resamples": n_resamples,
        "pooled": results[0],
        "brains": by_brain,
        "worst_brain": worst_brain(by_brain),
        "notes": _notes(by_brain, positions_um),
    }


def evaluate_scores(
    labels: Ints,
    scores: Mapping[str, Floats],
    positions_um: Floats,
    brains: Sequence[str],
    *,
    reference: str | None = None,
    block_um: float = BLOCK_UM,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure how well several scores of the same candidates rank cells above the rest.

    Parameters
    ----------
    labels, positions_um, brains, block_um, n_resamples, seed
        As in `evaluate`. Any label but 1 is none of a cell.
    scores
        Name to shape (n,), higher for more likely cells: no probabilities need they be. Where one
        is not finite, it is not measured on that brain.
    reference
        Name of the score that the others are compared with, on the same resamples.

    Returns
    -------
    dict
        Name of the score to ``pooled`` and ``brains``, each with the metrics that need no
        threshold, their ``intervals``, and ``lead``: by how much the reference is better, with
        ``intervals`` of that difference; None without a reference, and for it.
    """
    assert reference is None or reference in scores
    is_cell = (labels == CELL).astype(np.int64)
    blocks = spatial_blocks(positions_um, brains, block_um)
    names, groups = groups_of(brains)
    once: dict[str, list[Metrics]] = {}
    resampled: dict[str, list[Metrics]] = {}
    for name, score in scores.items():
        measure = partial(measure_score, is_cell, score)
        once[name] = [measure(index, None) for index in groups]
        resampled[name] = bootstrap(measure, groups, blocks, n_resamples, seed)
    results = {}
    for name in scores:
        parts = []
        for g, index in enumerate(groups):
            result = _counts(is_cell, blocks, index)
            result |= told(once[name][g], resampled[name][g], result["blocks"])
            result["lead"] = None
            if reference is not None and name != reference:
                result["lead"] = told(
                    differences(once[reference][g], once[name][g]),
                    differences(resampled[reference][g], resampled[name][g]),
                    result["blocks"],
                )
            parts.append(result)
        results[name] = {"pooled": parts[0], "brains": dict(zip(names, parts[1:], strict=True))}
    return results


def call(probabilities: Floats, threshold: float) -> Ints:
    """Name a class for each candidate: a cell from the threshold on, else the likeliest other.

    Parameters
    ----------
    probabilities
        Shape (n, k).
    threshold
        Of the probability of class 1.

    Returns
    -------
    numpy.ndarray
        Shape (n,), int64.
    """
    others = probabilities.copy()
    others[:, CELL] = -np.inf
    return np.where(probabilities[:, CELL] >= threshold, CELL, others.argmax(axis=1))


def worst_brain(brains: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Name the brain of the lowest average precision less prevalence, None of fewer than two."""
    measured = {
        name: result["average_precision_less_prevalence"]
        for name, result in brains.items()
        if result["average_precision_less_prevalence"] is not None
    }
    return min(measured, key=measured.__getitem__) if len(measured) > 1 else None


def _counts(is_cell: Ints, blocks: Blocks, index: Ints) -> dict[str, Any]:
    cells = int(is_cell[index].sum())
    return {"n": len(index), "cells": cells, "blocks": blocks.count(index)}


def _confusion(labels: Ints, called: Ints, k: int) -> list[list[int]]:
    confusion = np.zeros((k, k), np.int64)
    np.add.at(confusion, (labels, called), 1)
    counts: list[list[int]] = confusion.tolist()
    return counts


def _calibration(is_cell: Ints, probability: Floats) -> dict[str, float]:
    return {
        "ece": expected_calibration_error(is_cell, probability),
        "brier": brier_score(is_cell, probability),
    }


def _notes(brains: Mapping[str, Mapping[str, Any]], positions_um: Floats) -> list[str]:
    """Say what could not be measured, or not well."""
    notes = []
    for name, result in brains.items():
        if result["cells"] in (0, result["n"]):
            kind = "cells" if result["cells"] else "no cells"
            notes.append(
                f"{name}: all {result['n']} labels are {kind}; what needs both classes is left out"
            )
        if result["blocks"] < TOO_FEW_BLOCKS:
            notes.append(
                f"{name}: {_number(result['blocks'])} of candidates are too few for intervals"
            )
        elif result["blocks"] < _FEW_BLOCKS:
            notes.append(
                f"{name}: intervals rest on {_number(result['blocks'])} only, and are too narrow"
            )
    unknown = int((~np.isfinite(positions_um).all(axis=1)).sum())
    if unknown:
        notes.append(
            f"the place of {unknown} of {len(positions_um)} candidates is not known: they are "
            "resampled one by one, which makes intervals too narrow"
        )
    return notes


def _number(blocks: int) -> str:
    return f"{blocks} block{'s' * (blocks != 1)}"
