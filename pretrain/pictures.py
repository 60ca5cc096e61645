"""What a backbone's tokens tell apart in a section of a brain."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy import ndimage
from torch import Tensor

from cubeclf_core.axes import Shape3
from cubeclf_core.geometry import source_shape
from cubeclf_core.normalise import match_channels, normalise
from cubeclf_core.pretraining_plots import token_map
from cubeclf_core.resample import resample
from cubeclf_core.tissue import Survey
from cubeclf_core.vit import Vit3d
from cubeclf_core.volumes import Volume

SIDE_UM = 600.0
"""Of the section, at most."""

MOST_CUBOIDS = 150

_SAME_PLACE = 16  # cuboids from which on what their tokens have in common is place, not content


def token_components(backbone: Vit3d, volume: Volume, survey: Survey) -> Figure:
    """Draw the principal components of token features over a section with much tissue.

    The section is tiled with adjacent cuboids, each encoded on its own as in training, and the
    tokens of each cuboid's middle layer are put together to a map, as Oquab et al.
    (arXiv:2304.07193) show those of DINOv2. Of many cuboids, the mean token of each place within a
    cuboid is subtracted first: it tells where in a cuboid the token is, not what it shows.

    Parameters
    ----------
    backbone
        Is left in the mode, and on the device, in which it came.
    volume
        A brain; read from the level of its pyramid that fits the backbone best.
    survey
        Of that brain.

    Returns
    -------
    matplotlib.figure.Figure
        See `cubeclf_core.pretraining_plots.token_map`. At most 600 × 600 µm and 150 cuboids.

    Raises
    ------
    VolumeTooSmall
        If the brain is smaller than one cuboid.
    VolumeError
        If it cannot be read there.
    """
    config = backbone.config
    level = volume.nearest(config.voxel_size_um)
    cuboid = source_shape(config.cuboid_shape, config.voxel_size_um, level)
    tiles = _tiles(level.shape, cuboid, config.cuboid_shape, config.voxel_size_um)
    start = _place(survey, volume.shape, level.shape, cuboid, tiles)
    sections, tokens = [], []
    for row in range(tiles[0]):  # one row in memory at a time
        y = start[1] + row * cuboid[1]
        stop = (start[0] + cuboid[0], y + cuboid[1], start[2] + tiles[1] * cuboid[2])
        n_channels = min(level.n_channels, config.channels)
        strip = level.read((start[0], y, start[2]), stop, n_channels)
        cut = np.stack(np.split(strip, tiles[1], axis=3))
        raw = resample(cut, config.cuboid_shape, next(backbone.parameters()).device)
        middle = config.grid[0] // 2
        plane = middle * config.patch_shape[0] + config.patch_shape[0] // 2
        sections.append(torch.cat(list(raw[:, 0, plane].cpu()), dim=1))
        tokens.append(_middle_tokens(backbone, match_channels(raw, config.channels)))
    components, explained = principal_components(torch.stack(tokens))
    return token_map(
        torch.cat(sections).numpy(), components.numpy(), explained, config.voxel_size_um[1:]
    )


@torch.no_grad()
def _middle_tokens(
    backbone: Vit3d, cuboids: Float[Tensor, "b c z y x"]
) -> Float[Tensor, "b gy gx width"]:
    """Encode cuboids; the patch tokens of their middle layer."""
    depth, height, width = backbone.config.grid
    training = backbone.training
    tokens = backbone.eval()(normalise(cuboids))[:, -depth * height * width :]
    backbone.train(training)
    return tokens.unflatten(1, (depth, height, width))[:, depth // 2].float().cpu()  # type: ignore[no-any-return]


def principal_components(
    tokens: Float[Tensor, "rows columns gy gx width"],
) -> tuple[Float[Tensor, "y x 3"], list[float]]:
    """Put the tokens of tiles together to a map and project them on their main directions.

    Parameters
    ----------
    tokens
        Of each tile.

    Returns
    -------
    components : Tensor
        Shape (rows × gy, columns × gx, 3); where tokens differ in fewer directions, zero. Of the
        two signs of a direction, the one along which the farthest token lies.
    explained : list of float
        Share of the variance that each explains.
    """
    rows, columns, gy, gx, width = tokens.shape
    if rows * columns >= _SAME_PLACE:
        tokens = tokens - tokens.mean(dim=(0, 1), keepdim=True)
    flat = tokens.permute(0, 2, 1, 3, 4).reshape(-1, width).double()
    flat = flat - flat.mean(dim=0)
    variance, directions = torch.linalg.eigh(flat.T @ flat)
    projected = flat @ directions[:, -3:].flip(1)
    farthest = projected.gather(0, projected.abs().argmax(dim=0, keepdim=True))
    projected = projected * farthest.sign()
    total = float(variance.clamp_min(0).sum())
    explained = [max(float(v), 0.0) / total if total else 0.0 for v in variance[-3:].flip(0)]
    return projected.float().view(rows * gy, columns * gx, 3), explained


def _tiles(
    volume: Shape3, cuboid: Shape3, shape: Shape3, voxel_size_um: tuple[float, ...]
) -> tuple[int, int]:
    """Say how many cuboids along y and x make up the section."""
    sides = [n * size for n, size in zip(shape[1:], voxel_size_um[1:], strict=True)]
    y, x = (
        max(1, min(have // need, round(SIDE_UM / side)))
        for have, need, side in zip(volume[1:], cuboid[1:], sides, strict=True)
    )
    while y * x > MOST_CUBOIDS:
        y, x = (y - 1, x) if y >= x else (y, x - 1)
    return y, x


def _place(
    survey: Survey, whole: Shape3, level: Shape3, cuboid: Shape3, tiles: tuple[int, int]
) -> tuple[int, int, int]:
    """Find where the section starts, in voxels of the level.

    That is in the plane that has the most tissue and, within it, where the section has most; of
    places that are equally good, nearest to the middle of the plane's tissue.
    """
    box = np.array((cuboid[0], tiles[0] * cuboid[1], tiles[1] * cuboid[2]))
    scale = np.array(survey.scale) * np.divide(level, whole)  # voxels of the level in the mask's
    size = np.maximum(1, np.round(box / scale)).astype(int)
    share = ndimage.uniform_filter(survey.mask.astype(np.float32), size.tolist(), mode="constant")
    within = np.minimum(size // 2, (np.array(survey.mask.shape) - 1) // 2)
    low, high = within, np.array(survey.mask.shape) - within
    area = ndimage.uniform_filter1d(survey.mask.mean(axis=(1, 2)), int(size[0]))
    z = int(low[0] + np.argmax(area[low[0] : high[0]]))
    plane = share[z]
    y, x = np.indices(plane.shape)
    inside = (y >= low[1]) & (y < high[1]) & (x >= low[2]) & (x < high[2])
    centre = [np.average(axis, weights=survey.mask[z] + 1e-9) for axis in (y, x)]
    best = inside & (plane >= plane[inside].max() - 1e-3)
    distance = np.where(best, (y - centre[0]) ** 2 + (x - centre[1]) ** 2, np.inf)
    at = np.array((z, *np.unravel_index(np.argmin(distance), plane.shape)))
    start = np.round((at + 0.5) * scale - box / 2).astype(int)
    z, y, x = np.clip(start, 0, np.array(level) - box).tolist()
    return z, y, x
