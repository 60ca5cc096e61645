"""What is left of a classified brain: points for brainmapper, a table, a picture, a summary."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from cubeclf_core.cells import CELL, NO_CELL, Cells, write_cells
from cubeclf_core.errors import VolumeError
from cubeclf_core.files import replacing
from cubeclf_core.plots import classified_candidates
from cubeclf_core.volumes import Volume
from finetune.classifying.parts import Part, Scores
from finetune.drift import sampled

SUMMARY = "summary.json"
_SMALL = 1 << 24  # voxels of a level that is read whole for the picture
_AT_A_TIME = 8192  # rows in the making


@dataclass(frozen=True, kw_only=True)
class Classified:
    """All candidates of a brain with what was found of them, in their order.

    Attributes
    ----------
    name
        Of the brain.
    cells
        The candidates as they were given.
    probability
        Shape (n,), of being a cell, the mean over classifiers; NaN where it was not read.
    disagreement
        Shape (n,), standard deviation over classifiers; None of a single one.
    padded, unread
        Shape (n,), see `CandidateCuboids`.
    embedding
        Shape (n, feature); None unless it was asked for.
    sample
        Shape (m, feature), some embeddings to compare brains by; none where there are none.
    threshold
        From which probability on a candidate is a cell.
    reading_s, waiting_s
        Seconds that reading took, beside other work, and that was waited for it.
    faults
        What could not be read, and why.
    """

    name: str
    cells: Cells
    probability: Float[np.ndarray, " n"]
    disagreement: Float[np.ndarray, " n"] | None
    padded: Bool[np.ndarray, " n"]
    unread: Bool[np.ndarray, " n"]
    embedding: Float32[np.ndarray, "n feature"] | None
    sample: Float32[np.ndarray, "m feature"]
    threshold: float
    reading_s: float
    waiting_s: float
    faults: tuple[str, ...]

    @property
    def accepted(self) -> Bool[np.ndarray, " n"]:
        """Which are cells; none that was not read."""
        return np.asarray(self.probability >= self.threshold)

    @property
    def classified(self) -> Cells:
        """The candidates, each a cell or none."""
        return Cells(self.cells.positions, np.where(self.accepted, CELL, NO_CELL))

    def summary(self) -> dict[str, Any]:
        """Say in numbers what there is to say of the brain."""
        read = ~self.unread
        return {
            "brain": self.name,
            "candidates": len(self.cells),
            "cells": int(self.accepted.sum()),
            "rejection_rate": _mean(~self.accepted[read]),
            "mean_probability": _mean(self.probability[read]),
            "threshold": self.threshold,
            "at_border": int(self.padded.sum()),
            "unread": int(self.unread.sum()),
            "reading_s": round(self.reading_s, 3),
            "waiting_s": round(self.waiting_s, 3),
            "faults": list(self.faults),
        }


def _mean(values: np.ndarray) -> float | None:
    return round(float(values.mean()), 6) if len(values) else None


def put_together(
    name: str,
    cells: Cells,
    which: Int[np.ndarray, " n"],
    parts: Iterable[tuple[Part, Scores]],
    threshold: float,
    *,
    embeddings: bool,
) -> Classified:
    """Make one of all parts.

    Parameters
    ----------
    name
        Of the brain.
    cells
        The candidates as they were given.
    which
        The place of each of them, by number: candidates may share one.
    parts
        All, of places.
    threshold
        From which probability on a candidate is a cell.
    embeddings
        Whether all were embedded.
    """
    n = int(which.max()) + 1
    row = np.empty(n, np.int64)  # of an embedding, in the candidates' order
    row[which] = np.arange(len(which))
    padded, unread = np.zeros(n, bool), np.zeros(n, bool)
    probability: Float[np.ndarray, "n k"] | None = None
    embedding: Float32[np.ndarray, "n feature"] | None = None
    sample: list[Float32[np.ndarray, "m feature"]] = []
    compared = sampled(n)
    reading_s = waiting_s = 0.0
    faults: list[str] = []
    for part, scores in parts:
        if probability is None:
            probability = np.full((n, scores.probability.shape[1]), np.nan)
        probability[part.index] = scores.probability
        padded[part.index], unread[part.index] = scores.padded, scores.unread
        if scores.embedding.size:
            seen = part.index[part.embedded]
            sample.append(scores.embedding[compared[seen] & ~unread[seen]])
            if embeddings:
                if embedding is None:
                    embedding = np.full((len(which), scores.embedding.shape[1]), np.nan, np.float32)
                embedding[row[seen]] = scores.embedding
        reading_s, waiting_s = reading_s + scores.reading_s, waiting_s + scores.waiting_s
        faults += scores.faults
    if embedding is not None:  # places that are shared
        again = np.flatnonzero(row[which] != np.arange(len(which)))
        embedding[again] = embedding[row[which[again]]]
    assert probability is not None
    mean = probability.mean(axis=1)[which]
    several = probability.shape[1] > 1
    return Classified(
        name=name,
        cells=cells,
        probability=mean,
        disagreement=probability.std(axis=1)[which] if several else None,
        padded=padded[which],
        unread=unread[which],
        embedding=embedding,
        sample=np.concatenate(sample) if sample else np.zeros((0, 0), np.float32),
        threshold=threshold,
        reading_s=reading_s,
        waiting_s=waiting_s,
        faults=tuple(dict.fromkeys(faults)),
    )


def write_outputs(
    folder: Path, found: Classified, volume: Volume, further: Mapping[str, Any]
) -> None:
    """Write points, tables and picture, each whole or not at all, and the summary last.

    Parameters
    ----------
    folder
        Of the brain.
    found
        What to write.
    volume
        For the picture; a small copy of it is read, if there is one.
    further
        What else belongs into the summary.
    """
    points = folder / "points"
    write_cells(points / "cells.xml", found.cells)
    write_cells(points / "cell_classification.xml", found.classified)
    write_cells(points / "cell_classification.yml", found.classified, _metadata(found))
    _write_table(folder / "candidates.csv", found)
    if found.embedding is not None:
        with replacing(folder / "embeddings.npy") as temporary:
            np.save(temporary, found.embedding)
    figure = classified_candidates(
        _small_copy(volume),
        (found.cells.positions + 0.5) / np.array(volume.shape),
        found.accepted,
        found.probability,
        found.threshold,
        np.multiply(volume.shape, volume.voxel_size_um).tolist(),
    )
    with replacing(folder / "figures" / "classified.png") as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    with replacing(folder / SUMMARY) as temporary:
        text = json.dumps({**found.summary(), **further}, indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")


def _rows(found: Classified) -> Iterator[list[Any]]:
    """Give the table's rows, made a block at a time."""
    types = found.classified.types
    for start in range(0, len(found.cells), _AT_A_TIME):
        at = slice(start, start + _AT_A_TIME)
        columns: list[list[Any]] = [
            *([f"{value:g}" for value in axis] for axis in found.cells.positions[at].T.tolist()),
            found.cells.types[at].tolist(),
            [_figures(p) for p in found.probability[at].tolist()],
            types[at].tolist(),
            found.padded[at].astype(int).tolist(),
            found.unread[at].astype(int).tolist(),
        ]
        if found.disagreement is not None:
            columns.append([_figures(p) for p in found.disagreement[at].tolist()])
        rows = [list(row) for row in zip(*columns, strict=True)]
        if found.embedding is not None:
            for row, seen in zip(rows, found.embedding[at].tolist(), strict=True):
                row += ["" if math.isnan(value) else f"{value:.6g}" for value in seen]
        yield from rows


