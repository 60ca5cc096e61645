"""The whole job on two simulated brains: pretrain on one, label a little of it, classify the other.

Run it with ``make demo``. A step whose command and output are there already is skipped, so a second
call only prints the table. Steps that do not need each other run side by side.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path("demo")
LABELS = 30
SIZE = "nano"
TRAINED = ("--no-freeze", "--epochs", "8")
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Step:
    """One command, and the path that is there when it has been done."""

    words: tuple[str, ...]
    output: Path

    @property
    def command(self) -> str:
        """As one would type it."""
        return " ".join(self.words)

    @property
    def stamp(self) -> Path:
        """Where the command is written down once it has been done."""
        return HERE / ".done" / f"{self.output.name}.txt"

    def is_done(self) -> bool:
        """Whether this very command has been run to its end."""
        stamped = self.stamp.is_file() and self.stamp.read_text() == self.command
        return stamped and self.output.exists()

    def start(self, threads: int, **options: Any) -> subprocess.Popen[str]:
        """Start the command."""
        console.print(f"[bold]$ {self.command}[/bold]")
        script = Path(sysconfig.get_path("scripts")) / self.words[0]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        words = [script, *self.words[1:], "--overwrite"]
        return subprocess.Popen(words, env=environment, text=True, **options)

    def finish(self, process: subprocess.Popen[str]) -> None:
        """Wait for the command; write down that it is done, or stop the demo with its exit code."""
        _, err = process.communicate()
        if err:
            console.print(f"[dim]{err.rstrip()}[/dim]")
        if process.returncode:
            sys.exit(process.returncode)
        self.stamp.parent.mkdir(exist_ok=True)
        self.stamp.write_text(self.command)


def run(missing: Sequence[Step]) -> None:
    """Run steps side by side, each on its share of the cores; one alone shows its progress."""
    start = time.monotonic()
    threads = max(1, (os.cpu_count() or 1) // len(missing))
    options = {"stderr": subprocess.PIPE} if len(missing) > 1 else {}
    processes = [step.start(threads, **options) for step in missing]
    try:
        for step, process in zip(missing, processes, strict=True):
            step.finish(process)
    finally:
        for process in processes:
            process.terminate()
    console.print(f"[dim]{time.monotonic() - start:.0f} s[/dim]\n")


def simulated(name: str, seed: int) -> Step:
    """Make a brain with known cells, and the brains file that names it."""
    file = HERE / f"{name}.yaml"
    text = f"- name: {name}\n  signal: {name}/brain.ome.zarr\n  cells: {name}/cells.xml\n"
    file.write_text(text)
    words = ("cubeclf-simulate", "--out", str(HERE / name), "--seed", str(seed))
    return Step(words, HERE / name)


def finetuned(name: str, backbone: str, *flags: str) -> Step:
    """Train a classifier on a few labels of brain A and score brain B."""
    brains = ("--brains", str(HERE / "brain_a.yaml"), "--test", str(HERE / "brain_b.yaml"))
    out = HERE / name
    words = ("cubeclf-finetune", "--backbone", backbone, *brains, "--labels", str(LABELS), *flags)
    return Step((*words, "--out", str(out)), out)


def steps() -> list[list[Step]]:
    """The job, in order; the steps of a group do not need each other."""
    pretrained = str(HERE / "pretrained")
    scratch = f"scratch:vit-{SIZE}"
    brain = str(HERE / "brain_a.yaml")
    length = ("--size", SIZE, "--steps", "120", "--batch-size", "32")
    pretrain = ("cubeclf-pretrain", brain, *length, "--out", pretrained)
    classifier, out = HERE / "classifier.pt2", HERE / "classified"
    export = ("cubeclf-export", str(HERE / "finetuned"), "--format", "torch")
    classify = ("cubeclf-classify", str(HERE / "brain_b" / "brain.ome.zarr"))
    candidates = ("--cells", str(HERE / "brain_b" / "cells.xml"))
    return [
        [simulated("brain_a", 0), simulated("brain_b", 1)],
        [Step(pretrain, Path(pretrained))],
        [finetuned("frozen", pretrained, "--freeze"), finetuned("random", scratch, "--freeze")],
        [finetuned("finetuned", pretrained, *TRAINED), finetuned("scratch", scratch, *TRAINED)],
        [Step((*export, "--out", str(classifier)), classifier)],
        [Step((*classify, "--classifier", str(classifier), *candidates, "--out", str(out)), out)],
    ]


def results() -> Table:
    """What each way of training reached on the brain that it has not seen."""
    title = f"brain_b, never seen, after {LABELS} labels of brain_a"
    table = Table("classifier", "average precision", "AUC", title=title)
    rows = {
        "pretrained, frozen": ("frozen", "classifier"),
        "pretrained, fine-tuned": ("finetuned", "classifier"),
        "a network of its size from scratch": ("scratch", "classifier"),
        "random weights, frozen": ("random", "classifier"),
        "contrast (best of four rules)": ("frozen", "contrast"),
        "density of candidates": ("frozen", "density"),
    }
    for title, (run, score) in rows.items():
        scores = json.loads((HERE / run / "metrics.json").read_text())["scores"]
        found = scores[score]["brains"]["brain_b"]
        table.add_row(title, f"{found['average_precision']:.3f}", f"{found['auc']:.3f}")
    prevalence = found["prevalence"]
    table.caption = f"average precision starts at the share of cells, {prevalence:.3f}"
    return table


def main() -> None:
    """Run what is missing, then say what came of it."""
    HERE.mkdir(exist_ok=True)
    start = time.monotonic()
    changed = False  # what follows a step that was run is run again
    for group in steps():
        missing = group if changed else [step for step in group if not step.is_done()]
        if missing:
            changed = True
            run(missing)
    console.print(results())
    with (HERE / "classified" / "candidates.csv").open(encoding="utf-8") as file:
        cells = sum(row["type"] == "2" for row in csv.DictReader(file))
    console.print(
        f"{cells} cells found in brain_b: {HERE}/classified/points/cell_classification.xml"
    )
    console.print("\nPictures to look at:")
    for picture in sorted([*HERE.rglob("*.png"), *HERE.rglob("report.html")]):
        console.print(f"  {picture}")
    console.print(f"\n{time.monotonic() - start:.0f} s on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
