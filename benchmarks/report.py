"""The figures of the streaming benchmark: what each must reach, the table and the plot."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.forms import CANVAS, FORMS
from benchmarks.output import Figures, lay_out
from benchmarks.streams import CUBOID
from cubeclf_core.pyramid import INNER_CHUNKS
from cubeclf_core.sources import by

WAYS = {
    "zarr": "zarr-python, one by one",
    "dask": "dask, one by one",
    "tensorstore": "tensorstore, one by one",
    "stream_20": "stream, 20 draws a chunk",
    "stream_32": "stream, 32 draws a chunk",
    "stream_128": "stream, 128 draws a chunk",
    "zarr_sparse": "zarr-python, sparse candidates",
    "candidates_sparse": "candidate reader, sparse",
    "candidates_sparse_raw": "… without float32",
    "zarr_dense": "zarr-python, dense candidates",
    "candidates_dense": "candidate reader, dense",
    "candidates_dense_raw": "… without float32",
}
"""Ways to read: a part of the keys of their figures, and what to call them."""

RATIOS = {
    "dask": "dask_ratio",
    "tensorstore": "tensorstore_ratio",
    "stream_20": "stream_ratio_20",
    "stream_32": "stream_ratio_32",
    "stream_128": "stream_ratio_128",
    "candidates_sparse": "candidates_ratio_sparse",
    "candidates_sparse_raw": "candidates_ratio_sparse_raw",
    "candidates_dense": "candidates_ratio_dense",
    "candidates_dense_raw": "candidates_ratio_dense_raw",
}


@dataclass(frozen=True)
class Target:
    """What a figure must reach, and what we aim at; `name` where it is not a way's ratio."""

    least: float = float("-inf")
    most: float = float("inf")
    aim: float | None = None
    name: str = ""

    def met(self, value: float) -> bool:
        """Say whether a figure is within."""
        return self.least <= value <= self.most

    def margin(self, value: float) -> float:
        """By which factor a figure is better than it must be; below 1 if it is not."""
        return min(value / max(self.least, 1e-9), self.most / max(value, 1e-9))

    def __str__(self) -> str:
        if self.least > 0 and self.most < float("inf"):
            return f"{self.least:g}–{self.most:g}"
        return f"≥ {self.least:g}" if self.least > 0 else f"≤ {self.most:g}"


TARGETS = {
    "stream_ratio_20": Target(30, aim=50),
    "stream_ratio_32": Target(40, aim=66),
    "stream_ratio_128": Target(90, aim=150),
    "candidates_ratio_sparse": Target(12, aim=19),
    "candidates_ratio_dense": Target(50, aim=94),
    "limit_share": Target(0.8, aim=0.95, name="share of the decode + gather limit, 32 draws"),
    "design_effect": Target(most=1.1, aim=1.0, name="design effect of a batch of 256"),
    "design_effect_unshuffled": Target(5, name="… of unshuffled draws"),
    "memory_over_setting_1gb": Target(0.6, 1.2, name="peak memory over the setting, 1 GB"),
    "memory_over_setting_4gb": Target(0.6, 1.2, name="peak memory over the setting, 4 GB"),
    "resume_seconds": Target(most=10, aim=4, name="seconds from a resume to the first batch"),
}
"""Issue "whole brains at decode speed": the figures that must be reached."""


def table(figures: Figures) -> str:
    """Lay out all figures for the terminal."""
    head = ("", "per CPU-s", "per wall-s", "figure", "must reach", "aim", "")
    rows = [head, *_rates(figures), *_others(figures)]
    return lay_out(rows, last_left=True)


def _rates(figures: Figures) -> Iterator[tuple[str, ...]]:
    for key, name in WAYS.items():
        if f"{key}_per_cpu_second" not in figures:
            continue
        rates = [f"{_of(figures, f'{key}_per_{unit}_second'):.0f}" for unit in ("cpu", "wall")]
        ratio = RATIOS.get(key, "")
        value = f"{_of(figures, ratio):.2f}×" if ratio else ""
        draws = key.replace("stream_", "draws_per_chunk_")
        named = f"{name} ({_of(figures, draws):.0f} reached)" if draws in figures else name
        yield (named, *rates, value, *_told(figures, ratio))
    limit = _of(figures, "limit_per_cpu_second")
    yield ("limit: to decode and gather, 32 draws", f"{limit:.0f}", *("",) * 5)
    for key, name in FORMS.items():
        if f"{key}_per_cpu_second" in figures:
            reached = _of(figures, f"{key}_draws_per_chunk")
            speed = f"{_of(figures, f'{key}_per_cpu_second'):.0f}"
            yield (f"stream, {name} ({reached:.0f} reached)", speed, *("",) * 5)


