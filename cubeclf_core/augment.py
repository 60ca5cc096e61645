"""Batched augmentation on the device, in the words of the microscope.

Every function gives new cuboids, float32, b c z y x, of raw counts where it does not say otherwise.
Every random choice comes from `Draws`, which has a sequence for each cuboid. Geometry keeps what
the microscope fixes: z is never exchanged with y or x, since voxels and blur differ between them.
Strengths are shares of what the channel itself shows, so that they mean the same for any camera.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from cubeclf_core.axes import Size3
from cubeclf_core.config import AugmentConfig
from cubeclf_core.draws import Draws, send

Cuboids = Float[Tensor, "b c z y x"]
_VOXELS = (2, 3, 4)  # the dimensions of one channel
_TINY = 1e-6
_AXIAL = 3.0  # how much longer along z the point spread is
_STRIPE_UM = 4.0  # between the control points of stripes


def change_intensities(
    cuboids: Cuboids, draws: Draws, config: AugmentConfig, voxel_size_um: Size3
) -> Cuboids:
    """Change intensities as another microscope might have, in the order in which light meets it.

    Label and tissue bend the scale (`bend`), optics blur, the light sheet throws stripes, and the
    camera adds noise. Its gain is left out here: noise is relative to the channel and normalising
    takes it away, so that it would change nothing; see `rescale_channels`, after it. Its offset is
    left out because it changes contrast, by which cells are known.

    Parameters
    ----------
    cuboids
        Raw counts.
    draws
        Source of the choices.
    config
        How strong; with zero for all, the cuboids come back as they are.
    voxel_size_um
        Of the cuboids, z y x.
    """
    blurred = partial(blur, sigma_um=config.blur_um, voxel_size_um=voxel_size_um)
    striped = partial(stripes, voxel_size_um=voxel_size_um)
    if config.gamma:
        cuboids = bend(cuboids, draws.fork(0), gamma=config.gamma)
    cuboids = on_some(blurred, cuboids, draws.fork(1), config.blur)
    cuboids = on_some(striped, cuboids, draws.fork(2), config.stripes)
    if config.noise:
        cuboids = photon_noise(cuboids, draws.fork(3), noise=config.noise)
    return cuboids


def on_some(
    change: Callable[[Cuboids, Draws], Cuboids], cuboids: Cuboids, draws: Draws, probability: float
) -> Cuboids:
    """Change each cuboid with a probability; the others cost nothing."""
    which = draws.fork(0, host=True).coin(probability).nonzero()[:, 0]
    if not len(which):
        return cuboids
    there = send(which, cuboids.device)
    return cuboids.index_copy(0, there, change(cuboids[there], draws.fork(1).take(which)))


def flip_and_rotate(
    cuboids: Cuboids, draws: Draws, *, voxel_size_um: Size3, along_z: float = 0.5
) -> Cuboids:
    """Flip each cuboid along z, y and x and transpose y with x, each with probability ½.

    These are the 16 symmetries of a cuboid whose y and x are alike in voxels and in µm, or the 8 of
    any other; values are only moved.

    Parameters
    ----------
    cuboids
        Values are only moved.
    draws
        Source of the choices.
    voxel_size_um
        z y x, of the cuboids.
    along_z
        Another probability to flip along z, whose ends may differ: light comes from one.
    """
    drawn = draws.fork(0, host=True).uniform() * len(_in_plane(cuboids, voxel_size_um))
    turned = drawn.long()
    symmetry = 2 * turned + (drawn - turned >= 1 - along_z)
    moved = torch.empty_like(cuboids)
    for one in symmetry.unique().tolist():
        which = send((symmetry == one).nonzero()[:, 0], cuboids.device)
        moved[which] = _moved(cuboids[which], one)
    return moved


def turns(cuboids: Cuboids, n: int, *, voxel_size_um: Size3) -> list[Cuboids]:
    """Turn cuboids in n ways: as they are, then others in the plane, then these flipped along z.

    Parameters
    ----------
    cuboids
        Values are only moved.
    n
        At least 1; more than there are symmetries are as many as there are.
    voxel_size_um
        z y x, of the cuboids.

    Returns
    -------
    list of Tensor
        Each shaped as the cuboids; the first half, or one more, are not flipped along z.
    """
    plane = _in_plane(cuboids, voxel_size_um)
    kept = plane[: -(-n // 2)]
    flipped = [one | 1 for one in plane[: min(n, 2 * len(plane)) - len(kept)]]
    return [_moved(cuboids, one) for one in (*kept, *flipped)]


def _in_plane(cuboids: Cuboids, voxel_size_um: Size3) -> tuple[int, ...]:
    """Symmetries that leave z as it is: bits for flips along y (2) and x (4), and to transpose (8).

    Half a turn comes after none, then quarters, so that few of them differ much.
    """
    square = cuboids.shape[3] == cuboids.shape[4] and voxel_size_um[1] == voxel_size_um[2]
    return (0, 6, 10, 12, 2, 4, 8, 14) if square else (0, 6, 2, 4)


def _moved(cuboids: Cuboids, symmetry: int) -> Cuboids:
    flipped = cuboids.flip([axis for bit, axis in enumerate(_VOXELS) if symmetry >> bit & 1])
    return flipped.transpose(3, 4) if symmetry >> 3 else flipped


def bend(cuboids: Cuboids, draws: Draws, *, gamma: float) -> Cuboids:
    """Bend the intensity scale of each channel by an exponent.

    Parameters
    ----------
    cuboids
        Raw counts.
    draws
        Source of the choices.
    gamma
        The exponent is drawn log-uniformly from e^±gamma, on counts scaled to the cuboid's range.
        The lowest and the highest count, and the order between them, stay.
    """
    low = cuboids.amin(_VOXELS, keepdim=True)
    span = (cuboids.amax(_VOXELS, keepdim=True) - low).clamp_min(_TINY)
    exponent = draws.uniform(cuboids.shape[1], 1, 1, 1, low=-gamma, high=gamma).exp()
    return (cuboids - low).div_(span).pow_(exponent).mul_(span).add_(low)


def blur(cuboids: Cuboids, draws: Draws, *, sigma_um: float, voxel_size_um: Size3) -> Cuboids:
    """Blur by a wider point spread: a Gaussian, thrice as long along z, as a light sheet's is.

    The Gaussian is the discrete one (Lindeberg, doi:10.1109/34.49051) under mirrored borders, whose
    weights are never negative, however narrow, and which keeps a constant and the sum of all
    counts.

    Parameters
    ----------
    cuboids
        Raw counts.
    draws
        Source of the choices.
    sigma_um
        The standard deviation in y and x is drawn from 0 to this.
    voxel_size_um
        Of the cuboids, z y x.
    """
    low = cuboids.amin(_VOXELS, keepdim=True)  # off, as tensor cores round what they multiply
    above = cuboids - low
    sigma = draws.uniform(high=sigma_um)
    sizes = zip(_VOXELS, (_AXIAL, 1.0, 1.0), voxel_size_um, strict=True)
    for axis, stretch, size in sizes:
        spread = _spread(cuboids.shape[axis], sigma * (stretch / size))
        above = torch.einsum("bczyx,bix->bczyi", above.transpose(axis, 4), spread)
        above = above.transpose(axis, 4)
    return above.add_(low)


def stripes(
    cuboids: Cuboids, draws: Draws, *, strength: float = 0.3, voxel_size_um: Size3
) -> Cuboids:
    """Brighten and darken the lines along which the light sheet came, all of y or all of x.

    What stands in the light's way throws a shadow along all of the cuboid; it changes slowly from
    plane to plane and is the same in all channels. The camera's offset, taken to be the lowest
    count, has no share in it.

    Parameters
    ----------
    cuboids
        Raw counts.
    draws
        Source of the choices.
    strength
        Light is multiplied by e^-strength to e^strength.
    voxel_size_um
        Of the cuboids, z y x.
    """
    depth, *across = cuboids.shape[2:]
    lines = []
    for n, size in zip(across, voxel_size_um[1:], strict=True):
        knots = draws.uniform(3, max(2, round(n * size / _STRIPE_UM)), low=-strength, high=strength)
        weights = hats(3, depth, draws.device), hats(knots.shape[2], n, draws.device)
        lines.append(torch.einsum("bij,iz,jw->bzw", knots, *weights).exp())
    along_x = draws.coin(0.5, 1, 1, 1, 1)
    light = torch.where(along_x, lines[0][:, None, :, :, None], lines[1][:, None, :, None, :])
    low = cuboids.amin(_VOXELS, keepdim=True)
    return (cuboids - low).mul_(light).add_(low)


def photon_noise(cuboids: Cuboids, draws: Draws, *, noise: float) -> Cuboids:
    """Add the noise of photons, which grows with the signal, and of reading, which does not.

    Poisson-Gaussian noise (Foi et al., doi:10.1109/TIP.2008.2001399), of variance a·s + b at a
    signal s above the lowest count, in its usual approximation: all of it is drawn as Gaussian,
    which a Poisson distribution of a dozen photons or more nearly is. Counts are neither rounded
    nor cut off at zero, so that their mean stays.

    Parameters
    ----------
    cuboids
        Raw counts.
    draws
        Source of the choices.
    noise
        The standard deviation of the noise, over all of a channel, is drawn from 0 to this share of
        the channel's own; how much of its variance is due to photons is drawn too.
    """
    channels = (cuboids.shape[1], 1, 1, 1)
    low = cuboids.amin(_VOXELS, keepdim=True)
    signal = cuboids - low
    mean = signal.mean(_VOXELS, keepdim=True)
    voxels = signal.flatten(2)
    length = torch.linalg.vector_norm(voxels, dim=2)[:, :, None, None, None]
    own = (length.square() / voxels.shape[2] - mean.square()).clamp_min(0)
    variance = own * draws.uniform(*channels, high=noise).square()
    photons = draws.uniform(*channels)
    a, b = variance * photons / mean.clamp_min(_TINY), variance * (1 - photons)
    grain = draws.normal(*cuboids.shape[1:])
    return signal.mul_(a).add_(b).sqrt_().mul_(grain).add_(cuboids)


def drop_background(cuboids: Cuboids, draws: Draws, *, probability: float) -> Cuboids:
    """Blank all channels but the signal, at random, so that a network can do without them.

    Zero is what a missing channel is, in raw counts and normalised.
    """
    kept = torch.ones(cuboids.shape[:2], device=cuboids.device)
    kept[:, 1:] -= draws.coin(probability, 1).float()
    return cuboids * kept[:, :, None, None, None]


def rescale_channels(cuboids: Cuboids, draws: Draws, *, strength: float) -> Cuboids:
    """Give each channel another gain and offset, as DINO4Cells does with the gain.

    A cuboid's own mean and deviation, by which it is normalised, are also those of what happens
    to lie beside a cell: a vessel, a bright neighbour. So the scale of what a network sees wavers,
    and it should not matter (Doron et al., doi:10.1101/2023.06.16.545359).

    Parameters
    ----------
    cuboids
        Normalised. A constant channel, which is a missing one, stays as it is.
    draws
        Source of the choices.
    strength
        The gain is drawn log-uniformly from e^±strength, the offset from ±strength.
    """
    channels = (cuboids.shape[1], 1, 1, 1)
    gain = draws.uniform(*channels, low=-strength, high=strength).exp()
    offset = draws.uniform(*channels, low=-strength, high=strength)
    there = cuboids.amax(_VOXELS, keepdim=True) > cuboids.amin(_VOXELS, keepdim=True)
    return (cuboids * torch.where(there, gain, 1.0)).add_(offset * there)


def hats(knots: int, n: int, device: torch.device | str = "cpu") -> Float[Tensor, "{knots} {n}"]:
    """Weights of linear interpolation from evenly spaced knots to the middles of n voxels.

    The first and the last knot lie on the outer faces of the first and the last voxel.
    """
    at = (torch.arange(n, device=device) + 0.5) * ((knots - 1) / n)
    return (1 - (at - torch.arange(knots, device=device)[:, None]).abs()).clamp_min(0)


def _spread(n: int, sigma: Float[Tensor, " b"]) -> Float[Tensor, "b {n} {n}"]:
    """Matrices that blur n voxels by a discrete Gaussian of sigma voxels, mirrored at both ends.

    In cosines, which are what a mirrored signal is made of, blurring is a factor for each.
    """
    k = torch.arange(n, device=sigma.device)
    cosines = torch.cos(math.pi / n * k[:, None] * (k + 0.5)) * math.sqrt(2 / n)
    cosines[0] = math.sqrt(1 / n)
    kept = torch.exp(-sigma[:, None].square() * (1 - torch.cos(math.pi / n * k)))
    return torch.einsum("ki,bk,kj->bij", cosines, kept, cosines)
