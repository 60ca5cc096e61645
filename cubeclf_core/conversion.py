"""A conversion under way: a folder beside the output that keeps what is done, across kills.

::

    .converting-brain.ome.zarr/
        lock            who is at it; held by a living process, free as soon as that one is dead
        settings.json   what is converted, and how; written once the empty arrays are there
        done            a line a finished unit, flushed to disk after the unit's own files were
        store/          the OME-Zarr
        replaced/       what stood at the output, while the one is exchanged for the other

A journal, and not the presence of files, says what is done: zarr writes no file where all voxels
are 0. A line that was torn by the kill does not count, so its unit is written again.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from cubeclf_core.errors import OutputExists
from cubeclf_core.files import remove, replacing
from cubeclf_core.work_units import Unit

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

PREFIX = ".converting-"
LOCK = "lock"

Settings = Mapping[str, Any]


class Conversion:
    """What is done of a conversion; made by `conversion`.

    Attributes
    ----------
    store
        The folder to write into.
    done
        The finished units.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.store, self.done = folder, folder / "store", set[Unit]()
        self._journal, self._settings = folder / "done", folder / "settings.json"
        self._aside = folder / "replaced"

    @property
    def worth_keeping(self) -> bool:
        """Whether anything is done, or a kill left here what stood at the output."""
        return bool(self.done) or self._aside.exists()

    def begin(self, settings: Settings, create: Callable[[Path], None]) -> tuple[str, ...]:
        """Go on where the same conversion was interrupted, or start anew.

        Parameters
        ----------
        settings
            Anything that JSON can hold; a conversion with others starts anew.
        create
            Makes an empty store.

        Returns
        -------
        tuple of str
            The settings in which finished work, which is given up, differs from what is wanted.
        """
        wanted, found = json.loads(json.dumps(settings)), self._read_settings()
        if found == wanted:
            self.done = self._read_journal()
            for torn in self.store.rglob("*.partial"):  # zarr's own, beside what it writes
                torn.unlink()
            return ()
        differ = [key for key in {**wanted, **found} if wanted.get(key) != found.get(key)]
        had = bool(found and self._read_journal())
        for path in (self._settings, self._journal, self.store):
            remove(path)
        create(self.store)
        with replacing(self._settings) as file:
            file.write_text(json.dumps(wanted, indent=1))
        return tuple(differ) if had else ()

    def add(self, unit: Unit) -> None:
        """Record a unit whose files are on disk; one thread at a time."""
        with self._journal.open("a") as file:
            file.write(" ".join(map(str, unit)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.done.add(unit)

    def put_in_place(self, out: Path) -> None:
        """Move the finished store to the output, over what may be there."""
        if out.is_dir():  # a folder cannot be replaced by a rename
            remove(self._aside)
            out.rename(self._aside)
        try:
            self.store.rename(out)
        except BaseException:
            if self._aside.exists():
                self._aside.rename(out)
            raise

    def _read_settings(self) -> dict[str, Any]:
        try:
            settings = json.loads(self._settings.read_text())
        except (OSError, ValueError):
            return {}
        return settings if isinstance(settings, dict) and self.store.is_dir() else {}

    def _read_journal(self) -> set[Unit]:
        if not self._journal.exists():
            return set()
        whole, newline, torn = self._journal.read_bytes().rpartition(b"\n")
        if torn:  # else the next line would go on from it
            os.truncate(self._journal, len(whole + newline))
        lines = re.findall(rb"^(\d+) (\d+) (\d+) (\d+) (\d+)$", whole, re.MULTILINE)
        return {Unit(*map(int, line)) for line in lines}


@contextmanager
def conversion(out: Path) -> Iterator[Conversion]:
    """Hold the folder of the conversion to an output; remove it, unless finished work is in it.

    Raises
    ------
    OutputExists
        If another process is converting to that output.
    """
    made = [parent for parent in out.parents if not parent.exists()]
    folder = out.with_name(f"{PREFIX}{out.name}")
    try:
        with _locked(folder):
            work = Conversion(folder)
            try:
                yield work
            except BaseException:
                if not work.worth_keeping:
                    _empty(folder)
                raise
            _empty(folder)
    finally:
        for parent in made:
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != LOCK:
            remove(path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder, made if missing; remove it at the end if there is nothing in it."""
    file = _lock(folder / LOCK)
    try:
        yield
    finally:
        if [path.name for path in folder.iterdir()] == [LOCK]:
            if sys.platform == "win32":  # which removes no open file
                file.close()
            remove(folder)
        file.close()


def _lock(path: Path) -> IO[bytes]:
    """Open and lock a file; the system frees the lock when the process ends, however it ends."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputExists(
                f"{path.parent.parent} cannot be written to ({error}); choose another --out"
            ) from error
        with suppress(FileNotFoundError):  # the one who held it is done and removed it: once more
            file = path.open("ab+", buffering=0)
            if not _try_lock(file):
                with file:
                    file.seek(0)
                    who = file.read().decode(errors="replace").strip() or "another process"
                raise OutputExists(
                    f"{path.parent.name.removeprefix(PREFIX)} is being written by {who}; wait "
                    "until it is done, end it, or choose another --out"
                )
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return file
            file.close()


def _try_lock(file: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            file.seek(1 << 20)  # what is locked cannot be read by others
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass  # a file system without locks: rather a conversion that is not guarded than none
    return True
