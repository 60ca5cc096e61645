"""What a backbone has learned: cells told from the rest, and what it should not care about.

A probe is a simple rule on frozen, pooled features. One on a few labelled cuboids says whether the
features get better while a backbone is trained. One on the brain, the brightness or the depth of
unlabelled cuboids should find little: a backbone that learns these has found a shortcut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from sklearn.linear_model import RidgeCV
from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from cubeclf_core.brains import Brain
from cubeclf_core.candidates import read_all_candidates
from cubeclf_core.cells import Cells
from cubeclf_core.errors import CellsError
from cubeclf_core.metrics import knn_scores, linear_probe, linear_scores
from cubeclf_core.normalise import match_channels, normalise
from cubeclf_core.vit import Vit3d, Vit3dConfig
from pretrain.batches import cut_middle

_BATCH = 64
_FOLDS = 5
_LEAST = 5  # labels of either class in each part
_RIDGE = np.logspace(0, 5, 11)  # penalties to choose from


@torch.no_grad()
def embed(
    backbone: Vit3d, cuboids: Float[Tensor, "n c z y x"]
) -> tuple[Float[Tensor, "n width"], Float[Tensor, "n feature"]]:
    """Embed the middle of raw cuboids, 64 at a time; the backbone's mode stays as it was.

    Parameters
    ----------
    backbone
        On any device.
    cuboids
        Raw counts, not smaller than the backbone's cuboid: canvases may be larger.

    Returns
    -------
    class_token : Tensor
    pooled : Tensor
        Both float32 on the CPU.
    """
    device = backbone.cls_token.device
    class_tokens, pooled = [], []
    with _evaluating(backbone):
        for part in cut_middle(cuboids, backbone.config.cuboid_shape).split(_BATCH):
            tokens = backbone(normalise(part.to(device)))
            class_tokens.append(tokens[:, 0].float().cpu())
            pooled.append(backbone.pool_tokens(tokens).float().cpu())
    return torch.cat(class_tokens), torch.cat(pooled)


class Probe:
    """Labelled cuboids in memory, on which backbones are compared by kNN and a linear probe.

    They are split once. Several brains: by brain, in at most five folds, each tested by what the
    others teach. One brain: its candidates are halved along the longer of y and x, and those within
    half a cuboid of the cut are left out, so that no voxel is both learned from and tested on.

    Parameters
    ----------
    brains
        Those without cells are passed over.
    network
        What the cuboids are for.
    limit
        Cuboids to read, about: as many cells as others, as far as there are.
    seed
        Of the choice.

    Attributes
    ----------
    cuboids
        Shape (n, c, z, y, x), float32 raw counts.
    labels
        Shape (n,), 1 cell, 0 no cell.
    brains
        Shape (n,), number of the brain, or half of one, that each is of.
    folds
        Shape (n,), the fold that each is tested in.
    split
        How they are split, in words.

    Raises
    ------
    CellsError
        If no brain has cells, or a brain or half has too few of either class.
    VolumeTooSmall
        If a brain is smaller than one cuboid.
    """

    def __init__(
        self, brains: Sequence[Brain], network: Vit3dConfig, *, limit: int = 400, seed: int = 0
    ) -> None:
        self.split, parts = _parts(brains, network)
        random = np.random.default_rng((seed, 0x960BE))
        cuboids, labels, brain_of, folds = [], [], [], []
        for i, (brain, cells) in enumerate(parts):
            chosen = cells[_draw(cells.labels, max(2 * _LEAST, limit // len(parts)), random)]
            cuboids.append(_read(brain, chosen, network))
            labels.append(chosen.labels)
            brain_of.append(np.full(len(chosen), i))
            folds.append(np.full(len(chosen), i % _FOLDS))
        self.cuboids: Float[Tensor, "n c z y x"] = torch.cat(cuboids)
        self.labels = np.concatenate(labels)
        self.brains = np.concatenate(brain_of)
        self.folds = np.concatenate(folds)

    def __len__(self) -> int:
        return len(self.labels)

    def measure(self, backbone: Vit3d) -> dict[str, float]:
        """Probe the pooled features of a backbone.

        Returns
        -------
        dict
            ``probe_knn_auc`` and ``probe_linear_auc``, means over folds.
        """
        _, pooled = embed(backbone, self.cuboids)
        knn, linear = [], []
        for fold in range(self.folds.max() + 1):
            test = self.folds == fold
            learned = pooled[torch.from_numpy(~test)], self.labels[~test]
            tested, truth = pooled[torch.from_numpy(test)], self.labels[test]
            knn.append(roc_auc_score(truth, knn_scores(*learned, tested)))
            said = linear_scores(*learned, tested, brains=self.brains[~test])
            linear.append(roc_auc_score(truth, said))
        return {"probe_knn_auc": float(np.mean(knn)), "probe_linear_auc": float(np.mean(linear))}


def shortcuts(
    embeddings: Float[Tensor, "n feature"],
    brain: npt.NDArray[np.int64],
    depth: npt.NDArray[np.float64],
    intensity: npt.NDArray[np.float64],
) -> dict[str, float]:
    """Probe what unlabelled cuboids' features should say little of: brain, depth and brightness.

    By five-fold cross-validation at random. Cuboids of different folds may overlap, so that on a
    small volume the figures err on the high side.

    Parameters
    ----------
    embeddings
        Pooled features, of some tens of cuboids at least.
    brain
        Shape (n,), index of the brain of each.
    depth
        Shape (n,), where along z, in any unit.
    intensity
        Shape (n,), mean raw counts.

    Returns
    -------
    dict
        ``shortcut_brain``, balanced accuracy of a logistic regression, and its chance
        ``shortcut_brain_chance``, over the brains with at least five cuboids; left out where there
        is one. ``shortcut_depth`` and ``shortcut_intensity``, R² of ridge regression on the depth
        and on log(1 + counts), less their brains' means; chance is 0, or a little below. Left out
        where all are alike.
    """
    features = embeddings.detach().cpu().double().numpy()
    found: dict[str, float] = {}
    often = np.bincount(brain)[brain] >= _FOLDS
    n_brains = len(np.unique(brain[often]))
    if n_brains > 1:
        folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
        said = cross_val_predict(linear_probe(), features[often], brain[often], cv=folds)
        found["shortcut_brain"] = float(balanced_accuracy_score(brain[often], said))
        found["shortcut_brain_chance"] = 1 / n_brains
    for name, values in (("depth", depth), ("intensity", np.log1p(intensity))):
        target = values - _means(values, brain)
        if target.std() > 1e-9 * max(1.0, float(np.abs(values).max())):
            model = make_pipeline(StandardScaler(), RidgeCV(_RIDGE))
            shuffled = KFold(_FOLDS, shuffle=True, random_state=0)
            said = cross_val_predict(model, features, target, cv=shuffled)
            found[f"shortcut_{name}"] = float(r2_score(target, said))
    return found


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and afterwards each part into the mode it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _parts(brains: Sequence[Brain], network: Vit3dConfig) -> tuple[str, list[tuple[Brain, Cells]]]:
    """Split labelled brains into what is tested apart; says how."""
    labelled = [(brain, brain.cells) for brain in brains if brain.cells is not None]
    if not labelled:
        names = ", ".join(brain.name for brain in brains)
        raise CellsError(f"--probe needs labelled cells; give `cells` in a brains file of {names}")
    if len(labelled) > 1:
        for brain, cells in labelled:
            _check_enough(cells, brain.name)
        return f"by brain, in {min(_FOLDS, len(labelled))} folds", labelled
    ((brain, cells),) = labelled
    axis, (low, high) = _halves(brain, cells, network)
    for half in (low, high):
        _check_enough(half, f"a half of {brain.name} (split along {axis}, as there is one brain)")
    return f"by halves of {brain.name} along {axis}", [(brain, low), (brain, high)]


def _halves(brain: Brain, cells: Cells, network: Vit3dConfig) -> tuple[str, list[Cells]]:
    """Halve the candidates along the longer of y and x, leaving out a cuboid's width between."""
    extents_um = np.multiply(brain.volume.shape, brain.volume.voxel_size_um)
    axis = 1 if extents_um[1] >= extents_um[2] else 2
    width_um = network.cuboid_shape[axis] * network.voxel_size_um[axis]
    from_cut = cells.positions[:, axis] - np.median(cells.positions[:, axis])
    from_cut *= brain.volume.voxel_size_um[axis]
    apart = width_um / 2 + max(brain.volume.voxel_size_um[axis], network.voxel_size_um[axis])
    return "zyx"[axis], [cells[from_cut < -apart], cells[from_cut > apart]]


