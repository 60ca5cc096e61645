"""What weights hold, whatever they are called."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cubeclf_core.zoo import index


def content_hash(location: str | Path) -> str:
    """Tell apart what files hold, whatever they are called.

    Parameters
    ----------
    location
        A file; the folder of a run, whose exported weights count alone; any other folder, with all
        that is in it; a name of the zoo's; or another name, which stands for itself.

    Returns
    -------
    str
        SHA-256 in hexadecimal, or the name.
    """
    path = Path(location)
    if not str(location) or not path.exists():
        entry = index().get(str(location))
        return str(location) if entry is None else entry.sha256
    weights = [path / "exported" / f"{kind}.safetensors" for kind in ("classifier", "backbone")]
    files = [file for file in weights if file.is_file()][:1] or sorted(path.rglob("*"))
    found = hashlib.sha256()
    for file in [path] if path.is_file() else files:
        if file.is_file():
            with file.open("rb") as opened:
                found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()
