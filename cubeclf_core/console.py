"""What a person sees on the terminal: messages and the progress of long work."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

console = Console(stderr=True, highlight=False, soft_wrap=True)


def is_main_process() -> bool:
    """Whether this process is rank 0, the only one that speaks."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0


def say(message: str) -> None:
    """Print one plain line, on rank 0 only."""
    if is_main_process():
        console.print(message, markup=False)


@runtime_checkable
class Advance(Protocol):
    """Reports `steps` more items done, with an optional short note (a loss, a count)."""

    def __call__(self, steps: int = 1, note: str = "") -> None:
        """Report `steps` more items."""


@contextmanager
def progress(description: str, total: int, *, unit: str = "it", done: int = 0) -> Iterator[Advance]:
    """Show the progress of `total` items with rate and time left.

    On a terminal this is a live bar; elsewhere a plain line about every ten seconds and one at
    the end, so that a log file stays readable.

    Parameters
    ----------
    description
        What is being done: "pretraining", "converting".
    total
        Number of items.
    unit
        What an item is, for the rate.
    done
        Items that were done before, by a run that is resumed.

    Yields
    ------
    Advance
        To be called as items are done.
    """
    if not is_main_process():
        yield lambda steps=1, note="": None
    elif console.is_terminal:
        with _live_bar(description, total, unit, done) as advance:
            yield advance
    else:
        yield _plain_lines(description, total, unit, done)


class _Rate(ProgressColumn):
    """Items a second, lately: 3.2 steps/s; empty until it is known."""

    def render(self, task: Task) -> Text:
        """Draw the column."""
        speed = task.finished_speed or task.speed
        text = f"{_figures(speed)} {task.fields['unit']}/s" if speed else ""
        return Text(text, style="progress.data.speed")


@contextmanager
def _live_bar(description: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=total, completed=done, unit=unit, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            bar.update(task, advance=steps, note=note or bar.tasks[task].fields["note"])

        yield advance


def _plain_lines(
    description: str, total: int, unit: str, first: int, every_s: float = 10.0
) -> Advance:
    start = last = time.monotonic()
    done = first

    def advance(steps: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += steps
        now = time.monotonic()
        if done < total and now - last < every_s:
            return
        last = now
        rate = (done - first) / max(now - start, 1e-9)
        left = (total - done) / max(rate, 1e-9)
        how = f"{_figures(rate)}/s, {left:.0f} s left"
        say(f"{description}: {done}/{total} {unit}, {how} {note}".rstrip())

    return advance


def _figures(rate: float) -> str:
    """Write a rate with three figures, and never as a power of ten."""
    return f"{rate:.3g}" if rate < 1000 else f"{rate:.0f}"
