"""Contenders, budgets of labels and protocols: every cell of the comparison, measured once."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from benchmarks.learning.blocks import SEEN, count_opening, data_folder, open_block, read_block
from benchmarks.learning.config import DEFAULT
from benchmarks.learning.contenders import Blocks, Frozen, Rules, radial_means
from benchmarks.learning.finetuned import Finetuned
from benchmarks.learning.protocols import (
    MEASURES,
    Scorer,
    Task,
    brains_to_learn,
    labels_to_learn,
    make_tasks,
)
from benchmarks.learning.trainings import network_of, settings_of
from benchmarks.output import Figures, lay_out, machine, write_files
from cubeclf_core.backbones import build_backbone, load_backbone
from cubeclf_core.console import say
from cubeclf_core.errors import require
from cubeclf_core.files import replacing
from cubeclf_core.heads import CELL_CLASS
from cubeclf_core.metrics import classification_metrics
from cubeclf_core.networks import Backbone
from cubeclf_core.resnet import ResNet3d, ResNet3dConfig
from cubeclf_core.trained import Classifier
from finetune.examples import Features, keep_features
from finetune.training import fit_head

METHOD = "simclr"
_COPIES = 4
_EPOCHS = 10  # of ten steps at least
_PACKAGES = ("torch", "numpy", "scikit-learn", "timm", "cubeclf")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What the user said; see ``python -m benchmarks.finetuning --help``."""

    folder: Path
    blocks: tuple[str, ...]
    contenders: tuple[str, ...] | None
    own: tuple[int, ...]
    transfer: tuple[int, ...]
    seeds: int
    show: bool
    json: Path | None
    plot: Path


@dataclass(frozen=True)
class Cell:
    """One measurement, and what it took."""

    contender: str
    seed: int
    protocol: str
    budget: int
    block: str
    draw: int
    auc: float
    ap_less_prevalence: float
    seconds: float
    memory_gb: float


Maker = Callable[[str], Backbone]
"""From a key of `SEEN` to a fresh network."""


def run_grid(grid: Grid) -> Figures:
    """Measure what is missing, unless asked not to; print the table, draw, and write the JSON file.

    Raises
    ------
    InputError
        If the real data is not there, or something unknown is asked for.
    """
    names = grid.contenders or tuple(CONTENDERS)
    known = set(names) <= set(CONTENDERS)
    require(known, "--contenders", " ".join(names), f"some of {', '.join(CONTENDERS)}")
    data_folder()  # which says what is missing
    start = time.monotonic()
    opened = count_opening(grid.folder, () if grid.show else grid.blocks, names)
    cells = measured_cells(grid)
    figures: Figures = {**machine(_PACKAGES), "opened_969": opened, **summarise(cells)}
    figures["seconds"] = time.monotonic() - start
    print(table(figures, names, grid), flush=True)
    drawn = plot(figures, names, grid)
    write_files(figures, drawn, json_file=grid.json, plot=grid.plot)
    return figures


def measured_cells(grid: Grid) -> list[Cell]:
    """Measure what is missing, unless asked not to; give all that was asked for."""
    kept, names = grid.folder / "finetuning", grid.contenders or tuple(CONTENDERS)
    if not grid.show:
        kept.mkdir(parents=True, exist_ok=True)
        _measure_all(grid, names)
    return [cell for name in names for cell in _kept(kept, name) if _wanted(cell, grid)]


def _measure_all(grid: Grid, names: Sequence[str]) -> None:
    jobs = [(grid, name, seed) for name in names for seed in range(_seeds(name, grid.seeds))]
    context = multiprocessing.get_context("spawn")  # torch has threads
    with context.Pool(os.cpu_count(), maxtasksperchild=1) as pool:  # peak memory is a process's
        for done in pool.imap_unordered(_measure, jobs):
            say(done)


def _seeds(name: str, asked: int) -> int:
    return 1 if name in ("contrast", "density") else asked


def _kept(folder: Path, name: str) -> Iterator[Cell]:
    for file in sorted(folder.glob(f"{name}-[0-9]*.jsonl")):
        yield from _read(file)


def _read(file: Path) -> Iterator[Cell]:
    """Cells that were measured; the last line is torn where a run was killed."""
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                yield Cell(**json.loads(line))
            except json.JSONDecodeError:
                return


def _wanted(cell: Cell, grid: Grid) -> bool:
    budgets = grid.own if cell.protocol == "own" else grid.transfer
    return cell.budget in budgets and cell.block in grid.blocks and cell.seed < grid.seeds


