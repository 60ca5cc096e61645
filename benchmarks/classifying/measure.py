"""All measurements of ``python -m benchmarks.classification``, in turn."""

from __future__ import annotations

import hashlib
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.classifying.brains import Subject, crop, many, simulated
from benchmarks.classifying.classifiers import Backbones, can_read, exported, write_random
from benchmarks.classifying.config import DEFAULT_SIZE, ClassificationConfig, Effort
from benchmarks.classifying.processes import Usage, measured
from benchmarks.classifying.quality import Quality, Scored
from benchmarks.classifying.report import Speeds, findings, plot, summarise, tables
from benchmarks.classifying.ways import Files, Way, ways
from benchmarks.learning.blocks import count_opening, data_folder
from benchmarks.learning.config import LABELLED
from benchmarks.output import Figures, machine, working_folder, write_files
from cubeclf_core.console import say
from cubeclf_core.errors import RunFailed, require
from cubeclf_core.fast import cpu_units

PACKAGES = ("torch", "numpy", "keras", "cellfinder", "onnxruntime", "timm", "cubeclf")


def measure(config: ClassificationConfig, effort: Effort) -> Figures:
    """Make what is needed, measure, print the tables, and write the plot and the JSON file.

    Raises
    ------
    InputError
        If the real data is not there, or something unknown is asked for.
    RunFailed
        If a command fails.
    """
    sizes, formats = config.sizes or effort.sizes, config.formats or effort.formats
    _check(config, sizes, formats)
    formats = tuple(form for form in formats if can_read(form))
    compared = config.cellfinder and effort.real
    with working_folder(config.folder) as given:
        folder = given.resolve()
        kept = folder / "classification"
        kept.mkdir(parents=True, exist_ok=True)
        backbones = Backbones(folder)
        shared, alone = _subjects(kept, effort)
        quality = _quality(kept, backbones) if effort.real else None
        files, scored = _classifiers(sizes, formats, quality, kept, backbones)
        two = backbones.make(DEFAULT_SIZE, channels=2)
        two_channels = write_random(kept / "nano-2-channels.safetensors", two)
        resnet50 = _resnet50(kept) if compared else None
        speeds = _run(
            list(ways(shared, alone, files, two_channels, resnet50)),
            kept / "runs",
            config.rounds or effort.rounds,
        )
        figures: Figures = {
            **machine(PACKAGES),
            "cpu_units": " ".join(cpu_units()) or "none",
            "pretrained": str(backbones.pretrained),
            **summarise(speeds, scored),
        }
        if compared and quality is not None:
            figures["resnet18.ap_less_share"] = quality.resnet18()
    print(tables(figures), "", *findings(figures), sep="\n", flush=True)
    plotted = config.plot or (config.json or Path("classification.json")).with_suffix(".png")
    write_files(figures, plot(figures), json_file=config.json, plot=plotted)
    return figures


def _check(config: ClassificationConfig, sizes: Sequence[str], formats: Sequence[str]) -> None:
    require(DEFAULT_SIZE in sizes, "--sizes", " ".join(sizes), f"{DEFAULT_SIZE} among them")
    require("fast" in formats, "--formats", " ".join(formats), "fast among them")
    calibrated = not (config.quick and "int8" in formats)
    require(calibrated, "--formats int8 with --quick", "given", "one of them: int8 needs real data")
    there = config.quick or not config.cellfinder or find_spec("cellfinder") is not None
    require(there, "cellfinder", "not installed", "it, or --no-cellfinder")
    require(config.rounds is None or config.rounds > 0, "--rounds", config.rounds, "at least 1")


def _subjects(kept: Path, effort: Effort) -> tuple[list[Subject], list[Subject]]:
    shared = [simulated(kept, effort)]
    if effort.real:
        shared.insert(0, crop(data_folder(), kept, effort.candidates))
    return shared, [many(kept, n, shape) for n, shape in effort.many]


def _quality(kept: Path, backbones: Backbones) -> Quality:
    folder = kept / f"classifiers-{_state()}"
    folder.mkdir(exist_ok=True)
    count_opening(folder.parents[1], LABELLED, ["classification"])
    return Quality(data_folder(), folder, backbones)


def _classifiers(
    sizes: Sequence[str],
    formats: Sequence[str],
    quality: Quality | None,
    kept: Path,
    backbones: Backbones,
) -> tuple[Files, list[Scored]]:
    """Files to load by size and format, and what each reaches on real blocks."""
    if quality is None:
        made = {s: write_random(kept / f"{s}.safetensors", backbones.make(s)) for s in sizes}
        return {(s, f): exported(file, f, {}) for s, file in made.items() for f in formats}, []
    files, scored = {}, []
    for size in sizes:
        fitted = quality.files(size)[LABELLED[0]]
        for form in formats:
            try:
                files[size, form] = exported(fitted, form, quality.brains_files)
                # Others are equal to what is exact, which the export itself has made sure of.
                if size == DEFAULT_SIZE or form in ("fast", "exact", "int8"):
                    scored += list(quality.score(size, form))
            except RunFailed as error:  # of int8, where too much is lost
                files.pop((size, form), None)
                say(f"no {form} of {size}: {error}")
    return files, scored


def _state() -> str:
    """Name what results depend on beside the networks: our source, torch, and the processor."""
    digest = hashlib.sha256(f"{torch.__version__} {cpu_units()}".encode())
    root = Path(__file__).parents[2]
    for package in ("cubeclf_core", "finetune"):
        for file in sorted((root / package).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _resnet50(kept: Path) -> Path:
    """Make cellfinder's network, anew each time: its files are in memory then, as ours are."""
    file = kept / "resnet50.keras"
    say("making cellfinder's ResNet-50")
    words = [sys.executable, "-m", "benchmarks.classifying.by_cellfinder"]
    measured([*words, "--make-resnet50", str(file)], kept / "resnet50.log")
    return file


def _run(every: Sequence[Way], folder: Path, rounds: int) -> Speeds:
    """Run everything once a round, one after the other, and take medians."""
    found: dict[str, list[Usage]] = defaultdict(list)
    for attempt in range(rounds):
        for way in every:
            usage = way.run(folder, attempt)
            found[way.key].append(usage)
            per_second = way.subject.n / usage.seconds
            say(f"{way.key}: {usage.seconds:.1f} s, {per_second:.0f} candidates/s")
    return {
        way.key: (
            way.subject.n,
            Usage(
                statistics.median(u.seconds for u in found[way.key]),
                statistics.median(u.cpu_seconds for u in found[way.key]),
                round(statistics.median(u.peak_bytes for u in found[way.key])),
            ),
        )
        for way in every
    }
