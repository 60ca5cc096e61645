"""Pictures of a pretraining: its curves, what it reconstructs, what its tokens tell apart."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from cubeclf_core.drawing import Array, scale_bar

# Okabe and Ito's colours, told apart by colour-blind readers too.
_BLUE, _ORANGE, _GREEN, _PINK = "#0072b2", "#e69f00", "#009e73", "#cc79a7"
_GREY = "0.45"
_SMOOTH = 60  # points from which on a line is drawn smoothed, with the points behind it
_FEW = 30  # points up to which each is marked
_MASKED = "#3d5a80"

Lines = Mapping[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]


@dataclass(frozen=True)
class _Curve:
    name: str
    label: str
    colour: str
    style: str = "-"


@dataclass(frozen=True)
class _Panel:
    title: str
    curves: tuple[_Curve, ...]
    reference: tuple[float, str] | None = None  # a level to compare with
    logarithmic: bool = False


_PANELS = (
    _Panel(
        "loss",
        (
            _Curve("uniform", "uniform guess, ln K", _GREY, ":"),
            _Curve("neighbour_mean", "mean of neighbours", _GREY, "--"),
            _Curve("chance", "chance, ln of the batch", _GREY, ":"),
            _Curve("cross_entropy", "cross-entropy", _ORANGE),
            _Curve("ibot", "masked tokens", _GREEN),
            _Curve("loss", "loss", _BLUE),
        ),
    ),
    _Panel(
        "teacher",
        (
            _Curve("koleo", "KoLeo", _PINK),
            _Curve("uniform", "uniform, ln K", _GREY, ":"),
            _Curve("marginal_entropy", "entropy, whole batch", _GREEN),
            _Curve("teacher_entropy", "entropy, one cuboid", _ORANGE),
            _Curve("kl", "KL to the student", _BLUE),
        ),
    ),
    _Panel("other view found", (_Curve("found", "share of cuboids", _BLUE),)),
    _Panel(
        "effective rank (RankMe)",
        (_Curve("rank_me_class", "class token", _ORANGE), _Curve("rank_me", "pooled", _BLUE)),
    ),
    _Panel(
        "spread of embeddings",
        (
            _Curve("mean_cosine", "mean cosine (1: all alike)", _ORANGE),
            _Curve("feature_deviation", "deviation (0: all alike)", _BLUE),
        ),
    ),
    _Panel(
        "probe, AUC",
        (_Curve("probe_knn_auc", "kNN", _ORANGE), _Curve("probe_linear_auc", "linear", _BLUE)),
        reference=(0.5, "chance"),
    ),
    _Panel(
        "shortcuts",
        (
            _Curve("shortcut_brain_chance", "which brain, chance", _GREEN, "--"),
            _Curve("shortcut_brain", "which brain, accuracy", _GREEN),
            _Curve("shortcut_depth", "depth, R²", _ORANGE),
            _Curve("shortcut_intensity", "intensity, R²", _BLUE),
        ),
        reference=(0.0, "R² of chance"),
    ),
    _Panel("norm of the gradient", (_Curve("gradient_norm", "", _BLUE),), logarithmic=True),
)
_SCHEDULES = (
    _Curve("learning_rate", "learning rate", _BLUE),
    _Curve("weight_decay", "weight decay", _ORANGE),
    _Curve("momentum", "teacher's momentum", _GREEN),
    _Curve("teacher_temperature", "teacher's temperature", _PINK),
)


def training_curves(metrics: Path) -> Figure:
    """Plot what a run has logged over its steps: a panel for each question that it has data for.

    These are the loss and what it is to be compared with, the teacher's entropies, the rank and
    spread of embeddings, probes, shortcuts, the gradient, the schedules and the speed.

    Parameters
    ----------
    metrics
        A run's ``metrics.jsonl``: a JSON object a line, each with ``step`` and any other numbers.
        Of two lines of one step the later counts; a last line that was cut short is left out.
    """
    lines = _read(metrics)
    draw: list[Callable[[Axes, Lines], None]] = [
        partial(_draw_panel, panel)
        for panel in _PANELS
        if any(curve.name in lines for curve in panel.curves if curve.name != "uniform")
    ]
    if any(curve.name in lines for curve in _SCHEDULES):
        draw.append(_draw_schedules)
    if "cuboids_per_s" in lines:
        draw.append(_draw_speed)
    n_columns = {0: 1, 1: 1, 2: 2, 4: 2}.get(len(draw), 3)
    n_rows = max(1, -(-len(draw) // n_columns))
    layout = ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.12)
    figure = Figure((4.2 * n_columns, 3.1 * n_rows), layout=layout)
    grid = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    last = max((steps[-1] for steps, _ in lines.values()), default=0.0)
    for i, axes in enumerate(grid):
        if i >= len(draw):
            axes.set_axis_off()
            continue
        draw[i](axes, lines)
        axes.set_xlim(-0.02 * max(last, 1), 1.02 * max(last, 1))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
        if i + n_columns >= len(draw):
            axes.set_xlabel("step", fontsize=8)
    return figure


def _read(metrics: Path) -> Lines:
    """Collect each metric's steps and values, without those that are not finite."""
    found: dict[str, dict[float, float]] = {}
    for text in metrics.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # written while the power went
            continue
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, {})[line["step"]] = value
    return {
        name: (
            np.array(sorted(values), float),
            np.array([values[s] for s in sorted(values)], float),
        )
        for name, values in found.items()
    }