def _check_enough(cells: Cells, who: str) -> None:
    n_cells = int(cells.labels.sum())
    n_others = len(cells) - n_cells
    if min(n_cells, n_others) < _LEAST:
        raise CellsError(
            f"--probe: {who} has {n_cells} cells and {n_others} others; expected at least "
            f"{_LEAST} of each (type 2 is a cell, any other type is none)"
        )


def _draw(
    labels: npt.NDArray[np.int64], n: int, random: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Choose `n` labels, half of them cells, more of the one class where the other has too few."""
    order = random.permutation(len(labels))
    cells, others = order[labels[order] == 1], order[labels[order] == 0]
    n_cells = min(len(cells), max(n // 2, n - len(others)))
    return np.sort(np.concatenate([cells[:n_cells], others[: n - n_cells]]))


def _read(brain: Brain, cells: Cells, network: Vit3dConfig) -> Float[Tensor, "n c z y x"]:
    read = read_all_candidates(
        brain.volume,
        cells.positions,
        shape=network.cuboid_shape,
        voxel_size_um=network.voxel_size_um,
        n_channels=min(network.channels, brain.volume.n_channels),
    )
    return match_channels(read.cuboids, network.channels)


def _means(
    values: npt.NDArray[np.float64], groups: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Mean of each value's group, shape (n,)."""
    sums = np.bincount(groups, weights=values)
    means: npt.NDArray[np.float64] = (sums / np.maximum(np.bincount(groups), 1))[groups]
    return means