def _others(figures: Figures) -> Iterator[tuple[str, ...]]:
    for key, target in TARGETS.items():
        if target.name:
            error = figures.get(f"{key}_error")
            value = f"{_of(figures, key):.2f}" + (f" ± {error:.2f}" if error is not None else "")
            yield (target.name, "", "", value, *_told(figures, key))


def _told(figures: Figures, key: str) -> tuple[str, str, str]:
    target = TARGETS.get(key)
    if target is None:
        return "", "", ""
    aim = "" if target.aim is None else f"{target.aim:g}"
    return str(target), aim, "✓" if target.met(_of(figures, key)) else "✗ missed"


def _of(figures: Figures, key: str) -> float:
    return float(figures[key])


def findings(figures: Figures) -> Iterator[str]:
    """Say what was found beside, a sentence each."""
    cost = {key: 1 / _of(figures, f"{key}_over_plain") for key in FORMS}
    chunks, memory = (_of(figures, f"resume_{of}") for of in ("live_chunks", "memory_bytes"))
    before, seconds = _of(figures, "memory_before_1gb"), _of(figures, "resume_pool_seconds")
    yield (
        f"A larger canvas of {by(CANVAS)} voxels, {math.prod(CANVAS) / math.prod(CUBOID):.2f} "
        f"times a cuboid, costs {cost['canvas']:.2f} times the processor time."
    )
    yield f"One channel alone costs {cost['one_channel']:.2f} of what two do."
    yield (
        f"From shards with inner chunks of {by(INNER_CHUNKS)} it costs {cost['sharded']:.2f} times "
        "as much, at as many draws for as many decoded voxels."
    )
    yield f"From TIFF planes that are not compressed, it costs {cost['tiff']:.2f} times as much."
    yield (
        f"The pool of the resume (from {chunks:.0f} decoded chunks, in {memory / 2**30:.1f} GB) "
        f"was complete after {seconds:.1f} s."
    )
    yield f"Before it has a stream, a process takes {before:.2f} of 1 GB already."


_GREY, _BLUE, _AMBER, _RED = "0.7", "#3aa0c9", "#f2b134", "#b3372f"


def plot(figures: Figures) -> Figure:
    """Draw the rates, and how far each figure is from what it must reach."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    rates, targets = figure.subplots(1, 2, width_ratios=(1.2, 1))
    _plot_rates(rates, figures)
    _plot_targets(targets, figures)
    shape, chunks = figures["shape"], figures["chunks"]
    figure.suptitle(
        f"Cuboids of 20 × 50 × 50 voxels out of {shape}, {figures['channels']} channel(s), "
        f"chunks of {chunks}; {figures['threads']} threads",
        fontsize=11,
    )
    return figure


def _plot_rates(axes: Axes, figures: Figures) -> None:
    names = {**WAYS, "limit": "limit of 32 draws: decode, gather"}
    names |= {key: f"stream, {name}" for key, name in FORMS.items()}
    keys = [key for key in names if f"{key}_per_cpu_second" in figures]
    for place, key in enumerate(keys):
        rate = _of(figures, f"{key}_per_cpu_second")
        if key.startswith("candidates"):
            colour = _AMBER
        else:
            colour = _BLUE if key.startswith("stream") or key in FORMS else _GREY
        axes.barh(place, rate, color=colour)
        ratio = f"   {_of(figures, RATIOS[key]):.1f}×" if key in RATIOS else ""
        axes.text(rate * 1.08, place, f"{rate:,.0f}{ratio}", va="center", fontsize=8)
    top = max(_of(figures, f"{key}_per_cpu_second") for key in keys)
    axes.set(xscale="log", xlim=(10, top * 5), xlabel="cuboids per second of processor time")
    axes.set_yticks(range(len(keys)), [names[key] for key in keys])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("how fast (× zarr-python, one by one)", fontsize=10)


def _plot_targets(axes: Axes, figures: Figures) -> None:
    names = {ratio: f"{WAYS[key]}, ×" for key, ratio in RATIOS.items()}
    labels = []
    for place, (key, target) in enumerate(TARGETS.items()):
        value = _of(figures, key)
        margin, colour = target.margin(value), _BLUE if target.met(value) else _RED
        axes.plot([1, margin], [place, place], color=colour, lw=2.5)
        axes.plot(margin, place, "o", color=colour)
        if target.aim is not None:
            axes.plot(target.margin(target.aim), place, "D", mfc="none", mec="0.4", ms=6)
        labels.append(f"{target.name or names[key]}\n{value:.3g}, must be {target}")
    axes.axvline(1, color="k", lw=1)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set(xscale="log", xlabel="times better than it must be (◇ the aim)")
    low, high = axes.get_xlim()
    low, high = min(low, 0.45), max(high, 3)
    axes.set_xlim(low, high)
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10) if low <= t <= high]
    axes.set_xticks(ticks, [f"{t:g}×" for t in ticks])
    axes.minorticks_off()
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("what must be reached", fontsize=10)
