"""The commands that are measured: cellfinder's and ours, on the same candidates."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.classifying.brains import Subject
from benchmarks.classifying.config import DEFAULT_SIZE
from benchmarks.classifying.processes import Usage, measured, ours

RESNET50 = "resnet50"
CELLFINDER = "cellfinder"
Files = Mapping[tuple[str, str], Path]
"""What to load, by size and format."""


@dataclass(frozen=True)
class Way:
    """A whole command.

    Attributes
    ----------
    program
        "cellfinder" or "cubeclf".
    size, form
        Of the classifier; `RESNET50` and nothing for cellfinder's own.
    subject
        What it classifies.
    command
        Its words, without what is new each time: the output.
    """

    program: str
    size: str
    form: str
    subject: Subject
    command: Sequence[str]

    @property
    def key(self) -> str:
        """Of its figures: ``crop.cubeclf.nano.fast``."""
        return f"{self.subject.name}.{self.program}.{self.size}.{self.form}"

    def run(self, folder: Path, attempt: int) -> Usage:
        """Run it, and measure it."""
        out = folder / f"{self.key.replace(' ', '-')}-{attempt}"
        suffix = ".xml" if self.program == CELLFINDER else ""
        words = [*self.command, "--out", str(out) + suffix]
        return measured(words, out.with_name(out.name + ".log"))


def ways(
    shared: Sequence[Subject],
    alone: Sequence[Subject],
    files: Files,
    two_channels: Path,
    resnet50: Path | None,
) -> Iterator[Way]:
    """List the commands.

    Parameters
    ----------
    shared
        Brains on which cellfinder takes part, the one for all sizes and formats first.
    alone
        Brains for our default alone.
    files
        Classifiers.
    two_channels
        The default's network with a background channel.
    resnet50
        cellfinder's; None leaves cellfinder out.
    """
    default = files[DEFAULT_SIZE, "fast"]
    for i, subject in enumerate(shared):
        if resnet50 is not None:
            yield _cellfinder(subject, RESNET50, "untrained", resnet50)
        for (size, form), file in files.items():
            if i and (size, form) not in ((DEFAULT_SIZE, "fast"), (DEFAULT_SIZE, "keras")):
                continue
            if form != "keras":
                yield _ours(subject, size, form, file)
            elif resnet50 is not None:
                yield _cellfinder(subject, size, form, file)
        yield _ours(subject, f"{DEFAULT_SIZE}, 2 channels", "fast", two_channels)
    for subject in alone:
        yield _ours(subject, DEFAULT_SIZE, "fast", default)


def _ours(subject: Subject, size: str, form: str, file: Path) -> Way:
    words: list[object] = [*subject.arguments, "--classifier", file, "--overwrite"]
    if form == "exact":
        words.append("--exact")
    return Way("cubeclf", size, form, subject, ours("classify", *words))


def _cellfinder(subject: Subject, size: str, form: str, model: Path) -> Way:
    command = [sys.executable, "-m", "benchmarks.classifying.by_cellfinder"]
    words: list[object] = ["--signal", subject.signal, "--cells", subject.cells, "--model", model]
    if subject.background is not None:
        words += ["--background", subject.background]
    words += ["--voxel-size-um", *subject.voxel_size_um]
    return Way(CELLFINDER, size, form, subject, [*command, *map(str, words)])
