"""Batches to learn from: as many labels of each class, in each brain as in all.

What a normalisation says of a batch depends on all of it, so whatever takes such statistics takes
them of these batches too: of labels in the order of a file, which has all cells first, each batch
would hold one class alone, and what tells the classes apart would be normalised away.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cubeclf_core.regression import balancing_weights, share_intercepts

_LEAST = 10  # batches that an epoch has, however few the labels

Index = npt.NDArray[np.int64]


class Batches:
    """Batches of an epoch and of those after it, each drawn anew.

    Parameters
    ----------
    index
        Numbers of the labels that are learned from; shape (n,).
    labels, brains
        Class of each label there is, and the number of its brain; shape (all,).
    size
        Of a batch.
    seed
        Of the draws.
    """

    def __init__(self, index: Index, labels: Index, brains: Index, *, size: int, seed: int) -> None:
        self.index, self.size, self.seed = index, size, seed
        own = labels[index]
        shares = balancing_weights(own, share_intercepts(own, brains[index]))
        self._classes = [(index[own == klass], shares[own == klass]) for klass in np.unique(own)]

    def __len__(self) -> int:
        """How many make an epoch."""
        return max(_LEAST, -(-len(self.index) // self.size))

    def __iter__(self) -> Iterator[Index]:
        """Draw those of the first epoch."""
        return map(self.draw, range(len(self)))

    def draw(self, step: int) -> Index:
        """Numbers of the labels of one batch; of each brain, by chance, as many as it has."""
        random = np.random.default_rng((self.seed, step))
        parts = np.array_split(np.arange(self.size), len(self._classes))
        drawn = [
            random.choice(own, len(part), p=shares / shares.sum())
            for (own, shares), part in zip(self._classes, parts, strict=True)
        ]
        return np.concatenate(drawn)
