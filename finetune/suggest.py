"""The run of `cubeclf-suggest`: which candidates are most worth labelling next.

Worth it are those that the classifier is unsure of and that differ from each other and from what is
labelled. Both are one number in BADGE (Ash et al., arXiv:1906.03671): the gradient that a label
would have at the head, if it were the one that the classifier expects, is long where the
classifier is unsure and points where the features do. Candidates are drawn one by one with a chance
that grows with the distance to the nearest gradient drawn before (k-means++; Arthur &
Vassilvitskii, 2007). Departs from it in that labelled candidates count as drawn.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree

from cubeclf_core.candidates import read_candidates
from cubeclf_core.cells import Cells, read_cells, write_cells
from cubeclf_core.console import progress, say
from cubeclf_core.errors import InputError
from cubeclf_core.files import check_output, replacing
from cubeclf_core.heads import CELL_CLASS
from cubeclf_core.inside import check_inside
from cubeclf_core.trained import Classifier, load_trained
from cubeclf_core.volumes import Volume
from finetune.config import SuggestConfig
from finetune.memory import FILE, Memory, embed, load_memory
from finetune.opening import open_brain

_SAME_UM = 1.0  # a candidate this close to a labelled one is that one
Floats = npt.NDArray[np.float64]


def suggest(config: SuggestConfig) -> None:
    """Write the candidates that are most worth labelling; the table has them in their order.

    Raises
    ------
    InputError
        If the brain, the classifier or the candidates cannot be used.
    """
    cells = read_cells(config.cells)
    brain = open_brain(config.brain, config.background, config.voxel_size_um)
    inputs = [*brain.paths, config.cells, config.classifier]
    table = config.out.with_suffix(".csv")
    for path in (config.out, table):
        check_output(path, overwrite=config.overwrite, inputs=inputs, marker=None)
    volume = brain.volume
    check_inside(cells, volume, config.cells)
    network, _ = load_trained(config.classifier)
    memory = load_memory(_memory_file(config.classifier))
    features, probability = _look(network, volume, cells)

    positions_um = cells.positions * np.array(volume.voxel_size_um)
    fresh = np.flatnonzero(~_labelled(positions_um, brain.signal, memory))
    if config.budget > len(fresh):
        raise InputError(
            f"--budget is {config.budget}, but {len(fresh)} of {len(cells)} candidates are not "
            "labelled yet"
        )
    chosen = choose(
        features[fresh],
        probability[fresh],
        memory.features.double().numpy(),
        config.budget,
        config.seed,
    )
    index = fresh[chosen]
    write_cells(config.out, cells[index])
    _write_table(table, cells, index, probability)
    say(f"suggested   {config.out}: {len(index)} of {len(fresh)} candidates without a label")
    say(f"table       {table}")


def _memory_file(classifier: Path) -> Path:
    return classifier / "exported" / FILE if classifier.is_dir() else classifier.with_name(FILE)


@torch.inference_mode()
def _look(network: Classifier, volume: Volume, cells: Cells) -> tuple[Floats, Floats]:
    """Features and probability of all candidates."""
    config = network.backbone.config
    parts = read_candidates(
        volume,
        cells.positions,
        shape=config.cuboid_shape,
        voxel_size_um=config.voxel_size_um,
        n_channels=min(volume.n_channels, config.channels),
    )
    features: Floats | None = None
    probability = np.full(len(cells), np.nan)
    with progress("looking", len(cells), unit="candidates") as advance:
        for part in parts:
            for rows in np.array_split(np.arange(len(part.index)), -(-len(part.index) // 64)):
                cuboids = torch.as_tensor(part.cuboids[rows]).float()
                seen = embed(network, cuboids).double().numpy()
                if features is None:
                    features = np.zeros((len(cells), seen.shape[1]))
                features[part.index[rows]] = seen
                logits = network(cuboids).double()
                probability[part.index[rows]] = logits.softmax(1)[:, CELL_CLASS].numpy()
                advance(len(rows))
    assert features is not None
    return features, probability


def _labelled(positions_um: Floats, volume: str, memory: Memory) -> npt.NDArray[np.bool_]:
    """Which candidates are labelled already, in this very volume."""
    own = np.array([name == volume for name in memory.volumes], bool)
    known = memory.positions_um.numpy()[own]
    known = known[np.isfinite(known).all(1)]
    if not len(known):
        return np.zeros(len(positions_um), bool)
    distance, _ = cKDTree(known).query(positions_um)
    return np.asarray(distance < _SAME_UM, bool)


def choose(
    features: Floats, probability: Floats, known: Floats, budget: int, seed: int
) -> npt.NDArray[np.int64]:
    """Choose candidates to label.

    Parameters
    ----------
    features
        Shape (n, feature), of candidates without a label.
    probability
        Shape (n,), of being a cell.
    known
        Shape (m, feature), of those with one.
    budget
        How many, at most n.
    seed
        Of the draw.

    Returns
    -------
    numpy.ndarray
        Indices in the order in which they were drawn.
    """
    assert budget <= len(features)
    mean, deviation = features.mean(0), features.std(0) + 1e-12
    unsure = np.minimum(probability, 1 - probability)  # length of the gradient, but for a factor
    standard = _standard(features, mean, deviation)
    gradients = standard * unsure[:, None]
    # A labelled one counts as drawn at the gradient that it would have, were it as unsure as the
    # candidate that it is compared with; the zero vector is what there is nothing to learn from.
    nearest = np.square(standard).sum(1)
    for part in _standard(known, mean, deviation):
        nearest = np.minimum(nearest, np.square(standard - part).sum(1))
    nearest = nearest * np.square(unsure)
    random = np.random.default_rng((seed, 0x5E6E57))
    chosen: list[int] = []
    left = np.ones(len(features), bool)
    while len(chosen) < budget:
        weight = np.where(left, nearest, 0.0)
        total = weight.sum()
        chance = weight / total if total > 0 else left / left.sum()
        # The first is the least like anything known; later ones are drawn, as the farthest of all
        # are often odd.
        i = int(np.argmax(weight)) if not chosen else int(random.choice(len(features), p=chance))
        chosen.append(i)
        left[i] = False
        nearest = np.minimum(nearest, np.square(gradients - gradients[i]).sum(1))
    return np.array(chosen, np.int64)


def _standard(features: Floats, mean: Floats, deviation: Floats) -> Floats:
    """Standardise, and scale to a length of about 1."""
    return np.asarray((features - mean) / deviation / np.sqrt(features.shape[1]), np.float64)


def _write_table(
    path: Path, cells: Cells, index: npt.NDArray[np.int64], probability: Floats
) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["rank", "z", "y", "x", "probability"])
        for rank, i in enumerate(index, 1):
            where = [f"{value:g}" for value in cells.positions[i]]
            table.writerow([rank, *where, f"{probability[i]:.6f}"])
