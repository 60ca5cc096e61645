"""What lies in a simulated tissue: cells, and artefacts that a detector takes for cells.

Each kind is drawn alone in a small patch around its centre, blurred as the microscope does, and
scaled to a peak of 1, so that brightness is chosen apart from shape. What tells a cell from an
artefact is size, shape, texture and the background channel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cubeclf_core.simulate_tissue import (
    VOXEL_SIZE_UM,
    Floats,
    Points,
    Vessel,
    blur,
    box_around,
    distance_to_segment_um,
    grid_um,
)

Rng = np.random.Generator


@dataclass(frozen=True)
class Surroundings:
    """What an object needs to know of its place: the blur, the surface's normal, the vessel."""

    blur_um: tuple[float, float, float]
    normal: Points
    path_um: Points | None = None  # of the vessel, relative to the object
    radius_um: float = 0.0


@dataclass(frozen=True)
class Thing:
    """A drawn object.

    Attributes
    ----------
    patch
        z y x, odd sizes, centred on the object; its peak is 1.
    background
        How strongly the background channel shows it, relative to the signal channel.
    """

    patch: Floats
    background: float


def draw_cell(rng: Rng, place: Surroundings) -> Thing:
    """Draw a soma of 8–16 µm, some with short processes, some with a dark nucleus."""
    grid = _patch_grid(rng, 24)
    radius = rng.uniform(4.0, 8.0)
    axes = radius * rng.uniform(0.85, 1.15, 3)
    patch = _lump(rng, grid, axes, roughness=0.12)
    kind = rng.choice(["soma", "processes", "ring"], p=[0.45, 0.35, 0.2])
    if kind == "ring":
        patch -= rng.uniform(0.5, 0.9) * _lump(rng, grid, 0.55 * axes, roughness=0.05)
    if kind == "processes":
        for _ in range(rng.integers(1, 5)):
            tip = _direction(rng) * (radius + rng.uniform(4, 14))
            distance = distance_to_segment_um(grid, np.zeros(3), tip)
            process = rng.uniform(0.3, 0.6) * np.clip(rng.uniform(1.2, 2.2) - distance, 0, 1)
            patch = np.maximum(patch, process)
    patch *= 1 + 0.15 * rng.standard_normal(patch.shape, dtype=np.float32)
    return _finish(patch, place, background=rng.uniform(0.0, 0.25))


def draw_speck(rng: Rng, place: Surroundings) -> Thing:
    """Draw a grain of debris, smaller than any cell."""
    grid = _patch_grid(rng, 14)
    patch = _lump(rng, grid, rng.uniform(0.7, 3.0) * rng.uniform(0.7, 1.4, 3), roughness=0.2)
    return _finish(patch, place, background=_sometimes(rng, 0.4))


def draw_clump(rng: Rng, place: Surroundings) -> Thing:
    """Draw debris in several sharp-edged pieces, together larger than a cell."""
    grid = _patch_grid(rng, 32)
    patch = _lump(rng, grid, rng.uniform(2, 6, 3), roughness=0.35)
    spread = rng.uniform(5, 13)
    for _ in range(rng.integers(2, 8)):
        shifted = grid - (rng.standard_normal(3) * spread)[:, None, None, None]
        piece = _lump(rng, shifted.astype(np.float32), rng.uniform(1.5, 7, 3), roughness=0.35)
        patch = np.maximum(patch, rng.uniform(0.4, 1.0) * piece)
    return _finish(patch, place, background=_sometimes(rng, 0.4))


def draw_vessel_piece(rng: Rng, place: Surroundings) -> Thing:
    """Draw a stretch of a bright vessel, or a point where it branches."""
    assert place.path_um is not None
    grid = _patch_grid(rng, 34)
    distance = np.full(grid.shape[1:], np.inf, np.float32)
    near = np.linalg.norm(place.path_um, axis=1) < 42
    path = place.path_um[near]
    for start, end in itertools.pairwise(path):
        distance = np.minimum(distance, distance_to_segment_um(grid, start, end))
    if rng.random() < 0.5:
        branch = distance_to_segment_um(grid, np.zeros(3), 40 * _direction(rng))
        distance = np.minimum(distance, branch)
    fade = np.exp(-np.einsum("izyx,izyx->zyx", grid, grid) / (2 * rng.uniform(6, 16) ** 2))
    patch = np.clip(place.radius_um + 0.5 - distance, 0, 1) * fade
    return _finish(patch, place, background=rng.uniform(0.0, 0.6))


def draw_autofluorescent(rng: Rng, place: Surroundings) -> Thing:
    """Draw a blob that shines in both channels: diffuse, or granular as lipofuscin."""
    grid = _patch_grid(rng, 24)
    if rng.random() < 0.5:
        scaled = grid / (rng.uniform(3, 7) * rng.uniform(0.8, 1.3, (3, 1, 1, 1)))
        patch = np.exp(-np.einsum("izyx,izyx->zyx", scaled, scaled) / 2).astype(np.float32)
    else:
        patch = np.zeros(grid.shape[1:], np.float32)
        for _ in range(rng.integers(5, 13)):
            shifted = grid - (rng.standard_normal(3) * 3.0)[:, None, None, None]
            grain = _lump(rng, shifted.astype(np.float32), rng.uniform(1, 2.2, 3), roughness=0.1)
            patch = np.maximum(patch, rng.uniform(0.5, 1.0) * grain)
    return _finish(patch, place, background=rng.uniform(0.15, 1.1))


