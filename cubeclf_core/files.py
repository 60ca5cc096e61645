"""Files and folders that are never seen half-written: write beside, flush, rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cubeclf_core.errors import OutputExists


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write a file or folder at; rename it when done.

    If the block raises, what stood at `path` stays, and the temporary is removed.

    Parameters
    ----------
    path
        The final path. Its parent folder is made if missing.

    Yields
    ------
    pathlib.Path
        Where to write; it does not exist yet.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".partial-{os.getpid()}-{path.name}")  # keeps the suffix
    remove(temporary)
    try:
        yield temporary
        if temporary.is_file():
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        if path.is_dir():  # a folder cannot be replaced by a rename
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse_existing(path: Path, *, overwrite: bool, marker: str | None = None) -> None:
    """Raise if an output path exists and may not be overwritten.

    Parameters
    ----------
    path
        The output, a file or a folder.
    overwrite
        Whether the user allowed it.
    marker
        A file that every folder of this kind holds; None if the output is a file. Anything else is
        never overwritten: a slip in ``--out`` shall not cost a home folder.

    Raises
    ------
    OutputExists
        If `path` exists and may not be overwritten.
    """
    if not path.exists():
        return
    if not overwrite:
        raise OutputExists(f"{path} exists already; choose another --out or add --overwrite")
    if marker is None:
        ours, why = path.is_file(), "it is a folder"
    else:
        ours, why = (path / marker).exists(), f"it holds no {marker}"
    if not ours and not (path.is_dir() and not any(path.iterdir())):
        raise OutputExists(
            f"{path} is nothing that this command wrote ({why}); choose another --out"
        )
