"""The tissue and the microscope of a simulated brain: autofluorescence, vessels, stripes, camera.

Light is counted in photons a voxel until the camera turns it into grey values.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

VOXEL_SIZE_UM = (5.0, 1.0, 1.0)

Floats = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
Shape = tuple[int, int, int]


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Make the random generator for one purpose, so that no part's draws shift another's."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


@dataclass(frozen=True)
class Traits:
    """What is particular to one brain and its imaging; see `draw_traits`."""

    autofluorescence: tuple[float, float]  # photons a voxel, signal and background channel
    unevenness: float  # standard deviation of the log of the autofluorescence
    cell_level: float  # photons at the peak of a median cell
    artefact_level: float  # median artefact, relative to the median cell
    noncell_share: float  # among the candidates
    blur_um: tuple[float, float, float]  # standard deviation, z y x
    stripes: float  # relative amplitude
    outside: float  # share of the volume beyond the tissue's edge
    vessels_per_mm3: float
    gain: float  # grey values a photon
    offset: float  # grey values of a dark voxel
    read_noise: float  # grey values
    artefact_mix: tuple[float, ...]  # shares of the kinds, see simulate_objects.ARTEFACTS


def draw_traits(seed: int, mix: Sequence[float]) -> Traits:
    """Draw one brain's traits around values common to all brains.

    Parameters
    ----------
    seed
        The brain.
    mix
        Mean shares of the kinds of artefact.
    """
    rng = generator(seed, "traits")
    autofluorescence = rng.uniform(22, 36)
    blur_xy = rng.uniform(1.0, 1.5)
    return Traits(
        autofluorescence=(autofluorescence, autofluorescence * rng.uniform(1.0, 1.6)),
        unevenness=rng.uniform(0.16, 0.26),
        cell_level=autofluorescence * rng.uniform(1.0, 1.4),
        artefact_level=rng.uniform(0.75, 0.9),
        noncell_share=rng.uniform(0.60, 0.65),
        blur_um=(rng.uniform(3.5, 5.0), blur_xy, blur_xy),
        stripes=rng.uniform(0.03, 0.08),
        outside=rng.uniform(0.06, 0.16),
        vessels_per_mm3=rng.uniform(250, 450),
        gain=rng.uniform(5, 9),
        offset=rng.uniform(90, 120),
        read_noise=rng.uniform(4, 10),
        artefact_mix=tuple(rng.dirichlet(60 * np.asarray(mix)).tolist()),
    )


def altered(traits: Traits, factors: Mapping[str, float]) -> Traits:
    """Make a brain unlike others.

    Parameters
    ----------
    traits
        What is drawn for its seed.
    factors
        Of `cubeclf_core.config.TRAITS`: brightness of cells and artefacts, blur, artefacts for each
        cell, noise of the camera, stripes.
    """
    if not factors:
        return traits
    artefacts = factors.get("artefacts", 1.0) * traits.noncell_share / (1 - traits.noncell_share)
    z, y, x = (factors.get("blur", 1.0) * um for um in traits.blur_um)
    return replace(
        traits,
        cell_level=factors.get("brightness", 1.0) * traits.cell_level,
        blur_um=(z, y, x),
        noncell_share=artefacts / (1 + artefacts),
        read_noise=factors.get("noise", 1.0) * traits.read_noise,
        stripes=factors.get("stripes", 1.0) * traits.stripes,
    )


def smooth_noise(rng: np.random.Generator, shape: Shape, scale_um: Sequence[float]) -> Floats:
    """Interpolate white noise from a coarse grid by cubic B-splines.

    Parameters
    ----------
    rng
        Source of the noise.
    shape
        z y x, in voxels of `VOXEL_SIZE_UM`.
    scale_um
        Spacing of the coarse grid, z y x.

    Returns
    -------
    numpy.ndarray
        Shape `shape`, float32, mean about 0 and standard deviation about 1.
    """
    bases = [
        _spline_basis(n, max(scale / voxel, 1.0))
        for n, scale, voxel in zip(shape, scale_um, VOXEL_SIZE_UM, strict=True)
    ]
    noise = rng.standard_normal([basis.shape[1] for basis in bases], dtype=np.float32)
    along_z, along_y, along_x = bases
    noise = np.tensordot(along_z, noise, 1)
    return np.asarray(along_y @ noise @ along_x.T)


def _spline_basis(n: int, spacing: float) -> Floats:
    """Give the weights of coarse nodes in each of n voxels, shape (n, nodes), rows of norm 1."""
    nodes = int(np.ceil((n - 1) / spacing)) + 4
    t = np.abs(np.arange(n)[:, None] / spacing + 1.5 - np.arange(nodes))
    spline = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6)
    return np.asarray(spline / np.linalg.norm(spline, axis=1, keepdims=True), np.float32)


def depth_below_edge_um(seed: int, shape: Shape, outside: float) -> Floats:
    """Give each voxel's rough depth below the tissue's surface.

    Parameters
    ----------
    seed
        The brain.
    shape
        z y x.
    outside
        Share of the voxels that lie beyond the surface.

    Returns
    -------
    numpy.ndarray
        Shape `shape`, float32, µm; negative outside the tissue.
    """
    rng = generator(seed, "edge")
    angle = rng.uniform(0, 2 * np.pi)
    z, y, x = ((np.arange(n) - n / 2) * size for n, size in zip(shape, VOXEL_SIZE_UM, strict=True))
    inwards = np.sin(angle) * y[:, None] + np.cos(angle) * x
    sideways = np.cos(angle) * y[:, None] - np.sin(angle) * x
    section = (inwards - sideways**2 / rng.uniform(700, 1500)).astype(np.float32)
    depth = 6 * smooth_noise(rng, shape, (80, 60, 60))
    depth += section + (rng.uniform(-0.25, 0.25) * z).astype(np.float32)[:, None, None]
    depth -= np.quantile(depth[::4, ::8, ::8], outside)
    return depth


def autofluorescence(seed: int, depth_um: Floats, traits: Traits) -> tuple[Floats, Floats]:
    """Draw the tissue's own light: gradients, regions and texture, mostly shared by both channels.

    Returns
    -------
    tuple of numpy.ndarray
        Signal and background channel, each z y x, float32, photons a voxel before blurring.
    """
    rng = generator(seed, "autofluorescence")
    shape = (depth_um.shape[0], depth_um.shape[1], depth_um.shape[2])
    shared = np.zeros(shape, np.float32)
    for scale_um, weight in ((250, 0.8), (90, 0.45), (30, 0.25), (10, 0.3)):
        shared += traits.unevenness * weight * smooth_noise(rng, shape, (scale_um,) * 3)
    shared += 0.4 * np.exp(-np.abs(depth_um - 6) / 8)  # the pia is bright
    tissue = np.clip(depth_um / 4 + 0.5, 0.03, 1)
    channels = []
    for level in traits.autofluorescence:
        own = shared + 0.05 * smooth_noise(rng, shape, (40, 40, 40))
        own += 0.2 * rng.standard_normal(shape, dtype=np.float32)  # neuropil
        np.exp(own, out=own)
        own *= level * tissue
        channels.append(own)
    return channels[0], channels[1]


@dataclass(frozen=True)
class Vessel:
    """A tube through the tissue.

    Attributes
    ----------
    path_um
        Shape (n, 3), z y x, points about 8 µm apart.
    radius_um
        Of the lumen.
    light
        What the vessel adds to the autofluorescence, relative to it; negative is dark.
    """

    path_um: Points
    radius_um: float
    light: float


def draw_vessels(seed: int, shape: Shape, per_mm3: float) -> list[Vessel]:
    """Draw curving vessels, at least two of them bright."""
    rng = generator(seed, "vessels")
    size_um = np.multiply(shape, VOXEL_SIZE_UM)
    count = 4 + round(per_mm3 * float(np.prod(size_um)) / 1e9)
    vessels = []
    for number in range(count):
        steps = rng.integers(15, 50)
        turns = ndimage.gaussian_filter1d(rng.standard_normal((steps, 3)), 6, axis=0) * 3
        heading = rng.standard_normal(3) + np.cumsum(turns, axis=0) * 0.5
        heading /= np.linalg.norm(heading, axis=1, keepdims=True)
        path = np.cumsum(8 * heading, axis=0)
        path += rng.uniform(0, size_um) - path[steps // 2]
        bright = number % 2 == 0
        light = rng.uniform(0.1, 0.5) if bright else rng.uniform(-0.7, -0.35)
        vessels.append(Vessel(path, rng.uniform(2, 4) if bright else rng.uniform(3, 9), light))
    return vessels


def add_vessels(vessels: Sequence[Vessel], channels: Sequence[Floats]) -> None:
    """Brighten or darken the channels, in place, along the vessels."""
    for vessel in vessels:
        mask = np.zeros(channels[0].shape, np.float32)
        where = _paint_tube(mask, vessel)
        for channel in channels:
            channel[where] *= 1 + vessel.light * mask[where]


def _paint_tube(mask: Floats, vessel: Vessel) -> tuple[slice, ...]:
    """Set the mask to 1 inside a vessel, and give the box around it."""
    reach = vessel.radius_um + 6
    box = box_around(vessel.path_um.min(0) - reach, vessel.path_um.max(0) + reach, mask.shape)
    for start, end in itertools.pairwise(vessel.path_um):
        part = box_around(
            np.minimum(start, end) - reach, np.maximum(start, end) + reach, mask.shape
        )
        distance = distance_to_segment_um(grid_um(part), start, end)
        np.maximum(mask[part], np.clip(vessel.radius_um + 0.5 - distance, 0, 1), out=mask[part])
    return box


def box_around(low_um: Points, high_um: Points, shape: Sequence[int]) -> tuple[slice, ...]:
    """Give the voxels between two corners, cropped to the volume; may be empty."""
    low = np.floor(low_um / VOXEL_SIZE_UM).astype(int)
    high = np.ceil(high_um / VOXEL_SIZE_UM).astype(int) + 1
    return tuple(
        slice(min(max(a, 0), n), min(max(b, 0), n))
        for a, b, n in zip(low.tolist(), high.tolist(), shape, strict=True)
    )


def grid_um(box: tuple[slice, ...]) -> Floats:
    """Give the positions of a box's voxels, shape (3, z, y, x), µm."""
    axes = [
        np.arange(part.start, part.stop, dtype=np.float32) * np.float32(size)
        for part, size in zip(box, VOXEL_SIZE_UM, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def distance_to_segment_um(grid: Floats, start: Points, end: Points) -> Floats:
    """Give the distance of each position (3, z, y, x) from a straight piece, shape (z, y, x)."""
    piece = (end - start).astype(np.float32)
    offset = grid - start.astype(np.float32)[:, None, None, None]
    along = np.tensordot(piece, offset, 1) / max(float(piece @ piece), 1e-6)
    offset -= piece[:, None, None, None] * np.clip(along, 0, 1)
    return np.asarray(np.sqrt(np.einsum("izyx,izyx->zyx", offset, offset)))


def blur(channel: Floats, blur_um: Sequence[float]) -> Floats:
    """Blur by the point spread: a Gaussian of the given standard deviations, z y x, in µm."""
    sigma = np.divide(blur_um, VOXEL_SIZE_UM)
    return np.asarray(ndimage.gaussian_filter(channel, sigma, mode="nearest", truncate=3.0))


def stripes(seed: int, shape: Shape, strength: float) -> Floats:
    """Draw the factor by which a light sheet along x is brighter or darker, shape z y x."""
    rng = generator(seed, "stripes")
    lines = smooth_noise(rng, shape, (15, 4, 400)) + smooth_noise(rng, shape, (40, 14, 800))
    lines += 0.3 * rng.standard_normal((shape[0], 1, 1), dtype=np.float32)
    return np.asarray(np.exp(strength * lines))


def photograph(seed: int, name: str, photons: Floats, traits: Traits) -> npt.NDArray[np.uint16]:
    """Take the camera's picture: photon noise, gain, offset, read noise.

    Parameters
    ----------
    seed, name
        The brain and the channel; they decide the noise.
    photons
        Expected photons, z y x.
    traits
        Of the camera.

    Returns
    -------
    numpy.ndarray
        Grey values, z y x.
    """
    rng = generator(seed, f"camera {name}")
    grey = np.empty(photons.shape, np.uint16)
    for plane, expected in zip(grey, photons, strict=True):
        noise = traits.read_noise * rng.standard_normal(expected.shape, dtype=np.float32)
        values = traits.offset + traits.gain * rng.poisson(expected) + noise
        plane[:] = np.clip(np.rint(values), 0, np.iinfo(np.uint16).max)
    return grey
