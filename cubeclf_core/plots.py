"""Pictures: pure functions from arrays to a matplotlib Figure, without pyplot's global state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve

Array = npt.NDArray[Any]

_CELL, _NO_CELL = "#f2b134", "#3aa0c9"  # told apart by colour-blind readers too


def training_curves(metrics: Path) -> Figure:
    """Plot the loss, and what it is to be compared with, over steps.

    Parameters
    ----------
    metrics
        A run's ``metrics.jsonl``.
    """
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    steps = [line["step"] for line in lines]
    beside = ("neighbour_mean", "cross_entropy", "uniform", "teacher_entropy")
    for name in ("loss", *beside):
        if name in lines[-1]:
            style = "-" if name == "loss" else "--"
            axes.plot(steps, [line[name] for line in lines], style, label=name.replace("_", " "))
    axes.set(xlabel="step", ylabel="loss")
    axes.legend(frameon=False)
    return figure


def reconstruction_mosaic(inputs: Array, seen: Array, filled: Array) -> Figure:
    """Show cuboids before masking, as the encoder saw them, and as reconstructed.

    Parameters
    ----------
    inputs, seen, filled
        Shape (n, c, z, y, x); NaN where masked. The signal's middle plane is shown.
    """
    n, middle = len(inputs), inputs.shape[2] // 2
    figure = Figure(figsize=(1.4 * n, 4.6), layout="constrained")
    grid = np.atleast_2d(figure.subplots(3, n, squeeze=False))
    for row, (name, cuboids) in enumerate(
        {"input": inputs, "seen": seen, "reconstructed": filled}.items()
    ):
        for column in range(n):
            axes = grid[row, column]
            low, high = np.percentile(inputs[column, 0, middle], (1, 99.5))
            axes.imshow(cuboids[column, 0, middle], cmap="gray", vmin=low, vmax=high)
            axes.set(xticks=[], yticks=[], facecolor="#5b2333")
        grid[row, 0].set_ylabel(name)
    return figure


def precision_recall(labels: Array, scores: Mapping[str, Array]) -> Figure:
    """Plot precision against recall of several scores of the same candidates.

    Parameters
    ----------
    labels
        Shape (n,), 1 for a cell.
    scores
        Name to scores of shape (n,).
    """
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in scores.items():
        precision, recall, _ = precision_recall_curve(labels, values)
        axes.plot(recall, precision, label=name)
    axes.axhline(labels.mean(), color="0.7", lw=1, label="prevalence")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(frameon=False, fontsize=8)
    return figure


def classified_candidates(
    projection: Array, positions: Array, accepted: Array, probabilities: Array, threshold: float
) -> Figure:
    """Show accepted and rejected candidates over a projection, and the histogram of scores.

    Parameters
    ----------
    projection
        Shape (y, x), a maximum projection along z, at any scale.
    positions
        Shape (n, 3), z y x, as shares of the volume's shape.
    accepted
        Shape (n,), bool.
    probabilities
        Shape (n,), of being a cell.
    threshold
        From which on a candidate is accepted.
    """
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    image, histogram = figure.subplots(1, 2, width_ratios=(1.3, 1))
    low, high = np.percentile(projection, (1, 99.7))
    image.imshow(projection, cmap="gray", vmin=low, vmax=high)
    size = np.array(projection.shape)
    for which, colour, name in ((~accepted, _NO_CELL, "rejected"), (accepted, _CELL, "cell")):
        y, x = (positions[which, 1:] * size - 0.5).T
        label = f"{name} ({int(which.sum())})"
        image.scatter(x, y, s=18, facecolors="none", edgecolors=colour, lw=0.8, label=label)
    image.set(xticks=[], yticks=[], title="maximum projection along z")
    image.legend(loc="upper right", fontsize=8)
    histogram.hist(probabilities, bins=np.linspace(0, 1, 41).tolist(), color="0.5")
    histogram.axvline(threshold, color="k", lw=1, ls="--", label=f"threshold {threshold:g}")
    histogram.set(xlabel="probability of a cell", ylabel="candidates")
    histogram.legend(frameon=False)
    return figure
