"""What pretrained backbones have to beat, and how labels are learned on given features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from sklearn.decomposition import PCA
from torch import Tensor

from benchmarks.learning.blocks import Block
from benchmarks.learning.protocols import Task, brains_to_learn, labels_to_learn
from cubeclf_core.axes import Size3
from cubeclf_core.brains import Brain
from cubeclf_core.metrics import knn_scores, linear_scores
from cubeclf_core.normalise import normalise
from cubeclf_core.rules import contrast
from cubeclf_core.stream import CuboidStream
from cubeclf_core.vit import Vit3dConfig
from finetune.comparing.forest import forest_scores
from pretrain.batches import to_network

Blocks = Mapping[str, Block]
Features = Mapping[str, Float[Tensor, "n feature"]]
"""Of all candidates, by block."""

COMPONENTS = 40


@dataclass(frozen=True)
class Frozen:
    """Features that stay as they are, and labels learned on them.

    Attributes
    ----------
    blocks
        Whose labels they are.
    features
        By what the backbone has seen, a key of `SEEN`.
    """

    blocks: Blocks
    features: Mapping[str, Features]

    def linear(self, task: Task) -> npt.NDArray[np.float64]:
        """Score by logistic regression."""
        known, labels, tested = self._parts(task)
        return linear_scores(known, labels, tested, brains=brains_to_learn(task))

    def knn(self, task: Task) -> npt.NDArray[np.float64]:
        """Score by nearest neighbours."""
        return knn_scores(*self._parts(task))

    def forest(self, task: Task, seed: int) -> npt.NDArray[np.float64]:
        """Score by a random forest."""
        known, labels, tested = self._parts(task)
        return forest_scores(known.numpy(), labels, tested.numpy(), seed)

    def _parts(self, task: Task) -> tuple[Tensor, npt.NDArray[np.int64], Tensor]:
        features = self.features[task.seen]
        known = torch.cat([features[name][index] for name, index in task.learn.items()])
        return known, labels_to_learn(task, self.blocks), features[task.block][task.test]


def principal_components(
    unlabelled: Float[Tensor, "n 1 z y x"], blocks: Blocks, seed: int = 0
) -> Features:
    """Project normalised cuboids on the first principal components of unlabelled ones."""
    most = min(COMPONENTS, len(unlabelled))
    pca = PCA(most, svd_solver="randomized", random_state=seed)
    pca.fit(normalise(unlabelled).flatten(1).numpy())
    return {
        name: torch.cat(
            [
                torch.from_numpy(pca.transform(normalise(part).flatten(1).numpy()))
                for part in block.cuboids.split(256)
            ]
        )
        for name, block in blocks.items()
    }


def unlabelled_cuboids(
    brains: list[Brain], network: Vit3dConfig, n: int
) -> Float[Tensor, "n 1 z y x"]:
    """Draw cuboids right at candidates from what a backbone is pretrained on."""
    stream = CuboidStream(
        brains,
        shape=network.cuboid_shape,
        voxel_size_um=network.voxel_size_um,
        n_channels=1,
        batch_size=min(n, 100),
        seed=0,
        candidate_share=1.0,
        jitter_um=0.0,
        memory_bytes=1 << 28,
    )

    def parts() -> Iterator[Tensor]:
        for batch in stream.batches(0, -(-n // stream.batch_size)):
            yield to_network(batch, network.cuboid_shape)

    return torch.cat(list(parts()))[:n]


@dataclass(frozen=True)
class Rules:
    """Scores without learning.

    Attributes
    ----------
    blocks
        What is scored.
    voxel_size_um
        Of their cuboids, z y x.
    """

    blocks: Blocks
    voxel_size_um: Size3

    def contrast(self, task: Task) -> npt.NDArray[np.float64]:
        """Score by the best of four rules, chosen on these very candidates: a high bar."""
        block = self.blocks[task.block]
        cuboids = block.cuboids[task.test, 0].numpy()
        return contrast(cuboids, block.labels[task.test], self.voxel_size_um)[1]

    def density(self, task: Task) -> npt.NDArray[np.float64]:
        """Score by the number of candidates around."""
        return self.blocks[task.block].crowding[task.test]
