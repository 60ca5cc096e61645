"""What the metadata of an OME-Zarr (0.4 and 0.5) says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cubeclf_core.axes import Size3
from cubeclf_core.errors import VolumeError

_METRE_UM = {"": 6, "kilo": 9, "hecto": 8, "deca": 7, "deci": 5, "centi": 4, "milli": 3}
_METRE_UM |= {"micro": 0, "nano": -3, "pico": -6, "femto": -9, "mega": 12, "giga": 15}
_UNITS_UM = {
    prefix + metre: 10.0**n for prefix, n in _METRE_UM.items() for metre in ("meter", "metre")
}
_UNITS_UM |= {"m": 1e6, "cm": 1e4, "mm": 1e3, "um": 1.0, "nm": 1e-3, "pm": 1e-6}
_UNITS_UM |= {"\u00b5m": 1.0, "\u03bcm": 1.0, "micron": 1.0, "microns": 1.0}  # both signs for µ
_UNITS_UM |= {"angstrom": 1e-4, "å": 1e-4, "inch": 25_400.0, "foot": 304_800.0}


@dataclass(frozen=True)
class Multiscale:
    """What OME-Zarr metadata says of the full-resolution array.

    Attributes
    ----------
    path
        The array's path inside the group.
    axes
        Names of its axes in order, such as "tczyx".
    voxel_size_um
        z y x, or None where the file does not say, or says it without a unit.
    """

    path: str
    axes: str
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
        dataset = image["datasets"][0]
        names = [str(axis["name"]).lower() for axis in entries]
        scale = _scale(dataset, len(names)) * _scale(image, len(names))
        path = str(dataset["path"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise VolumeError(
            f"{source} has OME-Zarr metadata that cannot be understood "
            f"({type(error).__name__}: {error}); expected multiscales with axes and datasets"
        ) from error
    axes = "".join(names)
    if len(set(names)) < len(names) or not set("yx") <= set(names) <= set("tczyx"):
        raise VolumeError(f"{source} has the axes {names}; expected y, x and any of t, c, z")
    units = {
        name: unit_in_um(str(e.get("unit") or "")) for name, e in zip(axes, entries, strict=True)
    }
    sizes = []
    for name in "zyx":
        um = units.get(name)
        if um is None or np.isnan(scale[axes.index(name)]):
            return Multiscale(path, axes, None)
        sizes.append(float(scale[axes.index(name)]) * um)
    return Multiscale(path, axes, (sizes[0], sizes[1], sizes[2]))


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
