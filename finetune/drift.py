"""Whether a brain's candidates look like those that the classifier was trained on.

Brains differ in their share of cells, and that is no fault. So scores are compared with the mixture
of the cells' and the others' held-out scores that fits best, and embeddings with their distance
from the middle between the two classes, in the nearest of the training brains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cubeclf_core.heads import CELL_CLASS

_SAMPLE = 128  # embeddings of a brain that are looked at
_QUANTILES = np.linspace(0, 1, 21)
_USUAL = 0.95  # share of the training's labels that lie within the distance
FAR_SHARE = 0.15  # of a brain's candidates beyond it: from here on it is told
_SCORES_APART = 0.15  # largest difference of two distribution functions, beside chance
_CHANCE = 1.36  # Kolmogorov and Smirnov's, at 5 %
_FEW = 5  # held-out labels of a class, below which their scores tell nothing
_ENOUGH = 10  # labels of a brain that tell what it looks like
_BRAINS = 16  # at most, as a header should be small

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Reference:
    """What the labels of a training looked like to its classifier; plain numbers, for a header.

    Attributes
    ----------
    cells, others
        Quantiles (0, 5 %, …, 100 %) of the probability of a cell, of held-out labels of each
        class; empty where nothing was held out.
    n_cells, n_others
        How many these were.
    means
        Of each feature of an embedding, for each brain that has labels enough, classes counted
        alike.
    deviation
        Of each feature, within brains.
    far
        Root mean square of (feature - mean) / deviation, by the nearest brain, that 95 % of the
        labels do not exceed.
    """

    cells: tuple[float, ...]
    others: tuple[float, ...]
    n_cells: int
    n_others: int
    means: tuple[tuple[float, ...], ...]
    deviation: tuple[float, ...]
    far: float

    def to_dict(self) -> dict[str, Any]:
        """Write for a header."""
        return dataclasses.asdict(self)


def make_reference(
    held_out: npt.NDArray[np.int64],
    probability: Floats,
    labels: npt.NDArray[np.int64],
    brains: npt.NDArray[np.int64],
    features: Floats,
) -> Reference:
    """Describe the labels of a training.

    Parameters
    ----------
    held_out
        Shape (m,), class of each label that was held out.
    probability
        Shape (m,), what was said of it.
    labels
        Shape (n,), class of each label.
    brains
        Shape (n,), number of its brain.
    features
        Shape (n, feature), by the trained network.
    """
    features = np.asarray(features, np.float64)
    numbers, counts = np.unique(brains, return_counts=True)
    large = numbers[counts >= _ENOUGH][np.argsort(-counts[counts >= _ENOUGH], kind="stable")]
    groups = [brains == number for number in large[:_BRAINS]] or [np.ones(len(labels), bool)]
    weights = [_classes_alike(labels[group] == CELL_CLASS) for group in groups]
    means = np.stack([w @ features[g] for g, w in zip(groups, weights, strict=True)])
    within = [
        w @ np.square(features[g] - mean) for g, w, mean in zip(groups, weights, means, strict=True)
    ]
    deviation = np.sqrt(np.mean(within, axis=0)) + 1e-6
    distance = np.concatenate([_distance(features[group], means, deviation) for group in groups])
    together = np.concatenate(weights)
    is_cell = held_out == CELL_CLASS
    return Reference(
        cells=_short(_quantiles(probability[is_cell])),
        others=_short(_quantiles(probability[~is_cell])),
        n_cells=int(is_cell.sum()),
        n_others=int((~is_cell).sum()),
        means=tuple(map(_short, means)),
        deviation=_short(deviation),
        far=float(np.quantile(distance, _USUAL, weights=together, method="inverted_cdf")),
    )


def _classes_alike(is_cell: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Weights that add up to 1, half of it to each class that there is."""
    n_cells = max(1, int(is_cell.sum()))
    weight = np.where(is_cell, 1 / n_cells, 1 / max(1, len(is_cell) - n_cells))
    return np.asarray(weight / weight.sum())


