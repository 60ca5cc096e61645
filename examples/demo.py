"""The whole job on two simulated brains: pretrain on one, label a little of it, classify the other.

Run it with ``make demo``. A step whose command and output are there already is skipped, so a second
call only prints the table.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path("demo")
LABELS = 30
SIZE = "nano"
TRAINED = ("--no-freeze", "--steps", "80", "--learning-rate", "2e-4")
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

    def run(self) -> None:
        """Run the command, or stop the demo with its exit code."""
        if self.is_done():
            console.print(f"[dim]done before: {self.command}[/dim]")
            return
        console.print(f"[bold]$ {self.command}[/bold]")
        start = time.monotonic()
        script = Path(sysconfig.get_path("scripts")) / self.words[0]
        done = subprocess.run([script, *self.words[1:], "--overwrite"], check=False)
        if done.returncode:
            sys.exit(done.returncode)
        console.print(f"[dim]{time.monotonic() - start:.0f} s[/dim]")
        self.stamp.parent.mkdir(exist_ok=True)
        self.stamp.write_text(self.command)


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


def steps() -> list[Step]:
    """The job, in order."""
    pretrained = str(HERE / "pretrained")
    method = ("--method", "mae", "--size", SIZE, "--steps", "1000", "--batch-size", "16")
    around = ("--candidate-share", "1", "--learning-rate", "2e-3")
    brain = str(HERE / "brain_a.yaml")
    pretrain = ("cubeclf-pretrain", brain, *method, *around, "--out", pretrained)
    classifier, out = HERE / "classifier.pt2", HERE / "classified"
    export = ("cubeclf-export", str(HERE / "finetuned"), "--format", "torch")
    classify = ("cubeclf-classify", str(HERE / "brain_b" / "brain.ome.zarr"))
    candidates = ("--cells", str(HERE / "brain_b" / "cells.xml"))
    return [
        simulated("brain_a", 0),
        simulated("brain_b", 1),
        Step(pretrain, Path(pretrained)),
        finetuned("frozen", pretrained, "--freeze"),
        finetuned("finetuned", pretrained, *TRAINED),
        finetuned("scratch", f"scratch:vit-{SIZE}", *TRAINED),
        finetuned("scratch_frozen", f"scratch:vit-{SIZE}", "--freeze"),
        Step((*export, "--out", str(classifier)), classifier),
        Step((*classify, "--classifier", str(classifier), *candidates, "--out", str(out)), out),
    ]


def results() -> Table:
    """What each way of training reached on the brain that it has not seen."""
    title = f"brain_b, never seen, after {LABELS} labels of brain_a"
    table = Table("classifier", "average precision", "AUC", title=title)
    rows = {
        "pretrained, frozen": ("frozen", "classifier"),
        "pretrained, fine-tuned": ("finetuned", "classifier"),
        "same network from scratch": ("scratch", "classifier"),
        "random weights, frozen": ("scratch_frozen", "classifier"),
        "contrast (best of four rules)": ("frozen", "contrast"),
        "density of candidates": ("frozen", "density"),
    }
    for title, (run, score) in rows.items():
        found = json.loads((HERE / run / "metrics.json").read_text())["test"]["brain_b"][score]
        table.add_row(title, f"{found['average_precision']:.3f}", f"{found['auc']:.3f}")
    prevalence = found["prevalence"]
    table.caption = f"average precision starts at the share of cells, {prevalence:.3f}"
    return table


def main() -> None:
    """Run what is missing, then say what came of it."""
    HERE.mkdir(exist_ok=True)
    start = time.monotonic()
    for step in steps():
        step.run()
    console.print(results())
    with (HERE / "classified" / "candidates.csv").open(encoding="utf-8") as file:
        cells = sum(row["type"] == "2" for row in csv.DictReader(file))
    console.print(
        f"{cells} cells found in brain_b: {HERE}/classified/points/cell_classification.xml"
    )
    console.print("\nPictures to look at:")
    for picture in sorted(HERE.rglob("*.png")):
        console.print(f"  {picture}")
    console.print(f"\n{time.monotonic() - start:.0f} s on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
