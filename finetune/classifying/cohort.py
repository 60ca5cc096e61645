"""A cohort: a folder for each brain, and a table of what was found, side by side."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cubeclf_core.brains import Brain
from cubeclf_core.console import say
from cubeclf_core.errors import InputError
from cubeclf_core.files import replacing

TABLE = "brains.csv"
_COLUMNS = (
    *("brain", "candidates", "cells", "rejection_rate", "mean_probability", "at_border", "unread"),
    *("waiting_s", "reading_s", "scores_apart", "far_share", "drift"),
)
_SHOWN = {
    "brain": "brain",
    "candidates": "candidates",
    "cells": "cells",
    "rejection_rate": "rejected",
    "mean_probability": "mean p",
    "waiting_s": "waited s",
    "reading_s": "read s",
    "drift": "",
}


def check_folders(brains: Sequence[Brain]) -> None:
    """Raise if two brains would share a folder where capitals make no difference.

    Raises
    ------
    InputError
        If they would, as on macOS and Windows.
    """
    names: dict[str, str] = {}
    for brain in brains:
        other = names.setdefault(brain.name.casefold(), brain.name)
        if other != brain.name:
            raise InputError(
                f"brains {other!r} and {brain.name!r} would share a folder on macOS and Windows; "
                "give them names that differ in more than capitals"
            )


def write_cohort(folder: Path, summaries: Sequence[Mapping[str, Any]]) -> None:
    """Write the table of all brains and show it.

    Parameters
    ----------
    folder
        Of the run.
    summaries
        Of each brain, as `write_outputs` leaves them.
    """
    rows = [_row(summary) for summary in summaries]
    with (
        replacing(folder / TABLE) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.DictWriter(file, _COLUMNS)
        table.writeheader()
        table.writerows(rows)
    shown = [list(_SHOWN.values()), *([_spell(row[key]) for key in _SHOWN] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for line in shown:
        words = [line[0].ljust(widths[0])]
        words += [word.rjust(n) for word, n in zip(line[1:], widths[1:], strict=True)]
        say("  ".join(words).rstrip())
    say(f"table       {folder / TABLE}")


def _row(summary: Mapping[str, Any]) -> dict[str, Any]:
    drift = summary["drift"] or {}
    row = {**summary, **drift, "drift": "drift" if drift.get("warnings") else ""}
    return {name: "" if row.get(name) is None else row[name] for name in _COLUMNS}


def _spell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
