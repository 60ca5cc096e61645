"""Pictures: pure functions from arrays to a matplotlib Figure, without pyplot's global state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from cubeclf_core.drawing import Array, scale_bar

_MANY = 2000  # candidates
_CELL, _NO_CELL = "#f2b134", "#3aa0c9"  # told apart by colour-blind readers too


def classified_candidates(
    copy: Array | None,
    positions: Array,
    accepted: Array,
    probabilities: Array,
    threshold: float,
    size_um: Sequence[float],
) -> Figure:
    """Show accepted and rejected candidates over two projections, and the histogram of scores.

    Parameters
    ----------
    copy
        Shape (z, y, x), of the whole volume at any scale; its maxima are shown. None: how many
        candidates there are instead.
    positions
        Shape (n, 3), z y x, as shares of the volume's shape.
    accepted
        Shape (n,), bool.
    probabilities
        Shape (n,), of being a cell; NaN where there is none.
    threshold
        From which on a candidate is accepted.
    size_um
        Of the volume, z y x.
    """
    depth, height, width = size_um
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    mosaic: list[Any] = [["yx", "scores"], ["zx", "scores"]]
    ratios = (height, max(depth, height / 8))
    axes = figure.subplot_mosaic(mosaic, width_ratios=(1.3, 1), height_ratios=ratios)
    scored = np.isfinite(probabilities)
    kinds = ((scored & ~accepted, _NO_CELL, "rejected"), (accepted, _CELL, "cell"))
    for name, along, tall in (("yx", 0, height), ("zx", 1, depth)):
        row = 1 - along
        panel, extent = axes[name], (0.0, width, tall, 0.0)
        if copy is None:
            panel.imshow(_counts(positions[:, (row, 2)]), cmap="gray", extent=extent)
        else:
            shown = copy.max(axis=along)
            low, high = np.percentile(shown, (1, 99.7))
            panel.imshow(shown, cmap="gray", vmin=low, vmax=high, extent=extent)
        size = float(np.clip(18 * 1500 / len(positions), 0.5, 18))
        for which, colour, kind in kinds:
            y, x = (positions[which][:, (row, 2)] * (tall, width)).T
            label = f"{kind} ({int(which.sum()):,})"
            panel.scatter(x, y, s=size, facecolors="none", edgecolors=colour, lw=0.8, label=label)
        panel.set(xticks=[], yticks=[], xlim=(0, width), ylim=(tall, 0))
        what = "maximum" if copy is not None else "number of candidates"
        panel.set_title(f"{what} along {'zy'[along]}", fontsize=9)
    scale_bar(axes["yx"], height, width)
    axes["yx"].legend(loc="upper right", fontsize=8)
    _score_histogram(axes["scores"], probabilities[scored], threshold)
    return figure


def _counts(shares: Array) -> Array:
    """Count positions, shares of an image's sides, on a grid."""
    return np.histogramdd(shares, bins=(100, 150), range=((0.0, 1.0), (0.0, 1.0)))[0]


def _score_histogram(axes: Axes, probabilities: Array, threshold: float) -> None:
    """Draw how many candidates have which probability, and the threshold."""
    many = len(probabilities) > _MANY  # of which most are rejected: what is accepted has to show
    axes.hist(probabilities, bins=np.linspace(0, 1, 41).tolist(), color="0.5", log=many)
    axes.axvline(threshold, color="k", lw=1, ls="--", label=f"threshold {threshold:.3g}")
    axes.set(xlabel="probability of a cell", ylabel="candidates", xlim=(0, 1))
    axes.legend(frameon=False, fontsize=8)


def tissue_map(name: str, overview: Array, mask: Array, voxel_size_um: Sequence[float]) -> Figure:
    """Show where tissue was found in a brain, so that a person can check it.

    Parameters
    ----------
    name
        Of the brain.
    overview
        Shape (c, z, y, x), a small copy of the whole volume.
    mask
        Shape (z, y, x), true where tissue is.
    voxel_size_um
        Of the overview, z y x.

    Returns
    -------
    matplotlib.figure.Figure
        For each channel, planes along y x, z y and z x through the middle of the tissue, all to one
        scale and with the tissue's outline, and the histogram of its grey values.
    """
    depth, height, width = np.multiply(mask.shape, voxel_size_um).tolist()
    share = 0.35 * (height + depth)  # of the figure's height, for the histogram
    tall = 5 * (height + depth + share) / (width + depth) + 1
    figure = Figure((5 * len(overview), min(max(tall, 4), 12)), layout="constrained")
    figure.suptitle(f"{name}: {mask.mean():.1%} of the volume is tissue")
    panels = figure.subfigures(1, len(overview), squeeze=False)[0]
    for panel, channel, title in zip(panels, overview, ("signal", "background"), strict=False):
        panel.suptitle(title, fontsize=10)
        axes = panel.subplot_mosaic(
            [["yx", "yz"], ["zx", "."], ["grey values", "grey values"]],
            width_ratios=(width, depth),
            height_ratios=(height, depth, share),
        )
        _planes([axes["yx"], axes["yz"], axes["zx"]], channel, mask, voxel_size_um)
        _grey_values(axes["grey values"], channel, mask)
    return figure


def _planes(panels: Sequence[Axes], channel: Array, mask: Array, size_um: Sequence[float]) -> None:
    """Draw three planes through the middle of the tissue, with its outline and a scale bar."""
    z, y, x = (int(np.median(where)) for where in np.nonzero(mask))
    low, high = np.percentile(channel, (0.1, 99.8))
    norm = PowerNorm(0.5, low, max(high, low + 1e-6), clip=True)  # a dim edge must be seen
    size_z, size_y, size_x = size_um
    for axes, plane, inside, height, width, where in (
        (panels[0], channel[z], mask[z], size_y, size_x, f"z {z * size_z:.0f} µm"),
        (panels[1], channel[:, :, x].T, mask[:, :, x].T, size_y, size_z, f"x {x * size_x:.0f} µm"),
        (panels[2], channel[:, y], mask[:, y], size_z, size_x, f"y {y * size_y:.0f} µm"),
    ):
        rows, columns = plane.shape
        extent = (0.0, columns * width, rows * height, 0.0)
        axes.imshow(plane, cmap="gray", norm=norm, extent=extent, interpolation="nearest")
        # Padded, so that the outline is closed where tissue is cut by the volume's border.
        around = np.pad(inside, 1)
        at_x, at_y = (np.arange(-0.5, n + 1) * s for n, s in ((columns, width), (rows, height)))
        axes.contour(at_x, at_y, around, [0.5], colors=_CELL, linewidths=1)
        axes.set_axis_off()
        axes.set_title(where, fontsize=7, loc="left", pad=2)
    scale_bar(panels[0], channel.shape[1] * size_y, channel.shape[2] * size_x)


def _grey_values(axes: Axes, channel: Array, mask: Array) -> None:
    """Draw how often tissue and the rest have which grey values, both axes logarithmic."""
    grey = channel - min(float(channel.min()), 0.0) + 1.0
    bins = np.geomspace(grey.min(), max(np.percentile(grey, 99.9), grey.min() + 1), 50).tolist()
    for where, colour, label in ((mask, _CELL, "tissue"), (~mask, "0.5", "outside")):
        axes.hist(grey[where], bins, color=colour, histtype="step", label=label)
    axes.set(xscale="log", yscale="log", xlabel="grey value")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=7)
    axes.tick_params(axis="y", which="both", left=False, labelleft=False)
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7, loc="lower center")
