"""The figures of the pretraining benchmark: tables, sentences, a plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.learning.recipes import RECIPES
from benchmarks.output import Figures, lay_out

UNTRAINED = ("untrained", "untrained_pooled")
"""The network with the projection, and without; the better of the two is the bar."""
BASELINES = (*UNTRAINED, "pca", "forest", "contrast", "density")
PROTOCOLS = {
    "own": "own brain: {labels} labels of one half, tested on the other",
    "transfer": "transfer: labels of other blocks, to one that the backbone has not seen",
}
_BESIDE = {
    "own k-NN": "own_knn.{}.auc",
    "transfer k-NN": "transfer_knn.{}.auc",
    "own fine-tuned, {finetune_draws} of {draws} draws": "own_finetuned.{}.auc",
    "own AP − share": "own.{}.ap_less_prevalence",
    "transfer AP − share": "transfer.{}.ap_less_prevalence",
}


def contenders(figures: Figures) -> list[str]:
    """Names in the order in which they are shown: objectives first."""
    return [name for name in (*RECIPES, *BASELINES) if f"own.{name}.auc" in figures]


def tables(figures: Figures, blocks: Sequence[str]) -> str:
    """Lay out all figures for the terminal."""
    parts = []
    for row, title in PROTOCOLS.items():
        head = ("AUC", "mean", "over seeds", *blocks)
        rows = [
            (
                name,
                _shown(figures, f"{row}.{name}.auc"),
                _range(figures, f"{row}.{name}.auc"),
                *(_shown(figures, f"{row}.{name}.{block}.auc") for block in blocks),
            )
            for name in contenders(figures)
        ]
        parts += [title.format(**figures), lay_out([head, *rows]), ""]
    titles = (title.format(**figures) for title in _BESIDE)
    head = ("beside", *titles, "min a run", "cuboids")
    rows = [
        (
            name,
            *(_shown(figures, key.format(name)) for key in _BESIDE.values()),
            f"{_of(figures, f'{name}.seconds') / 60:.1f}" if name in RECIPES else "",
            f"{_of(figures, f'{name}.cuboids'):,.0f}" if name in RECIPES else "",
        )
        for name in contenders(figures)
    ]
    return "\n".join([*parts, lay_out([head, *rows])])


def default_learns(figures: Figures) -> bool:
    """Whether the default objective's worst seed is above what has learned nothing, or linearly."""
    name = figures["default"]
    return all(
        _of(figures, f"{row}.{name}.auc.min") > _of(figures, f"{row}.{other}.auc.max")
        for row in PROTOCOLS
        for other in (*UNTRAINED, "pca")
    )


def findings(figures: Figures) -> Iterator[str]:
    """Say of each objective what its worst seed is above, and what a training step costs."""
    names = contenders(figures)
    baselines = [name for name in names if name in BASELINES]
    for row in PROTOCOLS:
        for name in (name for name in names if name in RECIPES):
            worst = _of(figures, f"{row}.{name}.auc.min")
            bars = {other: _of(figures, f"{row}.{other}.auc.max") for other in baselines}
            below = [f"{other} ({bar:.3f})" for other, bar in bars.items() if worst <= bar]
            bar = max(bars[other] for other in UNTRAINED)
            against = "above" if worst > bar else "NOT above"
            rest = f"not above {', '.join(below)}" if below else "above every baseline"
            yield (
                f"{name}, {row}: worst seed {worst:.3f}, {against} untrained's best ({bar:.3f}); "
                f"{rest}"
            )
    yield (
        f"A step of masked autoencoding on streamed data is {_of(figures, 'step_share'):.3f} times "
        "as fast as on one batch in memory (must reach 0.95)."
    )
    yield (
        f"Skipping masked tokens makes it {_of(figures, 'mae_saving'):.2f} times as fast; "
        f"augmentation is {_of(figures, 'augmentation_share'):.0%} of it."
    )


def _of(figures: Figures, key: str) -> float:
    return float(figures[key])


def _shown(figures: Figures, key: str) -> str:
    return f"{_of(figures, key):.3f}" if key in figures else ""


def _range(figures: Figures, key: str) -> str:
    low, high = _of(figures, f"{key}.min"), _of(figures, f"{key}.max")
    return f"{low:.3f}–{high:.3f}" if low < high else ""


_BLUE, _GREY, _DARK, _RED = "#3aa0c9", "0.75", "0.25", "#b3372f"
_MARKS = ("o", "s", "D")


def plot(figures: Figures, blocks: Sequence[str]) -> Figure:
    """Draw a bar for each contender and protocol, the range over its seeds, and its blocks."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    for axes, (row, title) in zip(
        figure.subplots(1, 2, sharey=True), PROTOCOLS.items(), strict=True
    ):
        _bars(axes, figures, row, blocks)
        axes.set_title(title.format(**figures), fontsize=10)
    figure.axes[0].set_yticks(range(len(contenders(figures))), contenders(figures))
    figure.axes[0].invert_yaxis()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    figure.suptitle(
        "Telling cells from the rest with frozen features and a linear head", fontsize=11
    )
    return figure


def _bars(axes: Axes, figures: Figures, row: str, blocks: Sequence[str]) -> None:
    names = contenders(figures)
    places = np.arange(len(names))
    means, low, high = (
        np.array([_of(figures, f"{row}.{name}.auc{end}") for name in names])
        for end in ("", ".min", ".max")
    )
    colours = [_BLUE if name in RECIPES else _GREY for name in names]
    axes.barh(places, means, color=colours, height=0.62, zorder=1)
    axes.errorbar(
        means, places, xerr=(means - low, high - means), fmt="none", ecolor="k", lw=1.5, capsize=4,
        label="worst and best seed", zorder=3,
    )  # fmt: skip
    for block, mark in zip(blocks, _MARKS, strict=False):
        at = [_of(figures, f"{row}.{name}.{block}.auc") for name in names]
        axes.plot(
            at, places, mark, label=f"block {block}", mfc="w", mec=_DARK, ms=4.5, mew=0.9, zorder=2
        )
    tuned = {i: f"{row}_finetuned.{name}.auc" for i, name in enumerate(names)}
    found = {i: _of(figures, key) for i, key in tuned.items() if key in figures}
    if found:
        at = list(found.values())
        axes.plot(at, list(found), "*", color=_RED, ms=9, label="fine-tuned", zorder=4)
    bar = max(high[names.index(name)] for name in UNTRAINED)
    axes.axvline(bar, color=_DARK, lw=0.8, ls="--", label="untrained, best seed", zorder=0)
    for place, value in enumerate(means):
        axes.text(1.005, place, f"{value:.3f}", va="center", fontsize=8)
    axes.set(xlim=(0.5, 1.0), xlabel="AUC")
    axes.spines[["top", "right"]].set_visible(False)