def read_reference(training: Mapping[str, Any]) -> Reference | None:
    """Read what a classifier's header tells of its training; None if it tells nothing."""
    told = training.get("reference")
    if not isinstance(told, Mapping):
        return None
    lists: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in told.items()
    }
    try:
        return Reference(**{**lists, "means": tuple(map(tuple, lists["means"]))})
    except (TypeError, KeyError):
        return None


def sampled(n: int) -> npt.NDArray[np.bool_]:
    """Choose those of `n` candidates whose embeddings a brain is compared by."""
    chosen = np.zeros(n, bool)
    chosen[np.linspace(0, n - 1, _SAMPLE).astype(int)] = True
    return chosen


def compare(
    reference: Reference | None, probability: Floats | None, sample: Floats
) -> dict[str, Any] | None:
    """Compare a brain with the training.

    Parameters
    ----------
    reference
        Of the training; None if it is not known.
    probability
        Shape (n,), of a cell, of all candidates, NaN where there is none; None: not comparable.
    sample
        Shape (m, feature), embeddings of some; without features where there are none.

    Returns
    -------
    dict or None
        ``scores_apart``, how far the distribution functions of scores lie apart at most, and
        ``far_share``, how many embeddings lie where 5 % of the training's did; each None where it
        cannot be known. ``warnings`` has a sentence for each that is too large. None without a
        reference.
    """
    if reference is None:
        return None
    warnings = []
    apart = far = None
    read = np.zeros(0) if probability is None else probability[np.isfinite(probability)]
    if len(read) and min(reference.n_cells, reference.n_others) >= _FEW:
        apart, share = _apart(read, np.array(reference.cells), np.array(reference.others))
        counts = np.array([len(read), reference.n_cells, reference.n_others])
        if apart > _SCORES_APART + _CHANCE * float(np.sqrt((1 / counts).sum())):
            warnings.append(
                f"scores lie away from those of the training brains (by {apart:.2f}, at best with "
                f"{share:.0%} cells): look at some of its candidates before you rely on it"
            )
    if len(sample) and sample.shape[1] == len(reference.deviation):
        means, deviation = np.array(reference.means), np.array(reference.deviation)
        far = float((_distance(sample, means, deviation) > reference.far).mean())
        if far > FAR_SHARE:
            warnings.append(
                f"{far:.0%} of its candidates look like few of the training brains' (5 % there): "
                "label some of them, cubeclf-suggest names which"
            )
    rounded = [None if value is None else round(value, 4) for value in (apart, far)]
    return {"scores_apart": rounded[0], "far_share": rounded[1], "warnings": warnings}


def _distance(features: Floats, means: Floats, deviation: Floats) -> npt.NDArray[np.float64]:
    """Distance of each embedding to the nearest of some means."""
    apart = [
        np.square((np.asarray(features, np.float64) - mean) / deviation).mean(axis=1)
        for mean in means
    ]
    return np.asarray(np.sqrt(np.min(apart, axis=0)))


def _apart(scores: Floats, cells: Floats, others: Floats) -> tuple[float, float]:
    """Find the mixture of two classes that is nearest to some scores: how near, and its share."""
    at = np.unique(np.concatenate([np.quantile(scores, np.linspace(0, 1, 201)), cells, others]))
    found = np.searchsorted(np.sort(scores), at, side="right") / len(scores)
    of_cells, of_others = (np.interp(at, q, _QUANTILES, left=0.0) for q in (cells, others))
    shares = np.linspace(0, 1, 101)[:, None]
    gaps = np.abs(shares * of_cells + (1 - shares) * of_others - found).max(axis=1)
    best = int(gaps.argmin())
    return float(gaps[best]), float(shares[best, 0])


def _quantiles(values: Floats) -> Floats:
    return np.quantile(values, _QUANTILES) if len(values) else np.zeros(0)


def _short(values: Floats) -> tuple[float, ...]:
    return tuple(float(f"{value:.5g}") for value in values.tolist())
