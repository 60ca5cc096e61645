"""The pictures of a report: from what was tested to figures with a title and a caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from cubeclf_core import evaluation_plots as plots
from cubeclf_core.bootstrap import spatial_blocks
from cubeclf_core.calibration import reliability
from cubeclf_core.curves import score_curve
from cubeclf_core.example_plots import candidate_thumbnails, embedding_map, map_embeddings
from finetune.evaluation import CELL

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RESULTS = "How well it tells cells apart"
MEANING = "What its probabilities mean"
EXAMPLES = "What it gets wrong"
TRAINING = "How it was trained"
SECTIONS = (RESULTS, MEANING, EXAMPLES, TRAINING)


@dataclass(frozen=True)
class Picture:
    """A figure, the section of the report that it belongs to, and what it shows."""

    section: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Labelled candidates with what the classifier said of them.

    Attributes
    ----------
    labels
        Shape (n,), 0 to k - 1; 1 is a cell.
    probabilities
        Shape (n, k), after temperature scaling.
    uncalibrated
        The same before it, if there was one.
    positions
        Shape (n, 3), z y x in voxels of the brain; NaN where not known.
    positions_um
        The same in µm.
    brains
        Name of the brain of each.
    scores
        Simple rules by name, shape (n,) each.
    embeddings
        Shape (n, feature), if there shall be a map of them.
    """

    labels: Ints
    probabilities: Floats
    positions: Floats
    positions_um: Floats
    brains: Sequence[str]
    uncalibrated: Floats | None = None
    scores: Mapping[str, Floats] = field(default_factory=dict)
    embeddings: npt.NDArray[np.floating] | None = None


def evaluation_pictures(
    predicted: Predicted,
    evaluation: Mapping[str, Any],
    seed: int = 0,
) -> list[Picture]:
    """Draw what `finetune.evaluation.evaluate` measured.

    Parameters
    ----------
    predicted
        What was measured.
    evaluation
        What came of it.
    seed
        Of the bands and of the map.

    Returns
    -------
    list of Picture
        Curves need both classes, and are left out without.
    """
    pooled, threshold = evaluation["pooled"], evaluation["threshold"]
    block_um, n_resamples = evaluation["block_um"], evaluation["resamples"]
    cell = predicted.probabilities[:, CELL]
    is_cell = (predicted.labels == CELL).astype(np.int64)
    pictures = []
    if 0 < pooled["cells"] < pooled["n"]:
        blocks = spatial_blocks(predicted.positions_um, predicted.brains, block_um)
        known = {name: s for name, s in predicted.scores.items() if np.isfinite(s).all()}
        curves = {
            name: score_curve(is_cell, score, blocks, n_resamples=n_resamples, seed=seed)
            for name, score in {"classifier": cell, **known}.items()
        }
        at = tuple(pooled[name] for name in ("recall", "precision", "false_positive_rate"))
        chosen = None if None in at else at
        pictures.append(
            Picture(
                RESULTS,
                "Precision, recall and false positives over all thresholds",
                f"All brains pooled. Bands hold 95 % of {n_resamples:,} resamples of blocks "
                f"of {block_um:g} µm, at each place by itself.",
                plots.score_curves(curves, pooled["prevalence"], chosen),
            )
        )
    pictures += _of_brains(evaluation)
    pictures += [
        Picture(
            RESULTS,
            "Called and labelled",
            f"At the threshold {threshold:.3g}, all brains pooled; shares are of a row.",
            plots.confusion_matrix(np.array(pooled["confusion"]), evaluation["classes"]),
        ),
        Picture(
            RESULTS,
            "Probabilities of cells and of others",
            "All brains pooled.",
            plots.score_histogram(predicted.labels, cell, threshold),
        ),
        Picture(
            MEANING,
            "Calibration",
            "Bins of about equally many candidates; larger dots hold more. Bars are 95 % intervals "
            "as if candidates were independent.",
            plots.calibration(
                reliability(is_cell, cell),
                None
                if predicted.uncalibrated is None
                else reliability(is_cell, predicted.uncalibrated[:, CELL]),
            ),
        ),
    ]
    if pooled["recall"] is not None:
        rates = pooled["recall"], pooled["false_positive_rate"], pooled["prevalence"]
        pictures.append(
            Picture(
                MEANING,
                "Precision in brains with another share of cells",
                "If cells look as they do here, and other candidates too, and only their numbers "
                "differ.",
                plots.prevalence_curve(*rates, threshold),
            )
        )
    if predicted.embeddings is not None:
        points, method = map_embeddings(predicted.embeddings, seed)
        pictures.append(
            Picture(
                EXAMPLES,
                "Map of the embeddings",
                "Each dot is a candidate held out; close ones look alike to the network. "
                "A lone dot of one colour among the other may be a wrong label.",
                embedding_map(points, method, predicted.labels, cell),
            )
        )
    return pictures


