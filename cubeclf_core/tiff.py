"""TIFF as it comes from microscopes: a folder of planes, or a stack, decoded when asked for."""

from __future__ import annotations

import logging
import re
import threading
import weakref
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from cubeclf_core.axes import Size3
from cubeclf_core.errors import VolumeError
from cubeclf_core.ome_zarr import unit_in_um
from cubeclf_core.sources import BROKEN, ArraySource, PlanesSource, Source, by

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # our errors say it, in one line


def open_planes(folder: Path) -> PlanesSource:
    """Open the TIFF planes of a folder as one channel, in natural order of their names.

    The first and the last are checked now, each when it is read. If the first is uncompressed,
    they are mapped, and of each only what is asked for is read; otherwise they are decoded whole.

    Raises
    ------
    VolumeError
        If there is none, or they are not single grey planes of one shape and dtype.
    """
    files = sorted((f for f in folder.iterdir() if _is_plane(f)), key=lambda f: natural_key(f.name))
    if not files:
        raise VolumeError(f"{folder} is a folder without TIFF planes or zarr metadata")
    shape, dtype, mapped = _plane_format(files[0])
    layouts: dict[int, tuple[int, np.dtype[Any]]] = {}  # where voxels start, in which byte order

    def decode(z: int) -> np.ndarray:
        file = files[z]
        try:
            if z not in layouts:
                with tifffile.TiffFile(file) as tiff:
                    page = tiff.pages.first
                    check(file, page.shape, page.dtype)
                    if not (mapped and page.is_memmappable):
                        return np.asarray(page.asarray())
                    layouts[z] = page.dataoffsets[0], dtype.newbyteorder(tiff.byteorder)
            offset, stored = layouts[z]
            return np.memmap(file, stored, "r", offset, shape)
        except VolumeError:
            raise
        except BROKEN as error:
            raise VolumeError(f"{file} cannot be read as a TIFF plane: {error}") from error

    def check(file: Path, its_shape: tuple[int, ...], its_dtype: np.dtype[Any] | None) -> None:
        if (its_shape, its_dtype) != (shape, dtype):
            raise VolumeError(
                f"{file} is {its_dtype} of shape {by(its_shape)}, but {files[0].name} is {dtype} "
                f"of shape {by(shape)}; all planes of a folder must agree"
            )

    check(files[-1], *_plane_format(files[-1])[:2])
    return PlanesSource((len(files), *shape), dtype, decode, mapped=mapped)


def _is_plane(file: Path) -> bool:
    return file.suffix.lower() in (".tif", ".tiff") and not file.name.startswith(".")


def natural_key(name: str) -> list[str | int]:
    """Sort key that puts plane2 before plane10."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _plane_format(file: Path) -> tuple[tuple[int, int], np.dtype[Any], bool]:
    """Shape and dtype of a plane, and whether it can be mapped."""
    try:
        with tifffile.TiffFile(file) as tiff:
            # The page, not the series: planes of one OME-TIFF set each claim to be the whole of it.
            page, n_pages = tiff.pages.first, len(tiff.pages)
            shape, dtype, mapped = page.shape, page.dtype, page.is_memmappable
    except BROKEN as error:
        raise VolumeError(f"{file} cannot be read as a TIFF plane: {error}") from error
    if len(shape) != 2 or n_pages != 1 or dtype is None:
        raise VolumeError(
            f"{file} holds {n_pages} page(s) of shape {by(shape)}; expected one grey plane y x "
            "in each file of a folder (a stack is given as a file)"
        )
    return (shape[0], shape[1]), dtype.newbyteorder("="), mapped


def open_stack(path: Path) -> tuple[Source, Size3 | None]:
    """Open a TIFF stack: memory-mapped where it is uncompressed, else page by page.

    Returns
    -------
    Source, voxel size
        The voxel size is z y x in µm, or None where OME or ImageJ metadata do not say it.

    Raises
    ------
    VolumeError
        If it cannot be read, or is no stack of grey planes.
    """
    try:
        tiff = tifffile.TiffFile(path)
    except BROKEN as error:
        raise VolumeError(f"{path} cannot be read as a TIFF: {error}") from error
    keep = False
    try:
        series = tiff.series[0]
        shape, axes = series.shape, series.axes
        if len(shape) != 3 or axes[1:] != "YX" or axes[0] in "CS":
            raise VolumeError(
                f"{path} holds an image of shape {by(shape)} with the axes {axes}; expected a "
                "stack z y x of one channel (single planes are given as their folder)"
            )
        size = _stack_voxel_size(tiff)
        if series.dataoffset is not None:
            return ArraySource(tifffile.memmap(path, mode="r", series=0)), size
        keep = True
        return _paged(path, tiff, series), size
    except BROKEN as error:
        keep = False
        if isinstance(error, VolumeError):
            raise
        raise VolumeError(f"{path} cannot be read as a TIFF stack: {error}") from error
    finally:
        if not keep:
            tiff.close()


def _paged(path: Path, tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> PlanesSource:
    depth, height, width = series.shape
    first, last = series.pages[0], series.pages[-1]
    if len(series.pages) != depth or any(
        p is None or p.shape != (height, width) for p in (first, last)
    ):
        raise VolumeError(f"{path} does not store one plane a page; save it as a plain TIFF stack")
    lock = threading.RLock()  # the file has one position, which all threads share

    def decode(z: int) -> np.ndarray:
        try:
            with lock:
                page = series.pages[z]
            assert page is not None
            plane = np.asarray(page.asarray(lock=lock))
        except BROKEN as error:
            raise VolumeError(f"{path}: plane {z} cannot be decoded: {error}") from error
        if plane.shape != (height, width):
            raise VolumeError(f"{path}: plane {z} has the shape {by(plane.shape)}")
        return plane

    source = PlanesSource((depth, height, width), series.dtype, decode)
    weakref.finalize(source, tiff.close)
    return source


def _stack_voxel_size(tiff: tifffile.TiffFile) -> Size3 | None:
    """Voxel size z y x from OME or ImageJ metadata, in µm; None where it is not all there."""
    if tiff.is_ome and tiff.ome_metadata:
        pixels = ET.fromstring(tiff.ome_metadata).find(".//{*}Pixels")
        sizes = [_ome_size(pixels, axis) for axis in "ZYX"] if pixels is not None else [None]
    elif tiff.is_imagej:
        about = tiff.imagej_metadata or {}
        unit = str(about.get("unit") or "").replace("\\u00B5", "µ")
        um = unit_in_um(unit)
        spacing = about.get("spacing")
        z = None if um is None or spacing is None else float(spacing) * um
        tags = tiff.pages.first.tags
        sizes = [
            z,
            _imagej_size(tags.get("YResolution"), um),
            _imagej_size(tags.get("XResolution"), um),
        ]
    else:
        return None
    known = [size for size in sizes if size is not None]
    return (known[0], known[1], known[2]) if len(known) == 3 else None


def _ome_size(pixels: ET.Element, axis: str) -> float | None:
    size = pixels.get(f"PhysicalSize{axis}")
    um = unit_in_um(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    return None if size is None or um is None else float(size) * um


def _imagej_size(tag: tifffile.TiffTag | None, um: float | None) -> float | None:
    if tag is None or um is None or not tag.value[0]:
        return None
    return float(um * tag.value[1] / tag.value[0])
