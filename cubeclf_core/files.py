"""Files and folders that are never seen half-written: write beside, flush, rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cubeclf_core.errors import OutputExists

MARKER = ".cubeclf"
"""A file in every folder that a command of ours wrote; only such folders are ever overwritten."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write a file or folder at; rename it when done.

    If the block raises, what stood at `path` stays, and the temporary is removed.

    Parameters
    ----------
    path
        The final path. Its parent folders are made if missing.

    Yields
    ------
    pathlib.Path
        Where to write; it does not exist yet.
    """
    made = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".partial-{os.getpid()}-{path.name}")  # keeps the suffix
    aside = path.with_name(f".replaced-{os.getpid()}-{path.name}")
    remove(temporary)
    try:
        yield temporary
        if temporary.is_file():
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        if path.is_dir():  # a folder cannot be replaced by a rename
            path.rename(aside)
        temporary.replace(path)
    except BaseException:
        remove(temporary)
        if aside.exists() and not path.exists():
            aside.rename(path)
        for parent in made:
            if not any(parent.iterdir()):
                parent.rmdir()
        raise
    remove(aside)


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def mark(folder: Path) -> None:
    """Write the file that says that a folder is a command's output."""
    (folder / MARKER).write_text("written by cubeclf, which may overwrite this folder\n")


def check_output(
    path: Path,
    *,
    overwrite: bool,
    inputs: Sequence[Path | None] = (),
    marker: str | None = MARKER,
) -> None:
    """Raise if an output path cannot be written or may not be, before any work is done.

    Parameters
    ----------
    path
        The output, a file or a folder.
    overwrite
        Whether the user allowed to replace what is there.
    inputs
        What is read, where it is a path: an output never is, holds or lies in an input.
    marker
        A file that every folder of this kind holds; None if the output is a file. Anything else is
        never overwritten: a slip in ``--out`` shall not cost a home folder.

    Raises
    ------
    OutputExists
        If it exists and may not be overwritten, or cannot be written.
    """
    for given in inputs:
        if given is not None and given.exists() and _overlap(path.resolve(), given.resolve()):
            raise OutputExists(
                f"{path} is, holds or lies in the input {given}; choose another --out"
            )
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputExists(f"{parent} is no folder that can be written to; choose another --out")
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise OutputExists(f"{path} exists already; choose another --out or add --overwrite")
    if marker is None:
        ours, why = path.is_file(), "it is a folder"
    else:
        ours, why = (path / marker).exists() and not path.is_symlink(), f"it holds no {marker}"
    if not ours and not (path.is_dir() and not any(path.iterdir())):
        what = f"{path} is nothing that this command wrote ({why})"
        raise OutputExists(f"{what}; choose another --out")


def _overlap(output: Path, given: Path) -> bool:
    return (
        output == given or output in given.parents or (given.is_dir() and given in output.parents)
    )