def _measure(job: tuple[Grid, str, int]) -> str:
    """Let one contender with one seed do all that it has not done yet."""
    grid, name, seed = job
    torch.set_num_threads(1)
    folder = grid.folder / "finetuning"
    file = folder / f"{name}-{seed}.jsonl"
    known = list(_read(file))
    with replacing(file) as whole:  # without a line that was torn
        whole.write_text("".join(_line(cell) for cell in known), encoding="utf-8")
    done = {(c.protocol, c.budget, c.block, c.draw) for c in known}
    data = data_folder()
    network = network_of(settings_of(METHOD, DEFAULT))
    with tempfile.TemporaryDirectory() as own:  # others write files of the same names
        blocks = {b: read_block(open_block(data, b, Path(own)), network, None) for b in grid.blocks}
    score = CONTENDERS[name](grid, blocks, seed)
    n = 0
    for budget, task in _tasks(grid, blocks, seed):
        if (task.protocol, budget, task.block, task.draw) in done:
            continue
        start = time.monotonic()
        scores = score(task)
        seconds = time.monotonic() - start
        found = classification_metrics(blocks[task.block].labels[task.test], scores)
        measured = {key: found[metric] for key, metric in MEASURES.items()}
        cell = Cell(
            contender=name,
            seed=seed,
            protocol=task.protocol,
            budget=budget,
            block=task.block,
            draw=task.draw,
            seconds=seconds,
            memory_gb=_peak_gb(),
            auc=measured["auc"],
            ap_less_prevalence=measured["ap_less_prevalence"],
        )
        with file.open("a", encoding="utf-8") as lines:
            lines.write(_line(cell))
        n += 1
    return f"{name}, seed {seed}: {n} measured, {len(done)} were there"


def _line(cell: Cell) -> str:
    return json.dumps(asdict(cell)) + "\n"


def _peak_gb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 30 if sys.platform == "darwin" else 1 << 20)


def _tasks(grid: Grid, blocks: Blocks, seed: int) -> Iterator[tuple[int, Task]]:
    """All tasks, small budgets first; contenders of one seed get the same draw of labels."""
    for n in sorted(grid.own):
        for task in make_tasks(blocks, labels=n, draws=seed + 1):
            if task.protocol == "own" and task.draw == seed:
                yield n, task
    for n in sorted(grid.transfer, key=lambda n: n or 1 << 30):
        for task in make_tasks(blocks, labels=100, draws=seed + 1, transfer=n or None):
            if task.protocol == "transfer" and task.draw == (seed if n else 0):
                yield n, task


def _rule(which: str, grid: Grid, blocks: Blocks, seed: int) -> Scorer:
    del grid, seed
    rules = Rules(blocks, network_of(settings_of(METHOD, DEFAULT)).voxel_size_um)
    return rules.contrast if which == "contrast" else rules.density


def _forest(grid: Grid, blocks: Blocks, seed: int) -> Scorer:
    del grid
    size = network_of(settings_of(METHOD, DEFAULT)).voxel_size_um
    radial = {name: radial_means(block.cuboids, size) for name, block in blocks.items()}
    return partial(Frozen(blocks, dict.fromkeys(SEEN, radial)).forest, seed=seed)


def _pretrained(grid: Grid, seed: int) -> Maker:
    return lambda seen: load_backbone(str(grid.folder / "runs" / f"{METHOD}-{seen}-{seed}"))[0]


def _untrained(grid: Grid, seed: int) -> Maker:
    del grid
    config = network_of(settings_of(METHOD, DEFAULT))
    return lambda seen: build_backbone(config, seed)


def _resnet18(grid: Grid, seed: int) -> Maker:
    del grid

    def make(seen: str) -> ResNet3d:
        torch.manual_seed(seed)
        return ResNet3d(ResNet3dConfig(depth=18, channels=1))

    return make


def _frozen(make: Callable[[Grid, int], Maker], grid: Grid, blocks: Blocks, seed: int) -> Scorer:
    """A head as `cubeclf-finetune --freeze` fits it; features are computed once."""
    known: dict[tuple[str, str], Features] = {}
    classifiers = {seen: Classifier(make(grid, seed)(seen)) for seen in SEEN}

    def features(seen: str, block: str) -> Features:
        if (seen, block) not in known:
            cuboids = blocks[block].cuboids
            known[seen, block] = keep_features(classifiers[seen], cuboids, copies=_COPIES, seed=0)
        return known[seen, block]

    def score(task: Task) -> npt.NDArray[np.float64]:
        parts = [
            features(task.seen, name).copies[:, torch.from_numpy(index)]
            for name, index in task.learn.items()
        ]
        head, labels = classifiers[task.seen].head, labels_to_learn(task, blocks)
        kept, everything = Features(torch.cat(parts, dim=1)), np.arange(len(labels))
        fit_head(head, kept, labels, brains_to_learn(task), everything, seed)
        tested = features(task.seen, task.block).plain(torch.from_numpy(task.test))
        with torch.no_grad():
            return np.asarray(head(tested).double().softmax(1)[:, CELL_CLASS].numpy(), np.float64)

    return score


