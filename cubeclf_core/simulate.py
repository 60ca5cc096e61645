"""Brains with known cells and artefacts, for the demo, the tests and the benchmarks.

A seed makes a brain: its tissue, its microscope and the mix of its artefacts differ from the next
seed's about as one animal's scan from another's. Brightness alone does not tell cells from
artefacts; see `simulate_objects` for what does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from scipy import ndimage

from cubeclf_core.cells import CELL, NO_CELL, Cells, write_cells
from cubeclf_core.config import SimulateConfig
from cubeclf_core.console import progress, say
from cubeclf_core.errors import InputError
from cubeclf_core.files import check_output, mark, replacing
from cubeclf_core.pyramid import write_ome_zarr
from cubeclf_core.simulate_objects import (
    ARTEFACTS,
    DRAW,
    NOTHING,
    Surroundings,
    add_patch,
    vessel_at,
)
from cubeclf_core.simulate_tissue import (
    VOXEL_SIZE_UM,
    Floats,
    Points,
    Traits,
    Vessel,
    add_vessels,
    altered,
    autofluorescence,
    blur,
    depth_below_edge_um,
    draw_traits,
    draw_vessels,
    generator,
    photograph,
    stripes,
)

SMALLEST = (20, 50, 50)  # one cuboid
SPACING_UM = {"cell": 10.0, NOTHING: 22.0}  # from anything placed before
ARTEFACT_SPACING_UM = 16.0
ROOM_UM3 = 1e4  # tissue that one candidate needs
ATTEMPTS = 5000


def simulate(config: SimulateConfig) -> None:
    """Write a simulated brain, its cells and a picture of both into a folder.

    Raises
    ------
    InputError
        If the shape, the number of cells or the seed is impossible.
    OutputExists
        If the folder exists and may not be overwritten.
    """
    check_output(config.out, overwrite=config.overwrite)
    brain, cells = simulate_brain(config.shape, config.cells, config.seed, config.traits)
    with replacing(config.out) as folder:
        folder.mkdir()
        mark(folder)
        write_ome_zarr(folder / "brain.ome.zarr", list(brain), VOXEL_SIZE_UM)
        write_cells(folder / "cells.xml", cells)
        draw_preview(brain, cells).savefig(folder / "preview.png", dpi=120)
    n_cells = int(cells.labels.sum())
    say(f"{config.out}: {n_cells} cells and {len(cells) - n_cells} artefacts, see preview.png")


def simulate_brain(
    shape: tuple[int, int, int] = (96, 384, 384),
    n_cells: int = 400,
    seed: int = 0,
    factors: Mapping[str, float] = MappingProxyType({}),
) -> tuple[npt.NDArray[np.uint16], Cells]:
    """Simulate a piece of a brain with known cells and artefacts.

    Parameters
    ----------
    shape
        z y x in voxels of 5×1×1 µm, at least one cuboid (20, 50, 50).
    n_cells
        Number of cells; about 1.7 times as many artefacts come with them.
    seed
        Decides everything; the same seed gives the same bytes.
    factors
        Of what is usual, see `cubeclf_core.simulate_tissue.altered`.

    Returns
    -------
    brain : numpy.ndarray
        Shape (2, z, y, x), uint16: signal and background channel.
    cells : Cells
        All candidates, whole voxels inside the volume, jittered by about 2 µm as a detector's
        are: artefacts (type 1) first, then cells (type 2), the order of a cells XML.

    Raises
    ------
    InputError
        If the shape is smaller than a cuboid, or there is no cell, or no room for all.
    """
    if seed < 0:
        raise InputError(f"the seed is {seed}; expected 0 or more")
    traits = altered(draw_traits(seed, list(ARTEFACTS.values())), factors)
    _check_room(shape, n_cells, traits)
    kinds = _kinds(n_cells, traits)
    depth = depth_below_edge_um(seed, shape, traits.outside)
    light = autofluorescence(seed, depth, traits)
    vessels = draw_vessels(seed, shape, traits.vessels_per_mm3)
    add_vessels(vessels, light)
    channels = [blur(channel, traits.blur_um) for channel in light]
    positions = _place(seed, kinds, depth, vessels)
    _add_objects(seed, kinds, positions, channels, depth, vessels, traits)
    sheet = stripes(seed, shape, traits.stripes)
    pictures = [
        photograph(seed, name, channel * sheet, traits)
        for name, channel in zip(("signal", "background"), channels, strict=True)
    ]
    return np.stack(pictures), _candidates(seed, kinds, positions, pictures[0])


def _check_room(shape: tuple[int, int, int], n_cells: int, traits: Traits) -> None:
    if any(n < least for n, least in zip(shape, SMALLEST, strict=True)):
        raise InputError(f"the shape is {shape}; expected at least one cuboid, {SMALLEST} voxels")
    if n_cells < 1:
        raise InputError(f"the number of cells is {n_cells}; expected at least 1")
    tissue_um3 = float(np.prod(shape) * np.prod(VOXEL_SIZE_UM)) * (1 - traits.outside)
    most = int(tissue_um3 / ROOM_UM3 * (1 - traits.noncell_share))
    if n_cells > most:
        raise InputError(
            f"{n_cells} cells are too many for the tissue in {shape} voxels; ask for at most {most}"
        )


def _kinds(n_cells: int, traits: Traits) -> list[str]:
    """List what is to be placed, cells first and the spots of nothing last."""
    n_artefacts = max(round(n_cells * traits.noncell_share / (1 - traits.noncell_share)), 1)
    edges = np.rint(n_artefacts * np.cumsum((0, *traits.artefact_mix))).astype(int)
    artefacts = np.repeat(list(ARTEFACTS), np.diff(edges)).tolist()
    return ["cell"] * n_cells + artefacts


def _place(seed: int, kinds: Sequence[str], depth_um: Floats, vessels: list[Vessel]) -> Points:
    """Find a place in the tissue for every object, shape (n, 3), z y x in voxels."""
    rng = generator(seed, "places")
    size_um = np.multiply(depth_um.shape, VOXEL_SIZE_UM) - VOXEL_SIZE_UM
    on_vessels = np.concatenate([vessel.path_um for vessel in vessels if vessel.light > 0])
    n_clusters = 1 + len(kinds) // 25
    clusters = {whose: rng.uniform(0, size_um, (n_clusters, 3)) for whose in ("cell", "artefact")}
    placed = np.empty((len(kinds), 3))
    for i, kind in enumerate(kinds):
        for attempt in range(ATTEMPTS):
            at = _propose(rng, kind, size_um, clusters, on_vessels)
            patience = 1 - attempt / ATTEMPTS  # they crowd where there is little room
            if _fits(at, kind, placed[:i], size_um, depth_um, patience):
                break
        else:
            raise InputError(f"no room for all {len(kinds)} cells and artefacts; ask for fewer")
        placed[i] = at
    return placed / VOXEL_SIZE_UM


def _fits(
    at_um: Points,
    kind: str,
    placed_um: Points,
    size_um: Points,
    depth_um: Floats,
    patience: float,
) -> bool:
    """Say whether a place is in the volume, in the right depth of tissue and not yet taken."""
    if not ((at_um >= 0) & (at_um <= size_um)).all():
        return False
    depth = depth_um[tuple(np.rint(at_um / VOXEL_SIZE_UM).astype(int))]
    at_edge = kind == "edge" and patience > 0.5
    right_depth = 0 < depth < 10 if at_edge else depth > 8
    spacing = patience * SPACING_UM.get(kind, ARTEFACT_SPACING_UM)
    return bool(right_depth and (((placed_um - at_um) ** 2).sum(axis=1) >= spacing**2).all())


def _propose(
    rng: np.random.Generator,
    kind: str,
    size_um: Points,
    clusters: dict[str, Points],
    on_vessels: Points,
) -> Points:
    """Propose one place in µm: on a vessel, in a cluster, or anywhere."""
    if kind == "vessel" and rng.random() < 0.9:
        return np.asarray(rng.choice(on_vessels))
    if kind not in ("edge", NOTHING) and rng.random() < 0.5:
        centres = clusters["cell" if kind == "cell" else "artefact"]
        return np.asarray(rng.normal(rng.choice(centres), 28.0))
    return rng.uniform(0, size_um)


def _add_objects(
    seed: int,
    kinds: Sequence[str],
    positions: Points,
    channels: Sequence[Floats],
    depth_um: Floats,
    vessels: list[Vessel],
    traits: Traits,
) -> None:
    """Draw all objects into the channels, in place."""
    rng = generator(seed, "objects")
    signal, background = traits.autofluorescence
    with progress("drawing", len(kinds), unit="objects") as advance:
        for kind, position in zip(kinds, positions, strict=True):
            advance()
            if kind == NOTHING:
                continue
            thing = DRAW[kind](rng, _surroundings(position, depth_um, vessels, traits))
            level = traits.cell_level * (1.0 if kind == "cell" else traits.artefact_level)
            brightness = level * rng.lognormal(0, 0.5)
            patch = (brightness * thing.patch).astype(np.float32)
            add_patch(channels[0], patch, position)
            add_patch(
                channels[1], patch * np.float32(thing.background * background / signal), position
            )


def _surroundings(
    position: Points, depth_um: Floats, vessels: list[Vessel], traits: Traits
) -> Surroundings:
    low = np.maximum(np.rint(position).astype(int) - 3, 0)
    box = depth_um[tuple(slice(a, a + 7) for a in low)]
    normal = np.array([np.mean(g) for g in np.gradient(box, *VOXEL_SIZE_UM)], np.float64)
    distances = [
        np.linalg.norm(v.path_um - position * VOXEL_SIZE_UM, axis=1) if v.light > 0 else np.inf
        for v in vessels
    ]
    nearest = int(np.argmin([np.min(d) for d in distances]))
    path, radius = vessel_at(vessels[nearest], int(np.argmin(distances[nearest])))
    return Surroundings(
        blur_um=traits.blur_um,
        normal=normal / max(float(np.linalg.norm(normal)), 1e-6),
        path_um=path,
        radius_um=radius,
    )


def _candidates(
    seed: int, kinds: Sequence[str], positions: Points, signal: npt.NDArray[np.uint16]
) -> Cells:
    """Report the positions as a detector would: jittered, and nothing where it looks bright."""
    rng = generator(seed, "detector")
    found = positions + rng.normal(0, 1.5, positions.shape) / np.array([3.0, 1.0, 1.0])
    for i, kind in enumerate(kinds):
        if kind == NOTHING:
            found[i] = _brightest_nearby(signal, positions[i])
    found = np.clip(np.rint(found), 0, np.array(signal.shape) - 1)
    types = np.where(np.array(kinds) == "cell", CELL, NO_CELL)
    order = np.argsort(types, kind="stable")
    return Cells(found[order], types[order].astype(np.int64))


def _brightest_nearby(signal: npt.NDArray[np.uint16], position: Points) -> Points:
    """Find the brightest voxel, lightly smoothed, within 1 plane and 6 voxels."""
    low = np.maximum(np.rint(position).astype(int) - (1, 6, 6), 0)
    box = signal[tuple(slice(a, a + n) for a, n in zip(low, (3, 13, 13), strict=True))]
    smooth = ndimage.uniform_filter(box.astype(np.float32), (1, 3, 3))
    return np.asarray(low + np.unravel_index(np.argmax(smooth), smooth.shape), np.float64)


def draw_preview(brain: npt.NDArray[np.uint16], cells: Cells) -> Figure:
    """Draw the maximum projections of both channels, with cells and artefacts circled.

    Parameters
    ----------
    brain
        Shape (2, z, y, x).
    cells
        Positions and types.

    Returns
    -------
    matplotlib.figure.Figure
        Both channels as they are above, the candidates circled below.
    """
    figure = Figure((13, 13 * brain.shape[2] / brain.shape[3]), layout="constrained")
    panels = figure.subplots(2, 2)
    for column, (channel, name) in enumerate(zip(brain, ("signal", "background"), strict=True)):
        projection = channel.max(axis=0)
        low, high = np.percentile(projection, (0.5, 99.7))
        for row in range(2):
            panels[row, column].imshow(projection, cmap="gray", vmin=low, vmax=high)
            panels[row, column].set_axis_off()
        panels[0, column].set_title(name)
        for kind, label, colour in ((CELL, "cell", "cyan"), (NO_CELL, "artefact", "orange")):
            _, y, x = cells.positions[cells.types == kind].T
            panels[1, column].scatter(
                x, y, s=40, facecolors="none", edgecolors=colour, linewidths=0.8, label=label
            )
    figure.legend(*panels[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