def _draw_panel(panel: _Panel, axes: Axes, lines: Lines) -> None:
    if panel.reference:
        level, label = panel.reference
        axes.axhline(level, color=_GREY, lw=1, ls=":", label=label)
    for curve in panel.curves:
        if curve.name in lines:
            _draw_curve(axes, curve, *lines[curve.name])
    drawn = [lines[curve.name][1] for curve in panel.curves if curve.name in lines]
    if panel.logarithmic and all((values > 0).all() for values in drawn):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    _tidy(axes, panel.title)


def _draw_curve(
    axes: Axes, curve: _Curve, steps: npt.NDArray[Any], values: npt.NDArray[Any]
) -> None:
    colour, style, label = curve.colour, curve.style, curve.label or None
    if len(steps) > _SMOOTH:
        if style == "-":
            axes.plot(steps, values, color=colour, lw=0.6, alpha=0.3)
        values = _smooth(values)
    marker = "o" if len(steps) <= _FEW else None
    axes.plot(steps, values, style, color=colour, lw=1.4, marker=marker, ms=2.5, label=label)


def _smooth(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Give the mean of the neighbourhood, a fiftieth of the run wide and narrower at the ends."""
    at = np.arange(len(values))
    reach = np.minimum(max(1, len(values) // 100), np.minimum(at, at[::-1]))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    smooth: npt.NDArray[np.float64] = (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)
    return smooth


def _draw_schedules(axes: Axes, lines: Lines) -> None:
    """Draw what was scheduled, each as a share of its own largest value."""
    for curve in _SCHEDULES:
        if curve.name in lines:
            steps, values = lines[curve.name]
            top = float(np.abs(values).max()) or 1.0
            label = f"{curve.label} / {top:.3g}"
            axes.plot(steps, values / top, color=curve.colour, lw=1.4, label=label)
    _tidy(axes, "schedules, as shares of their largest value")


def _draw_speed(axes: Axes, lines: Lines) -> None:
    _draw_curve(axes, _Curve("", "", _BLUE), *lines["cuboids_per_s"])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("cuboids/s", color=_BLUE, fontsize=8)
    _tidy(axes, "speed")
    if "wait_share" in lines:
        beside = axes.twinx()
        _draw_curve(beside, _Curve("", "", _ORANGE), *lines["wait_share"])
        beside.set_ylim(0, max(0.1, 1.1 * float(lines["wait_share"][1].max())))
        beside.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        beside.set_ylabel("time waiting for data", color=_ORANGE, fontsize=8)
        beside.tick_params(labelsize=7)
        beside.spines[["top", "left"]].set_visible(False)


def _tidy(axes: Axes, title: str) -> None:
    """Give axes their title and, above the curves, what these are: no curve is hidden by it."""
    axes.tick_params(which="both", labelsize=7)
    axes.grid(axis="y", color="0.92", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1],  # the most important is drawn last, on top
        labels[::-1],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        frameon=False,
        fontsize=7,
        handlelength=1.6,
        borderpad=0,
        title=title,
        title_fontproperties={"size": 9, "weight": "bold"},
        alignment="left",
    )


def reconstruction_mosaic(
    inputs: Array, seen: Array, filled: Array, voxel_size_um: Sequence[float]
) -> Figure:
    """Show cuboids as they are, as the encoder saw them, and as reconstructed, in three planes.

    Parameters
    ----------
    inputs, seen, filled
        Shape (n, c, z, y, x); NaN where masked.
    voxel_size_um
        z y x.

    Returns
    -------
    matplotlib.figure.Figure
        A row for each cuboid and channel; in each of three columns the planes y x, y z and x z
        through the middle, all to one scale. Contrast is that of the input in all columns.
    """
    n, channels, *shape = inputs.shape
    depth, height, width = np.multiply(shape, voxel_size_um).tolist()
    gap = 0.08 * width
    tall, wide = max(height, width), width + 2 * depth + 2 * gap
    rows = [(i, c) for i in range(n) for c in range(channels)]
    tops = [row * (tall + gap) + i * gap * (channels > 1) for row, (i, _) in enumerate(rows)]
    total = tops[-1] + tall
    figure = Figure(
        (10, 10 * total / (3.2 * wide) + 0.7), layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.1)
    )
    columns = figure.subplots(1, 3)
    colours = colormaps["gray"].with_extremes(bad=_MASKED)
    names = ("input", "seen by the encoder", "reconstructed")
    for axes, name, cuboids in zip(columns, names, (inputs, seen, filled), strict=True):
        axes.set_title(name, fontsize=9, fontweight="bold", pad=14)
        for top, (i, c) in zip(tops, rows, strict=True):
            low, high = np.percentile(inputs[i, c], (1, 99.8))
            left = 0.0
            for plane, across in _middle_planes(cuboids[i, c], voxel_size_um):
                down = plane.shape[0] * across[0]
                right = left + plane.shape[1] * across[1]
                axes.imshow(
                    np.ma.masked_invalid(plane),
                    cmap=colours,
                    vmin=low,
                    vmax=max(high, low + 1e-6),
                    extent=(left, right, top + down, top),
                    interpolation="nearest",
                )
                left = right + gap
        axes.set(xlim=(0, wide), ylim=(total, 0), aspect="equal")
        axes.set_axis_off()
        for label, middle in (
            ("y x", width / 2),
            ("y z", width + gap + depth / 2),
            ("x z", width + 2 * gap + 1.5 * depth),
        ):
            axes.text(middle, -0.4 * gap, label, fontsize=7, ha="center", va="bottom", color=_GREY)
    if channels > 1:
        for top, (_, c) in zip(tops, rows, strict=True):
            where = (-gap, top + height / 2)
            name = "signal" if c == 0 else "background"
            columns[0].text(*where, name, fontsize=7, rotation=90, ha="right", va="center")
    scale_bar(columns[0], tops[0] + height, width, share=0.6)
    return figure


def _middle_planes(
    cuboid: Array, voxel_size_um: Sequence[float]
) -> list[tuple[Array, tuple[float, float]]]:
    """Give the planes y x, y z and x z through the middle, each with its pixels' size in µm."""
    z, y, x = (n // 2 for n in cuboid.shape)
    size_z, size_y, size_x = voxel_size_um
    return [
        (cuboid[z], (size_y, size_x)),
        (cuboid[:, :, x].T, (size_y, size_z)),
        (cuboid[:, y].T, (size_x, size_z)),
    ]


def token_map(
    section: Float[np.ndarray, "y x"],
    components: Float[np.ndarray, "gy gx 3"],
    explained: Sequence[float],
    pixel_size_um: Sequence[float],
) -> Figure:
    """Show a section beside the principal components of its tokens, to one scale.

    Parameters
    ----------
    section
        Grey values.
    components
        The first three components of each token's features, shown as red, green and blue.
    explained
        Share of the variance that each of the three explains.
    pixel_size_um
        Of the section, y x.
    """
    height, width = np.multiply(section.shape, pixel_size_um).tolist()
    extent = (0.0, width, height, 0.0)
    side = 4.6
    figure = Figure((2 * side, side * height / width + 0.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    low, high = np.percentile(section, (1, 99.7))
    left.imshow(section, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), extent=extent)
    left.set_title("section", loc="left", fontsize=9)
    scale_bar(left, height, width)
    low, high = np.percentile(components, (2, 98), axis=(0, 1))
    colours = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    right.imshow(colours, extent=extent, interpolation="nearest")
    shares = ", ".join(f"{share:.0%}" for share in explained)
    right.set_title(f"tokens: principal components 1 to 3 ({shares})", loc="left", fontsize=9)
    for axes in (left, right):
        axes.set_axis_off()
    return figure
