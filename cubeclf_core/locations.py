"""Where something lies: a path on this machine, or a URL, which `pathlib` would break."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

Location = str | Path
"""A path, or a URL as a string; what users give."""


def is_url(location: Location) -> bool:
    """Tell whether a location is a URL, of files elsewhere or in memory."""
    return isinstance(location, str) and "://" in location


def locate(given: Location, folder: Path | None = None) -> Location:
    """Make a path of all that is one, and leave URLs as they are.

    Parameters
    ----------
    given
        A path, a ``file://`` URL or another URL.
    folder
        What a relative path is relative to, by default the working directory.

    Returns
    -------
    pathlib.Path or str
        A string only if it is a URL.

    Examples
    --------
    >>> locate("https://example.org/brain.ome.zarr/", Path("brains"))
    'https://example.org/brain.ome.zarr'
    >>> locate("brain.ome.zarr", Path("brains")).as_posix()
    'brains/brain.ome.zarr'
    """
    if isinstance(given, str) and given.lower().startswith("file://"):
        given = Path(url2pathname(urlsplit(given).path))
    if isinstance(given, str) and is_url(given):
        return given.rstrip("/")
    return Path(given) if folder is None else folder / given


def last_part(location: Location) -> str:
    """Name of the file or folder at a location.

    Examples
    --------
    >>> last_part("https://example.org/my%20brain.ome.zarr?version=2")
    'my brain.ome.zarr'
    """
    if isinstance(location, str) and is_url(location):
        parts = urlsplit(location)
        return unquote(parts.path.rstrip("/").rpartition("/")[2]) or parts.netloc
    path = Path(location)
    return path.name or path.resolve().name


def on_disk(*locations: Location | None) -> tuple[Path, ...]:
    """Those of some locations that are paths of this machine, in order."""
    located = [locate(location) for location in locations if location is not None]
    return tuple(location for location in located if isinstance(location, Path))


def same_name(location: Location) -> str:
    """One name for all ways to write a location: the resolved path, or the URL."""
    located = locate(location)
    return located if isinstance(located, str) else str(located.resolve())
