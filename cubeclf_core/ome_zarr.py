"""What the metadata of an OME-Zarr (0.4 and 0.5) says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cubeclf_core.axes import Size3
from cubeclf_core.errors import VolumeError

_LARGE = ("kilo", "mega", "giga", "tera", "peta", "exa", "zetta", "yotta")
_SMALL = ("milli", "micro", "nano", "pico", "femto", "atto", "zepto", "yocto")
_POWERS = {"": 0, "deca": 1, "hecto": 2, "deci": -1, "centi": -2}
_POWERS |= {prefix: 3 * i for i, prefix in enumerate(_LARGE, 1)}
_POWERS |= {prefix: -3 * i for i, prefix in enumerate(_SMALL, 1)}
_UNITS_UM = {  # read from text, since 1e-9 times 1e6 is not quite 1e-3
    prefix + metre: float(f"1e{power + 6}")
    for prefix, power in _POWERS.items()
    for metre in ("meter", "metre")
}
_UNITS_UM |= {"m": 1e6, "cm": 1e4, "mm": 1e3, "um": 1.0, "nm": 1e-3, "pm": 1e-6}
_UNITS_UM |= {"\u00b5m": 1.0, "\u03bcm": 1.0, "micron": 1.0, "microns": 1.0}  # both signs for µ
_UNITS_UM |= {"angstrom": 1e-4, "å": 1e-4, "inch": 25_400.0, "foot": 304_800.0}
_UNITS_UM |= {"yard": 914_400.0, "mile": 1_609_344_000.0, "parsec": 3.0856775814913673e22}


@dataclass(frozen=True)
class Dataset:
    """One level of a pyramid.

    Attributes
    ----------
    path
        The array's path inside the group.
    scale
        Size of a voxel, z y x, each in its axis' unit; 1 along z if there is no z. None where the
        file does not say.
    """

    path: str
    scale: Size3 | None


@dataclass(frozen=True)
class Multiscale:
    """What OME-Zarr metadata says of an image.

    Attributes
    ----------
    axes
        Names of the axes of all its arrays in order, such as "tczyx".
    datasets
        The levels of its pyramid, finest first.
    voxel_size_um
        z y x of the finest, or None where the file does not say, or says it without a unit.
    """

    axes: str
    datasets: tuple[Dataset, ...]
    voxel_size_um: Size3 | None


def unit_in_um(unit: str) -> float | None:
    """Length of a unit, by its name or symbol, in µm; None if it is not a known length."""
    unit = unit.strip()
    return _UNITS_UM.get(unit, _UNITS_UM.get(unit.lower()))


def parse_multiscale(attributes: Mapping[str, Any], *, source: object) -> Multiscale | None:
    """Read the multiscales metadata of an OME-Zarr group, of version 0.4 or 0.5.

    Parameters
    ----------
    attributes
        The attributes of the group.
    source
        What to call it in errors.

    Returns
    -------
    Multiscale or None
        None if the group is no OME-Zarr image.

    Raises
    ------
    VolumeError
        If the metadata is there but cannot be understood.
    """
    ome = attributes.get("ome")
    holder = ome if isinstance(ome, Mapping) and "multiscales" in ome else attributes
    if "multiscales" not in holder:
        return None
    try:
        image = holder["multiscales"][0]
        entries = [axis if isinstance(axis, Mapping) else {"name": axis} for axis in image["axes"]]
        names = [str(axis["name"]).lower() for axis in entries]
        of_all = _scale(image, len(names))
        stored = [(str(d["path"]), _scale(d, len(names)) * of_all) for d in image["datasets"]]
        if not stored:
            raise ValueError("no datasets")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise VolumeError(
            f"{source} has OME-Zarr metadata that cannot be understood "
            f"({type(error).__name__}: {error}); expected multiscales with axes and datasets"
        ) from error
    if len(set(names)) < len(names) or not set("yx") <= set(names) <= set("tczyx"):
        raise VolumeError(f"{source} has the axes {names}; expected y, x and any of t, c, z")
    datasets = [Dataset(path, _in_zyx(names, scale)) for path, scale in stored]
    if all(dataset.scale for dataset in datasets):  # finest first by the book, not in every file
        datasets.sort(key=lambda dataset: math.prod(dataset.scale or ()))
    units = {str(e["name"]).lower(): unit_in_um(str(e.get("unit") or "")) for e in entries}
    um = [unit for unit in map(units.get, "zyx") if unit is not None]
    size, finest = None, datasets[0].scale
    if finest is not None and len(um) == 3:
        z, y, x = (s * u for s, u in zip(finest, um, strict=True))
        size = (z, y, x)
    return Multiscale("".join(names), tuple(datasets), size)


def _scale(owner: Mapping[str, Any], n_axes: int) -> np.ndarray:
    """Product of the scales of an image or of a dataset; NaN if a dataset has none."""
    scales = [
        np.array(transform["scale"], np.float64)
        for transform in owner.get("coordinateTransformations") or ()
        if transform["type"] == "scale"
    ]
    if any(scale.shape != (n_axes,) for scale in scales):
        raise ValueError(f"a scale that has not {n_axes} numbers")
    without = np.full(n_axes, np.nan if "path" in owner else 1.0)
    return np.prod(scales, axis=0) if scales else without


def _in_zyx(names: Sequence[str], scale: np.ndarray) -> Size3 | None:
    by_axis = dict(zip(names, scale.tolist(), strict=True))
    z, y, x = by_axis.get("z", 1.0), by_axis["y"], by_axis["x"]
    return None if any(map(math.isnan, (z, y, x))) else (z, y, x)
