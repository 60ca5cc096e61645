"""Write docs/benchmarks.md from what the benchmarks have measured: `benchmarks/results/*.json`.

    python -m benchmarks.page

Nothing is measured here; a part whose JSON is missing says so. Copy a benchmark's --json there to
bring the page up to date, and a comparison's table.md, results.csv, differences.csv and pictures
(learning_curves.png, group_curves.png, cost.png) into `benchmarks/results/comparison_NAME`, of
which docs/comparisons/NAME.md is made. What there is to say of it goes into `about.md` there, under
a title, and into `summary.md`, which comes first. The results of c-Fos are brought together, in a
table for each measure and a picture that is drawn beside these files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.apart import apart
from benchmarks.candidates import SPARSE
from benchmarks.glance import gather, picture, tables
from benchmarks.learning import report as learning
from benchmarks.output import Figures
from benchmarks.report import RATIOS, TARGETS, WAYS, findings
from cubeclf_core.console import console
from cubeclf_core.errors import InputError

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
PAGE = "benchmarks.md"
_COMPARISONS = "comparisons"
_BRAIN_VOXELS = 1e11
_CUBOID_VOXELS = 20 * 50 * 50
_BYTES = 2 * 2  # of a count, of two channels

_GLANCE = "glance.png"
_PICTURES = {
    "learning_curves.png": "Learning curves",
    "group_curves.png": "Of each group",
    "cost.png": "Quality against cost",
}

# Of the worked estimate, beside what was measured.
BRAINS, CANDIDATES, NODES, CORES = 100, 500_000, 10, 16
_SIZE = "nano"  # the default's
_LARGEST = f"tissue 200000.cubeclf.{_SIZE}.fast"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; give the exit code."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(argv)
    try:
        texts = pages(RESULTS)
    except (OSError, InputError) as error:
        console.print(f"error: {error}", markup=False)
        return 2
    for old in (DOCS / _COMPARISONS).glob("*.md"):
        old.unlink()
    for name, text in texts.items():
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(text, encoding="utf-8")
    if rows := gather(RESULTS):
        picture(rows).savefig(RESULTS / _GLANCE, dpi=120, metadata={"Software": None})
    print(f"page: {DOCS / PAGE}")
    return 0


def pages(results: Path) -> dict[str, str]:
    """Write the page, and one for each comparison, by where they are in docs."""
    compared = {
        f"{_COMPARISONS}/{name}.md": _comparison(folder, name)
        for folder in sorted(results.glob("comparison_*"))
        for name in [folder.name.removeprefix("comparison_")]
    }
    return {PAGE: _page(results, compared), **compared}


def _page(results: Path, compared: Mapping[str, str]) -> str:
    """Put the parts together: what has been measured, and what the .md beside it says of it."""
    parts = [
        "# What it costs, and what it is worth",
        "Made by `make benchmarks` from `benchmarks/results`. Times on CPUs are of shared "
        "machines: ratios count, not seconds. Each part names its command.",
    ]
    parts.append(_told(results / "summary.md"))
    if rows := gather(results):
        shown = f"![AUC over labels, block by block](../benchmarks/results/{_GLANCE})"
        parts += ["## Label for label: c-Fos at a glance", *tables(rows), shown]
    titles = {name: text.partition("\n")[0].removeprefix("# ") for name, text in compared.items()}
    if titles:
        parts += ["## Label for label: each comparison", "Tables, pictures, and what they say:"]
        parts.append("\n".join(f"- [{title}]({name})" for name, title in titles.items()))
    parts.append(_told(results / "words.md"))
    for name, title, command, write in PARTS:
        parts += [f"## {title}", f"`{command}`"]
        file = results / f"{name}.json"
        if file.exists():
            figures: Figures = json.loads(file.read_text(encoding="utf-8"))
            parts += [_machine(figures), *write(figures)]
            if (about := results / f"{name}.md").exists():
                parts.append(_told(about))
        else:
            parts.append("Not measured yet.")
    parts += ["## A hundred brains", *_estimate(results)]
    return "\n\n".join(parts) + "\n"


def _told(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip()


def _comparison(folder: Path, name: str) -> str:
    title, _, about = _told(folder / "about.md").partition("\n")
    if not title.startswith("# "):
        raise InputError(f"{folder / 'about.md'} begins with {title!r}, expected a title, '# …'")
    parts = [
        title,
        f"`python -m benchmarks.comparison {name} --folder F`; its words stand in "
        f"[benchmarks](../{PAGE}#words-of-the-comparisons).",
        about.strip(),
        _told(folder / "table.md"),
        *apart(folder / "differences.csv", name),
    ]
    for file, what in _PICTURES.items():
        parts.append(f"![{what}](../../benchmarks/results/{folder.name}/{file})")
    return "\n\n".join(parts) + "\n"


def _pretraining(figures: Figures) -> list[str]:
    rows = [
        ["AUC", "own brain", "transfer", "own, k-NN", "own, fine-tuned", "min a run", "cuboids"]
    ]
    for key in _keys(figures, "own.", ".auc"):
        name = key.removeprefix("own.")
        if "." in name:  # of one block
            continue
        seconds, cuboids = figures.get(f"{name}.seconds"), figures.get(f"{name}.cuboids")
        rows.append(
            [
                f"**{name}**, the default" if name == figures["default"] else name,
                *(_over_seeds(figures, f"{row}.{name}.auc") for row in ("own", "transfer")),
                *(_over_seeds(figures, f"own_{way}.{name}.auc") for way in ("knn", "finetuned")),
                "" if seconds is None else f"{float(seconds) / 60:.1f}",
                "" if cuboids is None else f"{cuboids:,.0f}",
            ]
        )
    return [
        _table(rows),
        "\n".join(f"- {found}" for found in learning.findings(figures)),
    ]


def _over_seeds(figures: Figures, key: str) -> str:
    """Write a mean, and the lowest and the highest seed where there are several."""
    if key not in figures:
        return ""
    mean, low, high = (float(figures[f"{key}{end}"]) for end in ("", ".min", ".max"))
    return f"{mean:.3f} ({low:.3f}–{high:.3f})" if high > low else f"{mean:.3f}"


def gpu_part(figures: Figures) -> list[str]:
    """What `benchmarks.gpu` has measured, as Markdown."""
    rows = [["step", "batch", "cuboids/s", "of bf16 peak", "GB", "waiting", "epoch of 10¹¹ voxels"]]
    for key in _keys(figures, "train.", ".cuboids_per_s"):
        _, method, size, mode = key.split(".")
        rate = float(figures[f"{key}.cuboids_per_s"])
        peak = figures.get(f"{key}.share_of_peak")
        rows.append(
            [
                f"{method} {size}, {mode}",
                f"{figures[f'{key}.batch_size']:.0f}",
                f"{rate:,.0f}",
                "" if peak is None else f"{peak:.0%}",
                f"{figures[f'{key}.memory_gb']:.1f}",
                f"{figures[f'{key}.wait_share']:.1%}",
                _minutes(_BRAIN_VOXELS / _CUBOID_VOXELS / rate),
            ]
        )
    classifiers = [["classifier", "cuboids/s", "GB", "500,000 candidates"]]
    for key in _keys(figures, "infer.", ".cuboids_per_s"):
        rate = float(figures[f"{key}.cuboids_per_s"])
        memory = f"{figures[f'{key}.memory_gb']:.1f}"
        size = key.removeprefix("infer.")
        classifiers.append([size, f"{rate:,.0f}", memory, f"{CANDIDATES / rate:.0f} s"])
    return [
        f"{figures['card']}: products of matrices of 8192² in bfloat16 reach "
        f"{figures['products_tflops']:.0f} TFLOP/s, the data sheet's peak is "
        f"{figures.get('peak_tflops', 'not known')}. An epoch is as many cuboids as fill the "
        "brain at 5×1×1 µm.",
        _table(rows),
        "Networks alone, counts on the card:",
        _table(classifiers),
    ]


def _classification(figures: Figures) -> list[str]:
    rows = [["3,000 candidates, a whole command", "candidates/s", "CPU-s", "GB"]]
    for key in _keys(figures, "crop.", ".per_second"):
        rows.append(
            [
                key.removeprefix("crop.").replace(".", " "),
                f"{figures[f'{key}.per_second']:.0f}",
                f"{figures[f'{key}.cpu_seconds']:.0f}",
                f"{figures[f'{key}.peak_gb']:.1f}",
            ]
        )
    brains = ("simulated", "crop")
    ratios = [["how many times as fast", "on a simulated brain", "on a crop of a real one"]]
    for key, what in {
        "classify_over_cellfinder_two_channels": (
            "`cubeclf-classify` than cellfinder with ResNet-50, both with two channels"
        ),
        "classify_over_cellfinder": "… ours of one channel, which reads the signal alone",
        "keras_over_resnet50": "our `.keras`, of one channel, than ResNet-50, both in cellfinder",
    }.items():
        found = [figures.get(f"{key}.{brain}") for brain in brains]
        ratios.append([what, *("" if n is None else f"{float(n):.1f}" for n in found)])
    parts = [_table(ratios), _table(rows)]
    if "growth_200k_over_20k" in figures:
        time, memory = (float(figures[f"{what}_200k_over_20k"]) for what in ("growth", "memory"))
        parts.append(
            f"200,000 candidates take {time:.2f} times the time of 20,000, and {memory:.2f} times "
            "the memory. Candidates of the table are of the crop."
        )
    return parts


def finetuning_part(figures: Figures) -> list[str]:
    """What `benchmarks.finetuning` has measured, as Markdown: each way over the first."""
    ways = _keys(figures, "", ".seconds")
    rows = [["a hundred labels, a whole command", f"time, times {ways[0]}", "GB"]]
    for way in ways:
        ratio = float(figures[f"{way}.seconds"]) / float(figures[f"{ways[0]}.seconds"])
        rows.append([way, f"{ratio:.1f}", f"{figures[f'{way}.peak_gb']:.1f}"])
    return [_table(rows)]


def scaling_part(figures: Figures) -> list[str]:
    """What `benchmarks.scaling` has measured, as Markdown."""
    rows = [["pretraining, nano", "cuboids/s", "first batch after", "GB a process"]]
    for key in _keys(figures, "", ".start_seconds"):
        rows.append(
            [
                key.replace(".", " "),
                f"{figures[f'{key}.cuboids_per_s']:.0f}",
                f"{figures[f'{key}.start_seconds']:.0f} s",
                f"{figures[f'{key}.memory_gb']:.2f}",
            ]
        )
    return [
        _table(rows),
        "How time and memory grow with candidates is a part of `benchmarks.classification`.",
    ]


def _streaming(figures: Figures) -> list[str]:
    rows = [["cuboids of 20 × 50 × 50, per processor time", "times zarr-python", "must reach"]]
    for key, name in WAYS.items():
        if (ratio := RATIOS.get(key, "")) in figures:
            wanted = str(TARGETS[ratio]) if ratio in TARGETS else ""
            rows.append([name, f"{float(figures[ratio]):.1f}", wanted])
    rest = [["", "found", "must reach"]]
    for key, target in TARGETS.items():
        if target.name:
            rest.append([target.name, f"{float(figures[key]):.2f}", str(target)])
    return [_table(rows), _table(rest), " ".join(findings(figures))]


def _estimate(results: Path) -> list[str]:
    """Work out what a hundred brains take: of each candidate, the network, and the way to it.

    A whole brain has a candidate in thirty times as many voxels as the brain that was classified:
    nearly every chunk of it is read, each for few candidates, so that reading grows with voxels.
    What was classified was read, too; that little is counted twice.
    """
    files = [results / f"{name}.json" for name in ("classification", "streaming")]
    if not all(file.exists() for file in files):
        return ["Not measured yet."]
    figures, reading = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    rate = next((float(v) for k, v in figures.items() if _LARGEST in k and "per_second" in k), None)
    if rate is None:
        return ["Not measured yet."]
    classified = rate / float(figures["cpus"])
    sparse = float(reading["candidates_sparse_per_wall_second"]) / float(reading["cpus"])
    sparser = _BRAIN_VOXELS / CANDIDATES / SPARSE
    a_core = 1 / (1 / classified + sparser / sparse)
    hours = BRAINS * CANDIDATES / (a_core * NODES * CORES) / 3600
    units = f" with {figures['cpu_units']}" if figures.get("cpu_units") else ""
    bytes_a_second = BRAINS * _BRAIN_VOXELS * _BYTES / hours / 3600
    return [
        f"Classifying {BRAINS} brains of 10¹¹ voxels and {CANDIDATES:,} candidates each on {NODES} "
        f"nodes of {CORES} cores by a network of size {_SIZE}: **{hours:.1f} hours**, as an order "
        f"of magnitude, if storage gives {bytes_a_second / 1e9:.0f} GB/s; at 2 GB/s reading alone "
        f"takes {BRAINS * _BRAIN_VOXELS * _BYTES / 2e9 / 3600:.1f} hours, less what compression "
        "spares.",
        f"- A core does {a_core:.0f} candidates a second: {classified:.0f} where chunks hold many, "
        f"as measured with 200,000 candidates on {figures['cpus']:.0f} shared cores{units}; and, "
        f"to read signal and background, {sparse / sparser:.0f}, which is {sparse:.0f} as measured "
        f"with a candidate in {SPARSE:,.0f} voxels, over {sparser:.1f}, as such a brain is "
        "sparser.\n"
        "- Nearly all of a brain is read then: both channels are "
        f"{bytes_a_second / 1e9:.0f} GB/s over all nodes, of 16-bit counts before compression. "
        "Where storage gives less, that takes the time.\n"
        "- It assumes that parts are shared out evenly (`cubeclf-classify --cluster`), that time "
        "grows with candidates, as it does from 20,000 to 200,000, and that each core of a node is "
        "as fast as one of those that were measured, with all others at work beside it.\n"
        "- What networks of other sizes take over the first of these figures stands above. "
        "Pretraining and fine-tuning, above too, are done once for all brains, and are not in it.",
    ]


def _machine(figures: Figures) -> str:
    parts = {
        "card": "{}",
        "processor": "{}",
        "cpus": "{:.0f} cores",
        "cpu_units": "{}",
        "torch_version": "torch {}",
    }
    return ", ".join(text.format(figures[k]) for k, text in parts.items() if figures.get(k))


def _keys(figures: Figures, start: str, end: str) -> list[str]:
    return [k.removesuffix(end) for k in figures if k.startswith(start) and k.endswith(end)]


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


Write = Callable[[Figures], list[str]]
PARTS: Sequence[tuple[str, str, str, Write]] = (
    ("streaming", "Streaming", "python -m benchmarks.streaming --quick --json F", _streaming),
    ("pretraining", "Pretraining", "python -m benchmarks.pretraining --json F", _pretraining),
    (
        "pretraining_seeds",
        "Pretraining: the default with three seeds",
        "python -m benchmarks.pretraining --methods simclr --seeds 3 --json F",
        _pretraining,
    ),
    ("gpu", "Training and inference on a GPU", "python -m benchmarks.gpu --json F", gpu_part),
    (
        "finetuning",
        "Fine-tuning",
        "python -m benchmarks.finetuning --json F",
        finetuning_part,
    ),
    (
        "classification",
        "Classification",
        "python -m benchmarks.classification --folder FOLDER --json F",
        _classification,
    ),
    ("scaling", "How it grows", "python -m benchmarks.scaling --json F", scaling_part),
)

if __name__ == "__main__":
    sys.exit(main())
