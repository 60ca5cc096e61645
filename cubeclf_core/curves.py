"""Precision, recall and false positives over all thresholds, with bands of a block bootstrap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cubeclf_core.bootstrap import Blocks, resampled_weights
from cubeclf_core.ranking import rank

Floats = npt.NDArray[np.float64]

_GRID = 101


@dataclass(frozen=True)
class ScoreCurve:
    """What a score does at every threshold.

    Attributes
    ----------
    recall, precision, false_positive_rate
        Shape (m,), at each threshold, falling.
    grid
        Shape (g,), 0 to 1: recalls, and false positive rates, that the bands are given at.
    precision_band
        Shape (2, g), low and high, over recall; NaN where resamples do not tell.
    recall_band
        Shape (2, g), low and high, over the false positive rate.
    """

    recall: Floats
    precision: Floats
    false_positive_rate: Floats
    grid: Floats
    precision_band: Floats
    recall_band: Floats


def score_curve(
    labels: npt.NDArray[np.int64],
    scores: Floats,
    blocks: Blocks,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> ScoreCurve:
    """Trace a score over all thresholds.

    Parameters
    ----------
    labels
        Shape (n,), 1 for a cell and 0 otherwise; both occur.
    scores
        Shape (n,), finite, higher for more likely cells.
    blocks
        What is resampled together.
    n_resamples, seed
        Of the bootstrap.
    level
        Share of resamples within the bands, at each point of the grid by itself.
    """
    ranking = rank(labels, scores)
    cells, others = ranking.cells[0], ranking.others[0]
    assert cells[-1] > 0
    assert others[-1] > 0
    grid = np.linspace(0, 1, _GRID)
    precisions, recalls = [], []
    for weights in resampled_weights(blocks, n_resamples, seed):
        resampled = rank(labels, scores, weights)
        precisions.append(resampled.precision_at(grid))
        recalls.append(resampled.recall_at(grid))
    return ScoreCurve(
        recall=cells / cells[-1],
        precision=cells / (cells + others),
        false_positive_rate=others / others[-1],
        grid=grid,
        precision_band=_band(np.concatenate(precisions), level),
        recall_band=_band(np.concatenate(recalls), level),
    )


def _band(values: Floats, level: float) -> Floats:
    """Percentiles of the rows that are defined; NaN if there are none."""
    known = values[~np.isnan(values).any(axis=1)]
    if not len(known):
        return np.full((2, values.shape[1]), np.nan)
    return np.asarray(np.quantile(known, ((1 - level) / 2, (1 + level) / 2), axis=0), np.float64)
