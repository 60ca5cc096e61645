"""What benchmarks share: a folder to work in, the machine they ran on, tables, files."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from matplotlib.figure import Figure

from cubeclf_core.console import say
from cubeclf_core.files import replacing

Figures = dict[str, float | str]


@contextmanager
def working_folder(given: Path | None) -> Iterator[Path]:
    """Make the folder that was given, or a temporary one that is removed at the end."""
    if given is None:
        with tempfile.TemporaryDirectory(prefix="cubeclf-benchmark-") as folder:
            yield Path(folder)
    else:
        given.mkdir(parents=True, exist_ok=True)
        yield given


def machine(packages: Sequence[str]) -> Figures:
    """Describe the machine, Python, and the packages that a benchmark depends on."""
    figures: Figures = {
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count() or 1,
        "python": platform.python_version(),
    }
    return figures | {f"{name}_version": version(name) for name in packages if find_spec(name)}


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    if not about.exists():
        return platform.processor()
    lines = about.read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")


def lay_out(rows: Sequence[Sequence[str]], *, last_left: bool = False) -> str:
    """Set a table: names to the left, figures to the right, a line below the head.

    Parameters
    ----------
    rows
        The head first; all of one length.
    last_left
        Whether the last column holds words.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        if last_left:
            cells[-1] = row[-1]
        lines.append("  ".join(cells))
    lines.insert(1, "─" * max(map(len, lines)))
    return "\n".join(line.rstrip() for line in lines)


def write_files(
    figures: Mapping[str, float | str], drawn: Figure, *, json_file: Path | None, plot: Path
) -> None:
    """Write the plot and, if it was asked for, all figures as JSON; whole or not at all."""
    for file in (plot, json_file or plot):
        file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(plot) as temporary:
        drawn.savefig(temporary, format=plot.suffix[1:] or "png", dpi=150)
    say(f"plot: {plot}")
    if json_file is not None:
        write_json(figures, json_file)
        say(f"figures: {json_file}")


def write_json(figures: Mapping[str, float | str], file: Path) -> None:
    """Write all figures as one flat object; whole or not at all."""
    text = json.dumps(figures, indent=1, ensure_ascii=False) + "\n"
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
