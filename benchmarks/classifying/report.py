"""The figures of the classification benchmark: what each must reach, tables, sentences, a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean

from matplotlib.figure import Figure

from benchmarks.classifying.config import DEFAULT_SIZE
from benchmarks.classifying.processes import Usage
from benchmarks.classifying.quality import Scored
from benchmarks.output import Figures, lay_out
from benchmarks.report import Target

Speeds = Mapping[str, tuple[int, Usage]]
"""Candidates, and what they took, by the key of a way."""

SHARED = ("crop", "simulated")
EQUAL = ("torch", "onnx", "keras")  # to the exact network to 1e-4, as their export has compared
AT_MOST_LOST = 0.002  # of average precision, to the fastest way
_DEFAULT = f"cubeclf.{DEFAULT_SIZE}.fast"
_RESNET50 = "cellfinder.resnet50.untrained"


def targets(figures: Figures) -> dict[str, Target]:
    """What the figures must reach on such a machine."""
    least = 8.0 if "bf16" in str(figures["cpu_units"]) else 4.5
    return {
        "classify_over_cellfinder": Target(least, aim=20),
        "keras_over_resnet50": Target(3, aim=6),
        "growth_200k_over_20k": Target(most=10.5, aim=10),
        "memory_200k_over_20k": Target(most=1.2, aim=1),
    }


def summarise(speeds: Speeds, scored: Sequence[Scored]) -> Figures:
    """Work out all figures.

    Returns
    -------
    dict
        ``KEY.seconds`` and the like for each way; ``SIZE.FORM.average_precision``, a mean over
        blocks, the same ``.BLOCK`` and ``SIZE.FORM.ap_less_share``; ``SIZE.lost``, the most of
        average precision that a block loses to the fastest way; and the ratios of `targets`, of
        the brain where ours does worse.
    """
    figures: Figures = {}
    for key, (n, usage) in speeds.items():
        figures |= {
            f"{key}.candidates": n,
            f"{key}.seconds": usage.seconds,
            f"{key}.per_second": n / usage.seconds,
            f"{key}.cpu_seconds": usage.cpu_seconds,
            f"{key}.peak_gb": usage.peak_bytes / 1e9,
        }
    precision = {(s.size, s.form, s.block): s.average_precision for s in scored}
    for size, form in dict.fromkeys((s.size, s.form) for s in scored):
        own = [s for s in scored if (s.size, s.form) == (size, form)]
        key = f"{size}.{form}"
        figures[f"{key}.average_precision"] = mean(s.average_precision for s in own)
        figures[f"{key}.ap_less_share"] = mean(s.average_precision - s.share for s in own)
        figures |= {f"{key}.average_precision.{s.block}": s.average_precision for s in own}
        exact = [precision.get((size, "exact", s.block)) for s in own]
        lost = [e - s.average_precision for e, s in zip(exact, own, strict=True) if e is not None]
        if lost:
            figures[f"{key}.lost"] = max(lost)
    return figures | _ratios(figures)


def _ratios(figures: Figures) -> Figures:
    ratios: Figures = {}
    for key, way in (
        ("classify_over_cellfinder", _DEFAULT),
        ("classify_over_cellfinder_two_channels", f"cubeclf.{DEFAULT_SIZE}, 2 channels.fast"),
        ("keras_over_resnet50", f"cellfinder.{DEFAULT_SIZE}.keras"),
    ):
        found = {
            name: _of(figures, f"{name}.{_RESNET50}.seconds")
            / _of(figures, f"{name}.{way}.seconds")
            for name in SHARED
            if f"{name}.{_RESNET50}.seconds" in figures and f"{name}.{way}.seconds" in figures
        }
        ratios |= {f"{key}.{name}": ratio for name, ratio in found.items()}
        if found:
            ratios[key] = min(found.values())
    few, plenty = (f"{name}.{_DEFAULT}" for name in _tissues(figures))
    for key, what in (("growth", "seconds"), ("memory", "peak_gb")):
        ratio = _of(figures, f"{plenty}.{what}") / _of(figures, f"{few}.{what}")
        ratios[f"{key}_200k_over_20k"] = ratio
    return ratios


def _tissues(figures: Figures) -> list[str]:
    """Names of the brains for ours alone, fewer candidates first."""
    end = f".{_DEFAULT}.candidates"
    names = [k.removesuffix(end) for k in figures if k.startswith("tissue ") and k.endswith(end)]
    return sorted(names, key=lambda name: _of(figures, name + end))


def tables(figures: Figures) -> str:
    """Lay out all figures for the terminal."""
    head = ("", "candidates", "per s", "s", "CPU s", "GB", "AP", "lost")
    rows = [head]
    for key in [k.removesuffix(".seconds") for k in figures if k.endswith(".seconds")]:
        classifier = key.split(".", 2)[2]
        name = key.replace(".", ", ", 2).replace(".", ", ")
        rows.append(
            (
                name,
                f"{_of(figures, f'{key}.candidates'):,.0f}",
                f"{_of(figures, f'{key}.per_second'):,.0f}",
                f"{_of(figures, f'{key}.seconds'):.1f}",
                f"{_of(figures, f'{key}.cpu_seconds'):.1f}",
                f"{_of(figures, f'{key}.peak_gb'):.2f}",
                _precision(figures, classifier),
                _shown(figures, f"{classifier}.lost", "{:+.4f}"),
            )
        )
    must = [("", "figure", "must reach", "aim", "")]
    for key, target in targets(figures).items():
        if key in figures:
            value = _of(figures, key)
            met = "" if target.met(value) else "MISSED"
            must.append((key, f"{value:.2f}×", str(target), f"{target.aim:g}", met))
    return "\n\n".join((lay_out(rows), lay_out(must, last_left=True)))


def findings(figures: Figures) -> Iterator[str]:
    """Say what the processor has, and what speed costs and the default reaches."""
    yield f"The processor has {figures['cpu_units']}."
    if figures["pretrained"] == "True":
        yield f"{DEFAULT_SIZE} has a pretrained backbone, all other sizes random weights."
    else:
        yield "All backbones have random weights: the folder has no pretraining."
    if two := figures.get("classify_over_cellfinder_two_channels"):
        yield f"With two channels, as cellfinder's, {float(two):.2f} times as fast as cellfinder."
    lost = {k: v for k, v in figures.items() if k.endswith(".fast.lost")}
    if lost:
        most = max(map(float, lost.values()))
        bound = "less than 0.002, as it must" if most < AT_MOST_LOST else "NOT less than 0.002"
        yield f"The fastest way loses at most {most:+.4f} of average precision on a block: {bound}."
    if "resnet18.ap_less_share" in figures:
        own, bar = (
            _of(figures, f"{name}.ap_less_share") for name in (f"{DEFAULT_SIZE}.fast", "resnet18")
        )
        yield (
            f"Average precision less the share of cells: default {own:.3f}, cellfinder's ResNet-18 "
            f"trained on the same labels {bar:.3f}{'' if own >= bar else ': BELOW'}."
        )


def met(figures: Figures) -> bool:
    """Whether everything is reached that was measured."""
    reached = [t.met(_of(figures, k)) for k, t in targets(figures).items() if k in figures]
    lost = [float(v) < AT_MOST_LOST for k, v in figures.items() if k.endswith(".fast.lost")]
    bar = float(figures.get("resnet18.ap_less_share", float("-inf")))
    own = float(figures.get(f"{DEFAULT_SIZE}.fast.ap_less_share", float("inf")))
    return all(reached) and all(lost) and own >= bar


def _of(figures: Figures, key: str) -> float:
    return float(figures[key])


def _precision(figures: Figures, classifier: str) -> str:
    """Show what a classifier reaches; with a ~ where that is what it was exported from."""
    own = _shown(figures, f"{classifier}.average_precision", "{:.4f}")
    size, _, form = classifier.rpartition(".")
    if own or form not in EQUAL:
        return own
    return _shown(figures, f"{size}.exact.average_precision", "~{:.4f}")


def _shown(figures: Figures, key: str, form: str) -> str:
    return form.format(_of(figures, key)) if key in figures else ""


def plot(figures: Figures) -> Figure:
    """Draw candidates a second of each whole command, by what classifies."""
    keys = [k.removesuffix(".per_second") for k in figures if k.endswith(".per_second")]
    figure = Figure(figsize=(9, 1.2 + 0.28 * len(keys)), layout="constrained")
    axes = figure.subplots()
    rates = [_of(figures, f"{key}.per_second") for key in keys]
    colours = ["0.75" if ".cellfinder." in key else "#3aa0c9" for key in keys]
    axes.barh(range(len(keys)), rates, color=colours, height=0.7)
    for i, (key, rate) in enumerate(zip(keys, rates, strict=True)):
        precision = figures.get(f"{key.split('.', 2)[2]}.average_precision")
        told = f"  {rate:,.0f}" + (f", AP {float(precision):.3f}" if precision else "")
        axes.text(rate, i, told, va="center", fontsize=8)
    axes.set_yticks(range(len(keys)), [key.replace(".", ", ") for key in keys], fontsize=8)
    axes.set(xscale="log", xlabel="candidates a second, whole command")
    axes.set_xlim(right=6 * max(rates))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    return figure