def _figures(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"


def _write_table(path: Path, found: Classified) -> None:
    names = ["z", "y", "x", "type_in", "probability", "type", "padded", "unread"]
    names += ["disagreement"] if found.disagreement is not None else []
    if found.embedding is not None:
        names += [f"embedding_{i}" for i in range(found.embedding.shape[1])]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(names)
        table.writerows(_rows(found))


def _metadata(found: Classified) -> Iterator[dict[str, float | bool | None]]:
    """Say of each candidate what its type does not; null is YAML's word for nothing."""
    for i, p in enumerate(found.probability):
        said: dict[str, float | bool | None] = {
            "probability": None if math.isnan(p) else round(float(p), 6),
            "padded": bool(found.padded[i]),
            "unread": bool(found.unread[i]),
        }
        if found.disagreement is not None:
            apart = float(found.disagreement[i])
            said["disagreement"] = None if math.isnan(apart) else round(apart, 6)
        yield said


def _small_copy(volume: Volume) -> np.ndarray | None:
    """Read the finest level of a signal that is small; None if it has none that can be read."""
    small = [level for level in volume.levels if math.prod(level.shape) <= _SMALL]
    for level in small:
        try:
            return np.asarray(level.read((0, 0, 0), level.shape, 1)[0])
        except VolumeError:
            continue
    return None
