"""Files from elsewhere: downloaded once, whole, and what their checksum says they are."""

from __future__ import annotations

import hashlib
from pathlib import Path

import fsspec

from cubeclf_core.console import progress
from cubeclf_core.errors import CheckpointError, InputError, RunFailed
from cubeclf_core.files import replacing

_AT_A_TIME = 1 << 20


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def download(url: str, to: Path, sha256: str | None) -> None:
    """Download a file; whole and as it should be, or not at all.

    Parameters
    ----------
    url
        Whatever fsspec opens: http, https, file …
    to
        Where to.
    sha256
        In hexadecimal; anything is taken if it is None.

    Raises
    ------
    CheckpointError
        If its SHA-256 is another.
    InputError
        If there is no such file.
    RunFailed
        If it cannot be downloaded.
    """
    try:
        with replacing(to) as temporary:
            with fsspec.open(url, "rb") as source, temporary.open("wb") as target:
                size = int(getattr(source, "size", None) or 0)
                with progress(f"downloading {to.name}", -(-size // _AT_A_TIME), unit="MiB") as show:
                    while part := source.read(_AT_A_TIME):
                        target.write(part)
                        show(1)
            if sha256 is not None and (found := sha256_of(temporary)) != sha256.lower():
                raise CheckpointError(f"{url} has the SHA-256 {found}, expected {sha256}")
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"no file at {url}") from error
    except Exception as error:  # whatever the network's libraries raise
        raise RunFailed(f"{url} cannot be downloaded: {error}") from error