def _of_brains(evaluation: Mapping[str, Any]) -> list[Picture]:
    """Draw the brains beside one another, if there are several to compare."""
    name = "average_precision_less_prevalence"
    results = {
        brain: (result[name], result["intervals"][name])
        for brain, result in evaluation["brains"].items()
        if result[name] is not None
    }
    if len(results) < 2:
        return []
    figure = plots.brains_beside(results, "average precision less the share of cells")
    caption = "With 95 % intervals; the worst brain is on top."
    return [Picture(RESULTS, "Brains beside one another", caption, figure)]


def hardest_mistakes(predicted: Predicted, threshold: float, most: int = 12) -> tuple[Ints, Ints]:
    """Find the mistakes that the classifier is surest of.

    Parameters
    ----------
    predicted
        Labelled candidates.
    threshold
        From which probability on a candidate is called a cell.
    most
        Of each kind.

    Returns
    -------
    false_positives, false_negatives : numpy.ndarray
        Indices, the surest mistake first.
    """
    cell = predicted.probabilities[:, CELL]
    is_cell = predicted.labels == CELL
    positives = np.flatnonzero(~is_cell & (cell >= threshold))
    negatives = np.flatnonzero(is_cell & (cell < threshold))
    positives = positives[np.argsort(-cell[positives], kind="stable")][:most]
    negatives = negatives[np.argsort(cell[negatives], kind="stable")][:most]
    return positives, negatives


def mistake_pictures(
    predicted: Predicted,
    false_positives: tuple[Ints, npt.NDArray[Any]],
    false_negatives: tuple[Ints, npt.NDArray[Any]],
    voxel_size_um: Sequence[float],
) -> list[Picture]:
    """Show the hardest mistakes as thumbnails.

    Parameters
    ----------
    predicted
        Labelled candidates.
    false_positives, false_negatives
        Indices of `hardest_mistakes` and the cuboids of these, shape (m, c, z, y, x), raw counts.
    voxel_size_um
        z y x of the cuboids.
    """
    pictures = []
    for (index, cuboids), title, caption in (
        (
            false_positives,
            "Hardest false positives",
            "Labelled as no cell, called a cell, the surest first.",
        ),
        (
            false_negatives,
            "Hardest false negatives",
            "Labelled as a cell, not called one, the surest first.",
        ),
    ):
        if len(index):
            titles = [_place(predicted, int(i)) for i in index]
            figure = candidate_thumbnails(cuboids, titles, voxel_size_um)
            caption += (
                " Planes y x, y z and x z through the candidate; background, where there is one, "
                "below. Over each its probability, brain and place (z, y, x in voxels)."
            )
            pictures.append(Picture(EXAMPLES, title, caption, figure))
    return pictures


def training_pictures(lines: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """Draw learning curves, if there are any: lines as of `learning_curves`."""
    if not any("epoch" in line for line in lines):
        return []
    figure = plots.learning_curves([line for line in lines if "epoch" in line])
    caption = (
        "The best epoch, by average precision on the validation labels, is the one kept; the head "
        "that was fitted before it, where no epoch is better."
    )
    return [Picture(TRAINING, "Learning curves", caption, figure)]


def _place(predicted: Predicted, i: int) -> str:
    probability = f"p {predicted.probabilities[i, CELL]:.3f}"
    position = predicted.positions[i]
    known = np.isfinite(position).all()
    place = ", ".join(f"{p:.0f}" for p in position) if known else "place not known"
    brain = predicted.brains[i]
    return f"{probability}  {brain if len(brain) <= 20 else brain[:19] + '…'}\n{place}"
