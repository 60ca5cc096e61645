"""Parts of a brain's candidates: what is scored in one go, and the file that is left of it.

A part is a group of chunks, so that parts share few of the chunks that they decode. It depends on
nothing but the positions and the volume, and what is computed of a part on nothing but the part:
so a run may be killed, or parts may be shared out to any number of workers, and the result is the
same. A file is there whole or not at all, and says what it is a part of; a part that is done twice
leaves the same file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cubeclf_core.axes import Shape3
from cubeclf_core.files import replacing

_THINNEST = 4  # cuboids along an axis: parts decode what lies at their border twice

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
_KEY = "cubeclf"


@dataclass(frozen=True)
class Part:
    """Some candidates of a brain.

    Attributes
    ----------
    number
        From 0.
    index
        Shape (n,), which of the brain's candidates, ascending.
    positions
        Shape (n, 3), z y x in voxels of the volume.
    embedded
        Shape (n,), whose embedding is kept.
    """

    number: int
    index: Integers
    positions: Float[np.ndarray, "n 3"]
    embedded: Bool[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Scores:
    """What came of a part, in its order.

    Attributes
    ----------
    probability
        Shape (n, k), of being a cell, by each of k classifiers; NaN where it was not read.
    padded, unread
        Shape (n,), see `CandidateCuboids`.
    embedding
        Shape (m, feature), of those whose embedding was asked for; NaN where it was not read.
    reading_s, waiting_s
        Seconds that reading took, beside other work, and that was waited for it.
    faults
        What could not be read, and why.
    """

    probability: Float[np.ndarray, "n k"]
    padded: Bool[np.ndarray, " n"]
    unread: Bool[np.ndarray, " n"]
    embedding: Float32[np.ndarray, "m feature"]
    reading_s: float
    waiting_s: float
    faults: tuple[str, ...] = ()


def make_parts(
    positions: Float[np.ndarray, "n 3"],
    chunk: Shape3,
    cuboid: Shape3,
    embedded: Bool[np.ndarray, " n"],
    most: int,
) -> list[Part]:
    """Cut candidates into parts, by halving groups of chunks.

    Parameters
    ----------
    positions
        z y x in voxels of the volume.
    chunk
        Voxels that are decoded together.
    cuboid
        In voxels of the volume.
    embedded
        Whose embedding is to be kept.
    most
        Candidates of a part; more where a smaller one would be too thin or within one chunk.
    """
    chunks = np.floor(positions / np.array(chunk)).astype(np.int64)
    groups: list[Integers] = []
    left = [np.arange(len(positions))]
    while left:
        index = left.pop()
        cut = _cut(chunks[index], np.array(chunk) / np.array(cuboid)) if len(index) > most else None
        if cut is None:
            groups.append(index)
        else:
            axis, border = cut
            below = chunks[index, axis] < border
            left += [index[~below], index[below]]  # the lower one is next
    return [
        Part(number, index, positions[index], embedded[index])
        for number, index in enumerate(groups)
    ]


def _cut(chunks: Integers, size: Floats) -> tuple[int, int] | None:
    """Choose axis and first upper chunk that halve a group, along its longest axis that can be cut.

    Parameters
    ----------
    chunks
        Shape (n, 3), of each candidate.
    size
        Of a chunk, in cuboids.
    """
    first, stop = chunks.min(axis=0), chunks.max(axis=0) + 1
    for axis in np.argsort(-(stop - first) * size, kind="stable").tolist():
        borders = np.arange(first[axis] + 1, stop[axis])
        thinner = np.minimum(borders - first[axis], stop[axis] - borders) * size[axis]
        borders = borders[thinner >= _THINNEST]
        if len(borders):
            below = np.searchsorted(np.sort(chunks[:, axis]), borders)
            return axis, int(borders[np.abs(below - len(chunks) / 2).argmin()])
    return None


def part_file(folder: Path, number: int) -> Path:
    """Where what came of a part is kept."""
    return folder / f"part_{number:06d}.safetensors"


def save_part(folder: Path, part: Part, job: str, scores: Scores) -> None:
    """Write what came of a part, whole or not at all.

    Parameters
    ----------
    folder
        Where.
    part
        Which.
    job
        Digest of all that its scores depend on.
    scores
        What came of it.
    """
    told = {
        "of": _mark(part, job),
        "reading_s": scores.reading_s,
        "waiting_s": scores.waiting_s,
        "faults": list(scores.faults),
    }
    arrays = {
        "probability": scores.probability,
        "padded": scores.padded,
        "unread": scores.unread,
        "embedding": scores.embedding,
    }
    with replacing(part_file(folder, part.number)) as temporary:
        save_file(arrays, temporary, metadata={_KEY: json.dumps(told)})


def load_part(folder: Path, part: Part, job: str) -> Scores | None:
    """Read what came of a part; None if there is nothing whole, or something of another job."""
    try:
        with safe_open(part_file(folder, part.number), "np") as opened:
            told = json.loads((opened.metadata() or {})[_KEY])
            if told["of"] != _mark(part, job):
                return None
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return Scores(
            **arrays,
            reading_s=float(told["reading_s"]),
            waiting_s=float(told["waiting_s"]),
            faults=tuple(told["faults"]),
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def unfinished(folder: Path, parts: Sequence[Part], job: str) -> list[Part]:
    """Those parts of which there is no result, or one in which something could not be read."""
    left = []
    for part in parts:
        scores = load_part(folder, part, job)
        if scores is None or scores.unread.any():
            left.append(part)
    return left


def _mark(part: Part, job: str) -> str:
    """Tell a part from any other, of this job or another."""
    found = hashlib.sha256(f"{job} {part.number}".encode())
    for array in (part.index, part.positions, part.embedded):
        found.update(array.tobytes())
    return found.hexdigest()