def draw_edge_bump(rng: Rng, place: Surroundings) -> Thing:
    """Draw a thickening of the tissue's surface, flat along it."""
    grid = _patch_grid(rng, 30)
    height = np.tensordot(np.float32(place.normal), grid, 1)
    squared = np.einsum("izyx,izyx->zyx", grid, grid) - height**2
    flat = height**2 / rng.uniform(2, 4.5) ** 2 + squared / rng.uniform(8, 15) ** 2
    texture = 1 + 0.4 * rng.standard_normal(flat.shape, dtype=np.float32)
    patch = np.exp(-flat).astype(np.float32) * np.clip(texture, 0, None)
    return _finish(patch, place, background=rng.uniform(0.4, 1.1))


def draw_streak(rng: Rng, place: Surroundings) -> Thing:
    """Draw a short line in one single plane, a fault of the scan."""
    grid = _patch_grid(rng, 26)
    tilt = rng.normal(0, 0.15)
    across = np.abs(grid[1, 0] - tilt * grid[2, 0]) / rng.uniform(1.2, 2.5)
    along = np.abs(grid[2, 0]) / rng.uniform(5, 15)
    patch = np.zeros(grid.shape[1:], np.float32)
    patch[len(patch) // 2] = np.exp(-(across**2) / 2 - along**4)
    return Thing(patch / patch.max(), background=_sometimes(rng, 0.3))


# Mean share of each kind among the artefacts; "nothing" is a bright spot of noise and texture.
NOTHING = "nothing"
ARTEFACTS: dict[str, float] = {
    "speck": 0.18,
    "clump": 0.14,
    "vessel": 0.17,
    "autofluorescent": 0.18,
    "edge": 0.08,
    "streak": 0.09,
    NOTHING: 0.16,
}
DRAW: dict[str, Callable[[Rng, Surroundings], Thing]] = {
    "cell": draw_cell,
    "speck": draw_speck,
    "clump": draw_clump,
    "vessel": draw_vessel_piece,
    "autofluorescent": draw_autofluorescent,
    "edge": draw_edge_bump,
    "streak": draw_streak,
}


def vessel_at(vessel: Vessel, point: int) -> tuple[Points, float]:
    """Give a vessel's path relative to one of its points, and its radius."""
    return vessel.path_um - vessel.path_um[point], vessel.radius_um


def add_patch(volume: Floats, patch: Floats, centre_vox: Points) -> None:
    """Add a patch to the volume, in place, around a voxel; what falls outside is cut off."""
    start = np.rint(centre_vox).astype(int) - np.array(patch.shape) // 2
    low = np.maximum(start, 0)
    high = np.minimum(start + patch.shape, volume.shape)
    inside = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    part = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
    volume[inside] += patch[part]


def _patch_grid(rng: Rng, reach_um: float) -> Floats:
    """Give positions in µm around a centre that lies off the voxel grid, shape (3, z, y, x)."""
    half = np.ceil(reach_um / np.array(VOXEL_SIZE_UM)) * VOXEL_SIZE_UM
    box = box_around(np.zeros(3), 2 * half, (1000, 1000, 1000))
    centre = half + rng.uniform(-0.5, 0.5, 3) * VOXEL_SIZE_UM
    return grid_um(box) - centre.astype(np.float32)[:, None, None, None]


def _lump(rng: Rng, grid: Floats, semi_axes_um: Points, roughness: float) -> Floats:
    """Draw a turned ellipsoid with an uneven surface: 1 inside, 0 outside, shape (z, y, x)."""
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0] / semi_axes_um[:, None]
    local = np.tensordot(np.float32(turn), grid, 1)
    distance = np.sqrt(np.einsum("izyx,izyx->zyx", local, local)) + np.float32(1e-3)
    surface = np.ones_like(distance)
    for wave in rng.standard_normal((4, 3)) * 2.5:
        phase = np.tensordot(np.float32(wave), local, 1) / distance
        surface += np.float32(roughness / 1.5) * np.cos(phase + np.float32(rng.uniform(0, 6.28)))
    softness = np.float32(np.mean(semi_axes_um))
    return np.asarray(np.clip((surface - distance) * softness + 0.5, 0, 1))


def _finish(patch: Floats, place: Surroundings, background: float) -> Thing:
    blurred = blur(patch, place.blur_um)
    return Thing(blurred / max(float(blurred.max()), 1e-6), background)


def _direction(rng: Rng) -> Points:
    vector = rng.standard_normal(3)
    return np.asarray(vector / np.linalg.norm(vector))


def _sometimes(rng: Rng, share: float) -> float:
    """Give a strength in the background channel for a share of the objects, little otherwise."""
    return rng.uniform(0.3, 1.0) if rng.random() < share else rng.uniform(0.0, 0.25)
