"""Pictures of single candidates: thumbnails in three planes, and maps of their embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from cubeclf_core.drawing import Array, plain_text, scale_bar

_CELL, _NO_CELL = "#f2b134", "#3aa0c9"  # told apart by colour-blind readers too
_MOST_FOR_TSNE = 5000
_FEWEST_FOR_TSNE = 10


def candidate_thumbnails(
    cuboids: Array, titles: Sequence[str], voxel_size_um: Sequence[float], n_columns: int = 3
) -> Figure:
    """Show cuboids in three planes through their middle, each with a title.

    Parameters
    ----------
    cuboids
        Shape (n, c, z, y, x), raw counts; n at least 1. Only signal and background are shown.
    titles
        One each, of a line or two.
    voxel_size_um
        z y x.
    n_columns
        Cuboids in a row.

    Returns
    -------
    matplotlib.figure.Figure
        Of each cuboid the planes y x, y z and x z through the middle, to one scale; below the
        signal, where there is one, the background. Each channel has its own contrast, the 1st to
        the 99.8th percentile of the cuboid.
    """
    n, channels = len(cuboids), min(cuboids.shape[1], 2)
    depth, height, width = np.multiply(cuboids.shape[2:], voxel_size_um).tolist()
    gap = 0.06 * width
    tall, wide = max(height, width), width + 2 * depth + 2 * gap
    total = channels * tall + (channels - 1) * gap
    n_columns = min(n_columns, max(n, 2))
    n_rows = -(-n // n_columns)
    across = 10 / n_columns
    figure = Figure((10, n_rows * (across * total / wide + 0.5)), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, cuboid, title in zip(grid, cuboids, titles, strict=False):
        for c in range(channels):
            _three_planes(axes, cuboid[c], voxel_size_um, c * (tall + gap), gap)
        axes.set(xlim=(0, wide), ylim=(total, 0), aspect="equal")
        axes.set_title(plain_text(title), fontsize=7, loc="left", pad=2)
    scale_bar(grid[0], height, width, share=0.6)
    return figure


def _three_planes(
    axes: Axes, cuboid: Array, voxel_size_um: Sequence[float], top: float, gap: float
) -> None:
    """Draw the planes y x, y z and x z through the middle beside one another."""
    z, y, x = (n // 2 for n in cuboid.shape)
    size_z, size_y, size_x = voxel_size_um
    low, high = np.percentile(cuboid, (1, 99.8))
    left = 0.0
    for plane, down, across in (
        (cuboid[z], size_y, size_x),
        (cuboid[:, :, x].T, size_y, size_z),
        (cuboid[:, y].T, size_x, size_z),
    ):
        right, bottom = left + plane.shape[1] * across, top + plane.shape[0] * down
        axes.imshow(
            plane,
            cmap="gray",
            vmin=low,
            vmax=max(high, low + 1e-6),
            extent=(left, right, bottom, top),
            interpolation="nearest",
        )
        left = right + gap


def map_embeddings(
    embeddings: npt.NDArray[np.floating], seed: int = 0
) -> tuple[npt.NDArray[np.float64], str]:
    """Lay embeddings out in a plane so that alike ones are close.

    t-SNE (van der Maaten and Hinton 2008) of the first 50 principal components, or beyond 5,000
    embeddings, and for a handful, the first two components alone.

    Parameters
    ----------
    embeddings
        Shape (n, feature), finite; n at least 1.
    seed
        Of t-SNE.

    Returns
    -------
    points : numpy.ndarray
        Shape (n, 2).
    method : str
        What they are, for a title.
    """
    values = np.asarray(embeddings, np.float64)
    values = values - values.mean(axis=0)
    n_components = min(50, *values.shape)
    if n_components < 2 or not values.any():
        return np.stack([values[:, 0], np.zeros(len(values))], axis=1), "first feature"
    components = PCA(n_components, random_state=seed).fit_transform(values)
    if not _FEWEST_FOR_TSNE <= len(values) <= _MOST_FOR_TSNE:
        return np.asarray(components[:, :2], np.float64), "principal components"
    components /= components[:, 0].std()
    perplexity = min(30.0, (len(values) - 1) / 3)
    tsne = TSNE(init="pca", perplexity=perplexity, random_state=seed)
    return np.asarray(tsne.fit_transform(components), np.float64), "t-SNE"


def embedding_map(points: Array, method: str, labels: Array, probabilities: Array) -> Figure:
    """Show candidates by their embeddings, coloured by label and by probability.

    Parameters
    ----------
    points, method
        Of `map_embeddings`.
    labels
        Shape (n,), 1 for a cell; any other is none.
    probabilities
        Shape (n,), of a cell.
    """
    figure = Figure((10, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    size = float(np.clip(4000 / len(points), 4, 30))
    # Drawn in an order that does not depend on the class, so that neither hides the other.
    order = np.random.default_rng(0).permutation(len(points))
    x, y = points[order].T
    is_cell = labels[order] == 1
    left.scatter(x, y, size, c=np.where(is_cell, _CELL, _NO_CELL), lw=0, alpha=0.8)
    for colour, name in ((_CELL, "cell"), (_NO_CELL, "no cell")):
        left.scatter([], [], 30, color=colour, label=name)
    left.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, 0), ncols=2)
    left.set_title(f"{method}: as labelled", loc="left", fontsize=9)
    shown = right.scatter(x, y, size, c=probabilities[order], cmap="cividis", vmin=0, vmax=1, lw=0)
    right.set_title(f"{method}: probability of a cell", loc="left", fontsize=9)
    figure.colorbar(shown, ax=right, shrink=0.8)
    for axes in (left, right):
        axes.set(xticks=[], yticks=[])
    return figure
