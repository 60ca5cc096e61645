"""Pictures of what a classifier is worth: from arrays and numbers to a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from cubeclf_core.calibration import Reliability, precision_at_prevalence
from cubeclf_core.curves import ScoreCurve
from cubeclf_core.drawing import Array, plain_text

# Okabe and Ito's colours, told apart by colour-blind readers too.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_STYLES = ("-", "--", "-.", ":")  # and in print without colours
_BLUE, _ORANGE, _GREEN = _COLOURS[:3]
_GREY = "0.45"


def score_curves(
    curves: Mapping[str, ScoreCurve],
    prevalence: float,
    chosen: tuple[float, float, float] | None = None,
) -> Figure:
    """Plot precision over recall, and recall over the false positive rate, with their bands.

    Parameters
    ----------
    curves
        By name of the score, the most important first.
    prevalence
        Share of cells: the precision of guessing.
    chosen
        Recall, precision and false positive rate of the first score at its threshold, as a mark.
    """
    figure = Figure((10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.axhline(prevalence, color=_GREY, lw=1, ls=":", label="guessing")
    right.plot((0, 1), (0, 1), color=_GREY, lw=1, ls=":", label="guessing")
    for i, (name, curve) in reversed(list(enumerate(curves.items()))):
        colour, style = _COLOURS[i % len(_COLOURS)], _STYLES[i % len(_STYLES)]
        look: dict[str, Any] = {"color": colour, "ls": style, "lw": 1.6 if i == 0 else 1.2}
        left.fill_between(curve.grid, *curve.precision_band, color=colour, alpha=0.15, lw=0)
        right.fill_between(curve.grid, *curve.recall_band, color=colour, alpha=0.15, lw=0)
        left.plot(curve.recall, curve.precision, label=name, **look)
        x, y = (np.append(0.0, values) for values in (curve.false_positive_rate, curve.recall))
        right.plot(x, y, label=name, **look)
    if chosen:
        recall, precision, false_positive_rate = chosen
        mark: dict[str, Any] = {"color": "k", "marker": "o", "ms": 5, "ls": "", "zorder": 5}
        left.plot(recall, precision, label="threshold", **mark)
        right.plot(false_positive_rate, recall, label="threshold", **mark)
    left.set(xlabel="recall: share of cells found", ylabel="precision: share of cells among found")
    right.set(xlabel="false positive rate: share of others accepted", ylabel="recall")
    for axes in (left, right):
        axes.set(xlim=(-0.01, 1.01), ylim=(0, 1.02))
        _tidy(axes)
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], frameon=False, fontsize=8)
    return figure


def calibration(after: Reliability, before: Reliability | None = None) -> Figure:
    """Plot the share of cells over the probability, before and after temperature scaling.

    Parameters
    ----------
    after, before
        Each bin is a point, larger with more candidates, with the 95 % interval of its share as if
        candidates were independent (Wilson 1927).
    """
    figure = Figure((4.8, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot((0, 1), (0, 1), color=_GREY, lw=1, ls=":", label="calibrated")
    shown = ((before, _ORANGE, "--", "before scaling"), (after, _BLUE, "-", "after scaling"))
    for bins, colour, style, label in shown:
        if bins is None:
            continue
        low, high = _wilson(bins.true, bins.n)
        axes.vlines(bins.said, low, high, color=colour, lw=1, alpha=0.6)
        axes.plot(bins.said, bins.true, style, color=colour, lw=1.4, label=label)
        axes.scatter(bins.said, bins.true, 10 + 60 * bins.n / bins.n.max(), color=colour, zorder=3)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set(xlabel="mean probability of a cell", ylabel="share of cells")
    _tidy(axes)
    axes.legend(frameon=False, fontsize=8)
    return figure


def confusion_matrix(confusion: Array, classes: Sequence[str]) -> Figure:
    """Show how many candidates of each class were called what.

    Parameters
    ----------
    confusion
        Shape (k, k), rows as labelled, columns as called.
    classes
        Names of the k.
    """
    k = len(classes)
    figure = Figure((2.2 + 1.1 * k, 1.6 + 1.0 * k), layout="constrained")
    axes = figure.subplots()
    total = confusion.sum(axis=1, keepdims=True)
    share = confusion / np.maximum(total, 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i in range(k):
        for j in range(k):
            text = f"{confusion[i, j]:,}\n{share[i, j]:.1%}" if total[i, 0] else "0"
            colour = "w" if share[i, j] > 0.55 else "k"
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=9)
    names = [plain_text(name, 30) for name in classes]
    axes.set_xticks(range(k), names, fontsize=9)
    axes.set_yticks(range(k), names, fontsize=9)
    axes.set(xlabel="called", ylabel="labelled")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def score_histogram(labels: Array, probabilities: Array, threshold: float) -> Figure:
    """Plot how many cells and others have which probability.

    Parameters
    ----------
    labels
        Shape (n,), 1 for a cell; any other is none.
    probabilities
        Shape (n,), of a cell.
    threshold
        From which on a candidate is accepted.
    """
    figure = Figure((5.6, 3.5), layout="constrained")
    axes = figure.subplots()
    bins = np.linspace(0, 1, 41).tolist()
    for which, colour, hatch, name in (
        (labels != 1, _BLUE, "", "no cell"),
        (labels == 1, _ORANGE, "////", "cell"),
    ):
        label = f"labelled {name} ({int(which.sum()):,})"
        look: dict[str, Any] = {"histtype": "stepfilled", "hatch": hatch, "edgecolor": colour}
        axes.hist(probabilities[which], bins, fc=(colour, 0.35), label=label, **look)
    axes.axvline(threshold, color="k", lw=1, ls="--", label=f"threshold {threshold:.3g}")
    axes.set(xlabel="probability of a cell", ylabel="candidates", xlim=(0, 1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _tidy(axes)
    axes.legend(frameon=False, fontsize=8, loc="upper center")
    return figure


def learning_curves(lines: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot the loss and the average precision over epochs, and mark the best epoch.

    Parameters
    ----------
    lines
        Each with ``epoch`` and any of ``train_loss``, ``validation_loss`` and
        ``validation_average_precision``, finite or left out; with ``fold`` (a number), each fold is
        drawn by itself. The best epoch has the highest average precision, the first of equals.
        ``fitted_average_precision``, that of the head before the first epoch, is a line.
    """
    figure = Figure((10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    folds = sorted({line.get("fold", 0) for line in lines})
    look: dict[str, Any] = {"lw": 1.5 if len(folds) == 1 else 0.9, "ms": 2.5}
    for fold in folds:
        own = [line for line in lines if line.get("fold", 0) == fold]
        first = fold == folds[0]
        for axes, key, colour, style, label in (
            (left, "train_loss", _ORANGE, "--", "training"),
            (left, "validation_loss", _BLUE, "-", "validation"),
            (right, "validation_average_precision", _BLUE, "-", "validation"),
        ):
            epochs, values = _series(own, key)
            if len(epochs):
                shown = label if first else None
                marker = "o" if len(epochs) <= 30 else None
                axes.plot(epochs, values, style, color=colour, label=shown, marker=marker, **look)
        _, fitted = _series(own, "fitted_average_precision")
        if len(fitted):
            right.axhline(
                fitted[0], color=_BLUE, lw=1, ls=":", label="fitted head" if first else None
            )
        epochs, values = _series(own, "validation_average_precision")
        if len(epochs):
            best = int(np.argmax(values))
            label = f"best: epoch {epochs[best]:g}" if len(folds) == 1 else "best of each fold"
            right.plot(
                epochs[best], values[best], "o", color=_GREEN, label=label if first else None
            )
            left.axvline(epochs[best], color=_GREEN, lw=1, ls=":")
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel="average precision")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _tidy(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    return figure


def prevalence_curve(
    recall: float, false_positive_rate: float, prevalence: float, threshold: float
) -> Figure:
    """Plot what the precision at the threshold would be with other shares of cells.

    Parameters
    ----------
    recall, false_positive_rate
        At the threshold.
    prevalence
        Of the candidates that these were measured on, marked.
    threshold
        For the label.
    """
    figure = Figure((5.4, 3.6), layout="constrained")
    axes = figure.subplots()
    shares = np.geomspace(0.005, 0.95, 200)
    at = precision_at_prevalence(recall, false_positive_rate, shares)
    axes.plot(shares, at, color=_BLUE, lw=1.6, label=f"at the threshold {threshold:.3g}")
    axes.plot(shares, shares, color=_GREY, lw=1, ls=":", label="guessing")
    here = precision_at_prevalence(recall, false_positive_rate, np.array([prevalence]))
    label = f"here: {prevalence:.0%} are cells"
    axes.plot([prevalence], here, "o", color=_ORANGE, ms=7, label=label)
    axes.set(xscale="log", ylim=(0, 1.02), xlim=(shares[0], 1))
    axes.set(xlabel="share of cells among candidates", ylabel="precision")
    axes.set_xticks([0.01, 0.03, 0.1, 0.3, 1])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.minorticks_off()
    _tidy(axes)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def brains_beside(results: Mapping[str, tuple[float, Sequence[float] | None]], name: str) -> Figure:
    """Show one number of every brain with its interval, the lowest on top.

    Parameters
    ----------
    results
        Brain to value and interval (low and high), if there is one.
    name
        Of the number.
    """
    order = sorted(results, key=lambda brain: results[brain][0], reverse=True)
    figure = Figure((6, 1.1 + 0.32 * len(order)), layout="constrained")
    axes = figure.subplots()
    for row, brain in enumerate(order):
        value, ends = results[brain]
        if ends:
            axes.plot(ends, (row, row), color=_BLUE, lw=2, alpha=0.5, solid_capstyle="butt")
        axes.plot(value, row, "o", color=_BLUE, ms=6)
    axes.set_yticks(range(len(order)), [plain_text(brain, 40) for brain in order], fontsize=8)
    axes.set(xlabel=name, ylim=(-0.6, len(order) - 0.4))
    _tidy(axes)
    axes.grid(axis="x", color="0.92", lw=0.7)
    return figure


def _series(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[Array, Array]:
    """Collect the epochs that have a finite value, in order, and the values."""
    pairs = sorted((line["epoch"], line[key]) for line in lines if _finite(line.get(key)))
    both = np.array(pairs, np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _wilson(share: Array, n: Array) -> tuple[Array, Array]:
    """Give the 95 % interval of a share of n independent draws."""
    z = 1.96
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return middle - reach, middle + reach


def _tidy(axes: Axes) -> None:
    axes.tick_params(which="both", labelsize=8)
    axes.grid(axis="y", color="0.92", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
