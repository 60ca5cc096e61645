"""How well scores rank cells above the rest, for many weightings of the candidates at once.

A bootstrap is a thousand weightings: here each is a row of one array, so that it takes a second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SLACK = 1e-9  # so that 0.9 of 10 cells are 9


@dataclass(frozen=True)
class Ranking:
    """What each threshold accepts: one row a weighting, one column a distinct score.

    What is not defined is NaN: most of it where a weighting holds one class only.

    Attributes
    ----------
    thresholds
        Shape (m,), the distinct scores, falling.
    cells, others
        Shape (r, m), the weight of cells and of others whose score is at least the threshold.
    """

    thresholds: Floats
    cells: npt.NDArray[np.int32]
    others: npt.NDArray[np.int32]

    @property
    def n_cells(self) -> Floats:
        """Weight of all cells, shape (r,); NaN for none."""
        return _none_is_nan(self.cells[:, -1])

    @property
    def n_others(self) -> Floats:
        """Weight of all others, shape (r,); NaN for none."""
        return _none_is_nan(self.others[:, -1])

    def prevalence(self) -> Floats:
        """Share of cells, where average precision starts."""
        return self.cells[:, -1] / _none_is_nan(self.cells[:, -1] + self.others[:, -1])

    def auc(self) -> Floats:
        """Probability that a cell scores above another candidate; ties count half."""
        new_others = np.diff(self.others, axis=1, prepend=0)
        before = np.concatenate([np.zeros((len(self.cells), 1)), self.cells[:, :-1]], axis=1)
        area = (new_others * (before + self.cells)).sum(axis=1) / 2
        return np.asarray(area / (self.n_cells * self.n_others), np.float64)

    def average_precision(self) -> Floats:
        """Mean precision at the cells, as scikit-learn has it; NaN without others, too."""
        new_cells = np.diff(self.cells, axis=1, prepend=0)
        mean = (new_cells * self._precision()).sum(axis=1) / self.n_cells
        return np.where(np.isnan(self.n_others), np.nan, mean)

    def recall_at_precision(self, precision: float) -> Floats:
        """Largest share of cells that is found at a precision or better; 0 if none has it."""
        found = np.where(self._precision() >= precision - _SLACK, self.cells, 0).max(axis=1)
        return np.where(np.isnan(self.n_others), np.nan, found / self.n_cells)

    def false_positive_rate_at_recall(self, recall: float) -> Floats:
        """Share of others that must be accepted to find a share of the cells."""
        enough = self.cells >= recall * self.n_cells[:, None] - _SLACK
        first = enough.argmax(axis=1)
        accepted = self.others[np.arange(len(first)), first] / self.n_others
        return np.where(np.isnan(self.n_cells), np.nan, accepted)

    def accepted(self, threshold: float) -> tuple[Floats, Floats]:
        """Weight of cells and of others that score at least a threshold, shape (r,) each."""
        n = int((self.thresholds >= threshold).sum())
        if n == 0:
            return np.zeros(len(self.cells)), np.zeros(len(self.cells))
        return self.cells[:, n - 1].astype(np.float64), self.others[:, n - 1].astype(np.float64)

    def precision_at(self, recalls: Floats) -> Floats:
        """Precision at the highest threshold that finds shares of the cells, shape (r, recalls)."""
        precision = self._precision()
        rows = np.full((len(precision), len(recalls)), np.nan)
        for row, cells, own, n in zip(rows, self.cells, precision, self.n_cells, strict=True):
            if not np.isnan(n):
                row[:] = own[np.searchsorted(cells, np.maximum(recalls * n - _SLACK, 1))]
        return rows

    def recall_at(self, false_positive_rates: Floats) -> Floats:
        """Share of cells found while at most shares of the others are accepted, shape (r, rates).

        Between thresholds that accept other cells and others together it is interpolated.
        """
        rows = np.full((len(self.cells), len(false_positive_rates)), np.nan)
        both = ~np.isnan(self.n_cells) & ~np.isnan(self.n_others)
        for i in np.flatnonzero(both):
            x = np.append(0.0, self.others[i] / self.n_others[i])
            y = np.append(0.0, self.cells[i] / self.n_cells[i])
            # Of the points above one another np.interp may take any: only the highest is kept.
            last = np.append(np.diff(x) > 0, True)
            rows[i] = np.interp(false_positive_rates, x[last], y[last])
        return rows

    def _precision(self) -> Floats:
        return np.asarray(self.cells / np.maximum(self.cells + self.others, 1), np.float64)


def rank(labels: Ints, scores: Floats, weights: npt.NDArray[np.int32] | None = None) -> Ranking:
    """Count what each threshold accepts.

    Parameters
    ----------
    labels
        Shape (n,), 1 for a cell and 0 otherwise; at least one.
    scores
        Shape (n,), finite, higher for more likely cells.
    weights
        Shape (r, n), how often each candidate counts; once, if not given.

    Examples
    --------
    >>> ranking = rank(np.array([1, 0, 1]), np.array([0.9, 0.5, 0.2]))
    >>> ranking.auc(), ranking.average_precision().round(3)
    (array([0.5]), array([0.833]))
    """
    assert np.isfinite(scores).all()
    if weights is None:
        weights = np.ones((1, len(labels)), np.int32)
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    ends = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)  # equal scores together
    ordered = weights[:, order]
    all_of_them = np.cumsum(ordered, axis=1, dtype=np.int32)[:, ends]
    ordered *= labels[order].astype(np.int32)
    cells = np.cumsum(ordered, axis=1, dtype=np.int32)[:, ends]
    return Ranking(falling[ends], cells, all_of_them - cells)


def _none_is_nan(n: npt.NDArray[np.int32]) -> Floats:
    return np.where(n == 0, np.nan, n.astype(np.float64))
