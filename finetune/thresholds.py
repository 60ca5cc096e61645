"""From which probability on a candidate is a cell: what `--threshold` says, and what comes of it.

Nothing here imports torch, so that a wrong `--threshold` is told at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cubeclf_core.errors import require
from cubeclf_core.ranking import rank

Kind = Literal["f1", "recall", "precision", "fixed"]
_KINDS: dict[str, Kind] = {"recall=": "recall", "precision=": "precision", "": "fixed"}
_UNDECIDED = 0.5  # where there is nothing to choose by


@dataclass(frozen=True)
class ThresholdRule:
    """How a threshold is chosen.

    Attributes
    ----------
    kind
        ``f1``: the best F1. ``recall``: the highest threshold that finds this share of the cells.
        ``precision``: the lowest of which this share of what is accepted are cells, so that the
        most cells are found. ``fixed``: this very threshold.
    value
        The share or threshold; 0 for ``f1``, which has none.
    """

    kind: Kind
    value: float = 0.0

    def __str__(self) -> str:
        """As it is written on the command line."""
        if self.kind == "f1":
            return "f1"
        return f"{self.value:g}" if self.kind == "fixed" else f"{self.kind}={self.value:g}"


@dataclass(frozen=True)
class ChosenThreshold:
    """A threshold, and a sentence on it where the rule could not be met; else empty."""

    threshold: float
    remark: str = ""


def parse_threshold(text: str) -> ThresholdRule:
    """Understand ``f1``, ``recall=0.99``, ``precision=0.9`` or ``0.42``.

    Raises
    ------
    InputError
        If it is none of these.

    Examples
    --------
    >>> parse_threshold("recall=0.99")
    ThresholdRule(kind='recall', value=0.99)
    >>> parse_threshold("half")
    Traceback (most recent call last):
        ...
    cubeclf_core.errors.InputError: --threshold is 'half', expected f1, recall=0.99, ...
    """
    expected = "f1, recall=0.99, precision=0.9, or a probability such as 0.42"
    if text.strip() == "f1":
        return ThresholdRule("f1")
    name, equals, number = text.strip().rpartition("=")
    kind = _KINDS.get(name + equals)
    value = _share(number)
    require(kind is not None and not math.isnan(value), "--threshold", repr(text), expected)
    assert kind
    require(kind == "fixed" or value > 0, "--threshold", repr(text), f"a {kind} above 0")
    return ThresholdRule(kind, value)


def _share(text: str) -> float:
    """Read a number from 0 to 1; NaN if it is none."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if 0 <= value <= 1 else math.nan


def choose_threshold(
    rule: ThresholdRule,
    labels: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float64],
) -> ChosenThreshold:
    """Choose a threshold on candidates that are neither trained nor tested on.

    Parameters
    ----------
    rule
        How.
    labels
        Shape (n,), 1 for a cell; any other is none.
    probabilities
        Shape (n,), of a cell, as they will be compared with the threshold.

    Returns
    -------
    ChosenThreshold
        Halfway to the next lower probability, so that a last digit decides nothing. 0.5 where there
        are no cells or no others to choose by, and a remark says so.
    """
    if rule.kind == "fixed":
        return ChosenThreshold(rule.value)
    is_cell = (labels == 1).astype(np.int64)
    cells, others = int(is_cell.sum()), int(len(is_cell) - is_cell.sum())
    if not cells or not others:
        return ChosenThreshold(
            _UNDECIDED,
            f"the labels to choose a threshold by are {cells} cells and {others} others; "
            f"{rule} needs both, so {_UNDECIDED} is taken",
        )
    ranking = rank(is_cell, probabilities)
    right, wrong = ranking.cells[0], ranking.others[0]
    precision = right / (right + wrong)
    remark = ""
    if rule.kind == "f1":
        best = int(np.argmax(2 * right / (right + wrong + cells)))
    elif rule.kind == "recall":
        best = int(np.argmax(right >= rule.value * cells - 1e-9))
    else:
        reached = precision >= rule.value - 1e-9
        if not reached.any():
            reached = precision == precision.max()
            remark = (
                f"no threshold reaches a precision of {rule.value:g} on the {len(labels)} labels "
                f"to choose it by; the highest, {precision.max():.3g}, is taken"
            )
        best = int(np.flatnonzero(reached)[-1])
    return ChosenThreshold(_halfway(ranking.thresholds, best), remark)


def _halfway(thresholds: npt.NDArray[np.float64], at: int) -> float:
    """Give a threshold that accepts what this one does, as far as can be from the next lower."""
    lower = float(thresholds[at + 1]) if at + 1 < len(thresholds) else 0.0
    middle = (float(thresholds[at]) + lower) / 2
    return middle if middle > lower else float(thresholds[at])
