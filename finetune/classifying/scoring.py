"""What classifiers say of a brain's candidates, part by part, reading while they think."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from cubeclf_core.ahead import ReadAhead
from cubeclf_core.candidates import CandidateCuboids, read_candidates
from cubeclf_core.classifier import LoadedClassifier, load_classifier
from cubeclf_core.errors import InputError
from cubeclf_core.heads import CELL_CLASS
from cubeclf_core.network_configs import BackboneConfig, one_vector
from cubeclf_core.volumes import Volume
from finetune.classifying.parts import Part, Scores

BATCH = 64
MEMORY = 256 << 20  # bytes of unfinished cuboids and decoded chunks, some 1,000 cuboids
_FLIPS = tuple(product((False, True), repeat=3))  # along z, y, x


@runtime_checkable
class Embeds(Protocol):
    """A network of ours, as it was trained or made for speed; a program tells no features."""

    def features(self, cuboids: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b *token feature"]:
        """What its head takes of raw cuboids: embeddings, or patch tokens."""


@dataclass(frozen=True)
class Scorer:
    """One or several classifiers that take the same cuboids.

    Attributes
    ----------
    classifiers
        As they were loaded, in the order in which they were given.
    embedder
        The first one's network, if it is no program.
    flips
        Whether to average over the eight ways to flip a cuboid.
    """

    classifiers: tuple[LoadedClassifier, ...]
    embedder: Embeds | None
    flips: bool

    @property
    def config(self) -> BackboneConfig:
        """Cuboid and voxel size, which all have in common."""
        return self.classifiers[0].config

    @property
    def channels(self) -> int:
        """The most that any of them takes."""
        return max(classifier.config.channels for classifier in self.classifiers)

    @property
    def threshold(self) -> float:
        """Probability from which on a candidate is a cell: the mean of theirs."""
        return float(np.mean([classifier.threshold for classifier in self.classifiers]))

    def probability(self, cuboids: Float[Tensor, "b c z y x"]) -> Float[np.ndarray, "b k"]:
        """Probability of a cell by each classifier."""
        views = [cuboids]
        if self.flips:
            axes = [[2 + a for a in range(3) if flip[a]] for flip in _FLIPS]
            views = [cuboids.flip(flipped) for flipped in axes]
        said = [
            np.mean([classifier.predict(view)[:, CELL_CLASS] for view in views], axis=0)
            for classifier in self.classifiers
        ]
        return np.stack(said, axis=1)

    @torch.inference_mode()
    def embedding(self, cuboids: Float[Tensor, "b c z y x"]) -> Float32[np.ndarray, "b feature"]:
        """What the first network sees in cuboids; see `one_vector`."""
        assert self.embedder is not None
        features = one_vector(self.embedder.features(cuboids), self.config)
        return np.asarray(features.float().cpu().numpy())


def load_scorer(paths: Sequence[Path], *, exact: bool, flips: bool, embeddings: bool) -> Scorer:
    """Load classifiers that go together.

    Parameters
    ----------
    paths
        Exported files or runs' folders.
    exact
        See `load_classifier`.
    flips
        See `Scorer`.
    embeddings
        Whether embeddings are asked for.

    Raises
    ------
    CheckpointError
        If one cannot be loaded.
    InputError
        If they take different cuboids, or embeddings are asked of a program.
    """
    classifiers = tuple(load_classifier(path, exact=exact) for path in paths)
    first = classifiers[0].config
    for path, classifier in zip(paths, classifiers, strict=True):
        own = classifier.config
        if (own.cuboid_shape, own.voxel_size_um) != (first.cuboid_shape, first.voxel_size_um):
            raise InputError(
                f"{path} takes cuboids of {own.cuboid_shape} voxels of {own.voxel_size_um} µm, "
                f"{paths[0]} of {first.cuboid_shape} of {first.voxel_size_um}; classifiers that "
                "are used together have to take the same"
            )
    network = classifiers[0].network
    embedder = network if isinstance(network, Embeds) else None
    if embeddings and embedder is None:
        raise InputError(
            f"--embeddings needs a network, but {paths[0]} is a program that gives probabilities "
            "alone; give the folder of the fine-tuning run, or its classifier.safetensors"
        )
    return Scorer(classifiers, embedder, flips)


def score_parts(
    scorer: Scorer,
    volume: Volume,
    parts: Iterable[Part],
    advance: Callable[[int], None] = lambda n: None,
    threads: int | None = None,
) -> Iterator[tuple[Part, Scores]]:
    """Score parts one after another; the next is being read while one is scored.

    Parameters
    ----------
    scorer
        What scores.
    volume
        The brain.
    parts
        In the order in which they are done.
    advance
        Told after each batch how many candidates it had; what it raises ends the work.
    threads
        That decode; by default one a core.

    Yields
    ------
    tuple of Part and Scores
        As soon as one is done.
    """
    reading = _read(scorer, volume, parts, threads)
    with ReadAhead(reading) as ahead:
        batches = iter(ahead)
        read_s = waited_s = 0.0
        for part, faults, batch in batches:
            made = _Making(scorer, part, faults)
            while batch is not None:
                made.add(batch)
                advance(len(batch.index))
                del batch  # its memory is used again
                _, _, batch = next(batches)
            times = ahead.reading_s - read_s, ahead.waiting_s - waited_s
            read_s, waited_s = ahead.reading_s, ahead.waiting_s
            yield part, made.scores(*times)


Read = tuple[Part, list[str], CandidateCuboids | None]


def _read(
    scorer: Scorer, volume: Volume, parts: Iterable[Part], threads: int | None
) -> Generator[Read, None, None]:
    """Read the cuboids of parts, batch by batch; nothing more comes of a part after None."""
    for part in parts:
        faults: list[str] = []
        batches = read_candidates(
            volume,
            part.positions,
            shape=scorer.config.cuboid_shape,
            voxel_size_um=scorer.config.voxel_size_um,
            n_channels=min(volume.n_channels, scorer.channels),
            batch_size=BATCH,
            memory_bytes=MEMORY,
            threads=threads,
            on_fault=faults.append,
        )
        for batch in batches:
            yield part, faults, batch
        yield part, faults, None


class _Making:
    """The scores of a part, as far as they are made."""

    def __init__(self, scorer: Scorer, part: Part, faults: list[str]) -> None:
        n = len(part)
        self._scorer, self._faults = scorer, faults
        self._probability = np.full((n, len(scorer.classifiers)), np.nan)
        self._padded, self._unread = np.zeros(n, bool), np.zeros(n, bool)
        self._embedded = part.embedded
        self._row = np.cumsum(part.embedded) - 1
        self._embedding = np.zeros((0, 0), np.float32)

    def add(self, batch: CandidateCuboids) -> None:
        """Score a batch; what was not read has no score."""
        index = batch.index
        self._padded[index], self._unread[index] = batch.padded, batch.unread
        said = self._scorer.probability(batch.cuboids)
        said[batch.unread] = np.nan
        self._probability[index] = said
        which = np.flatnonzero(self._embedded[index])
        if len(which):
            seen = self._scorer.embedding(batch.cuboids[torch.from_numpy(which)])
            seen[batch.unread[which]] = np.nan
            if not self._embedding.size:
                shape = (int(self._embedded.sum()), seen.shape[1])
                self._embedding = np.full(shape, np.nan, np.float32)
            self._embedding[self._row[index[which]]] = seen

    def scores(self, reading_s: float, waiting_s: float) -> Scores:
        """Give what was made."""
        return Scores(
            self._probability,
            self._padded,
            self._unread,
            self._embedding,
            reading_s,
            waiting_s,
            tuple(dict.fromkeys(self._faults)),
        )