def _trained(
    make: Callable[[Grid, int], Maker],
    settings: Mapping[str, Any],
    grid: Grid,
    blocks: Blocks,
    seed: int,
) -> Scorer:
    """A network as `cubeclf-finetune` trains it, for the same number of epochs whatever it is."""
    maker = make(grid, seed)
    return Finetuned(blocks, {seen: partial(maker, seen) for seen in SEEN}, seed=seed, **settings)


_USUAL = {"epochs": _EPOCHS}
_RANDOM = {**_USUAL, "pretrained": False}
CONTENDERS: Mapping[str, Callable[[Grid, Blocks, int], Scorer]] = {
    "frozen": partial(_frozen, _pretrained),
    "lora": partial(_trained, _pretrained, {**_USUAL, "lora_rank": 8}),
    "finetuned": partial(_trained, _pretrained, _USUAL),
    "scratch": partial(_trained, _untrained, _RANDOM),
    "untrained": partial(_frozen, _untrained),
    # A step of it takes as long on two cores as ten of the others: half as many cuboids in each.
    "resnet18": partial(_trained, _resnet18, {**_RANDOM, "batch_size": 16}),
    "forest": _forest,
    "contrast": partial(_rule, "contrast"),
    "density": partial(_rule, "density"),
}


def summarise(cells: Sequence[Cell]) -> Figures:
    """Average over draws, then blocks, then seeds.

    Returns
    -------
    dict
        ``PROTOCOL.BUDGET.NAME.MEASURE``, with ``.min`` and ``.max`` over seeds and the same with
        ``.BLOCK`` after the name; a budget of 0 is all labels. ``NAME.seconds``, the median of a
        training and its test, and ``NAME.memory_gb``, the highest of a process.
    """
    figures: Figures = {}
    draws: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for cell in cells:
        for measure in MEASURES:
            row = f"{cell.protocol}.{cell.budget}"
            value = getattr(cell, measure)
            draws[row, cell.contender, measure, str(cell.seed), cell.block].append(value)
    blocks: dict[tuple[str, ...], list[float]] = defaultdict(list)
    seeds: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for (row, name, measure, seed, block), values in draws.items():
        mean = statistics.mean(values)
        blocks[row, f"{name}.{block}", measure].append(mean)
        seeds[row, name, measure, seed].append(mean)
    for (row, name, measure, _), values in seeds.items():
        blocks[row, name, measure].append(statistics.mean(values))
    for (row, name, measure), values in blocks.items():
        key = f"{row}.{name}.{measure}"
        figures[key] = statistics.mean(values)
        figures |= {f"{key}.min": min(values), f"{key}.max": max(values)}
    for name in dict.fromkeys(cell.contender for cell in cells):
        own = [cell for cell in cells if cell.contender == name]
        figures[f"{name}.seconds"] = statistics.median(cell.seconds for cell in own)
        figures[f"{name}.memory_gb"] = max(cell.memory_gb for cell in own)
    return figures


def _rows(grid: Grid) -> list[str]:
    own = [f"own.{n}" for n in sorted(grid.own)]
    return own + [f"transfer.{n}" for n in sorted(grid.transfer, key=lambda n: n or 1 << 30)]


def table(figures: Figures, names: Sequence[str], grid: Grid) -> str:
    """Lay out AUC and average precision less prevalence for the terminal."""
    parts = []
    for measure, title in (("auc", "AUC"), ("ap_less_prevalence", "AP − share")):
        head = (title, *(row.replace(".0", ".all") for row in _rows(grid)), "s", "GB")
        rows = [head]
        for name in names:
            if f"{name}.seconds" not in figures:
                continue  # nothing of it has been measured
            found = [figures.get(f"{row}.{name}.{measure}") for row in _rows(grid)]
            took = (f"{figures[f'{name}.{what}']:.1f}" for what in ("seconds", "memory_gb"))
            rows.append((name, *(f"{v:.3f}" if v is not None else "" for v in found), *took))
        parts.append(lay_out(rows))
    return "\n\n".join(parts)


def plot(figures: Figures, names: Sequence[str], grid: Grid) -> Figure:
    """Draw AUC over the number of labels, with the range over seeds."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    for axes, protocol in zip(figure.subplots(1, 2, sharey=True), ("own", "transfer"), strict=True):
        rows = [row for row in _rows(grid) if row.startswith(protocol)]
        for name in names:
            keys = [f"{row}.{name}.auc" for row in rows]
            at = [i for i, key in enumerate(keys) if key in figures]
            mean, low, high = (
                np.array([float(figures[keys[i] + end]) for i in at])
                for end in ("", ".min", ".max")
            )
            axes.errorbar(at, mean, yerr=(mean - low, high - mean), marker="o", ms=4, label=name)
        labels = [row.split(".")[1] for row in rows]
        axes.set_xticks(range(len(rows)), ["all" if label == "0" else label for label in labels])
        axes.set(xlabel="labels", title=protocol)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("AUC")
    figure.axes[1].legend(fontsize=8, frameon=False, loc="lower right")
    return figure
