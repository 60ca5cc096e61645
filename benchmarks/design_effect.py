"""How independent the cuboids of a batch are: the design effect of its mean.

The design effect is the variance of a batch's mean over that of as many independent cuboids. It is
taken over many fields of smooth random brightness, in which neighbouring cuboids are alike. Only
the stream's origins are needed, and the mean brightness at an origin is a sum of a few products; so
the volume is not read at all, and each batch is judged on many fields at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.streams import BATCH, CUBOID, make_stream, unread
from benchmarks.volume import KNOTS, hats, n_knots
from cubeclf_core.axes import Shape3
from cubeclf_core.volumes import Volume

_SHAPE: Shape3 = (1024, 1024, 1024)  # so large that a pool of 2 GiB holds no place twice
_FIELDS = 64
_STEPS = 10  # batches in a row of each seed: filling its pool costs the same for one
_SINGLE = 40  # times a batch of cuboids, from which the variance of one is taken
_IN_A_ROW = 32  # cuboids of one chunk, where they are not shuffled

Ints = npt.NDArray[np.int64]
Measure = tuple[Ints, ...]  # the origins along z y x, each as likely as any other
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Effect:
    """A design effect and its standard error."""

    value: float
    error: float


class Fields:
    """Many fields of random brightness, whose mean over any cuboid is known.

    Parameters
    ----------
    shape
        Of the volume, z y x.
    """

    def __init__(self, shape: Shape3) -> None:
        random = np.random.default_rng(5)
        self.shape, self._knots = shape, random.standard_normal((*n_knots(shape), _FIELDS))
        self._weights = []  # of the knots in a cuboid's mean, for each of its first voxels
        for n, extent, knot, k in zip(shape, CUBOID, KNOTS, n_knots(shape), strict=True):
            sums = np.cumsum(hats(np.arange(n), knot, k), axis=0, dtype=np.float64)
            sums = np.concatenate([np.zeros((1, k)), sums])
            self._weights.append((sums[extent:] - sums[:-extent]) / extent)

    def means(self, origins: Ints) -> Floats:
        """Mean brightness of cuboids; shape (n, fields)."""
        near, weights = [], []  # each cuboid lies between a few knots
        for w, o, extent, knot in zip(self._weights, origins.T, CUBOID, KNOTS, strict=True):
            k = o[:, None] // knot + np.arange((extent - 1) // knot + 3)
            k = np.minimum(k, w.shape[1] - 1)
            near.append(k)
            weights.append(np.where(np.diff(k, prepend=-1) > 0, w[o[:, None], k], 0.0))
        z, y, x = near
        knots = self._knots[z[:, :, None, None], y[:, None, :, None], x[:, None, None, :]]
        return np.asarray(np.einsum("bi,bj,bk,bijkf->bf", *weights, knots, optimize=True))

    def expected(self, measure: Measure) -> Floats:
        """Mean of that over all origins; shape (fields,)."""
        means = (w[o].mean(axis=0) for w, o in zip(self._weights, measure, strict=True))
        return np.asarray(np.einsum("i,j,k,ijkf->f", *means, self._knots, optimize=True))


def design_effects(like: Volume, n_batches: int, **options: Any) -> dict[str, Effect]:
    """Measure the stream's batches, unshuffled ones, and independent cuboids as a check.

    Parameters
    ----------
    like
        The volume whose chunks, channels and dtype to take.
    n_batches
        To judge, of each kind.
    options
        Of the streams.
    """
    fields, random = Fields(_SHAPE), np.random.default_rng(0)
    (volume, tissue), chunk = unread(like, _SHAPE), like.chunk_shape
    everywhere = tuple(np.arange(n - e + 1) for n, e in zip(_SHAPE, CUBOID, strict=True))
    in_chunks = tuple(o[o % c <= c - e] for o, c, e in zip(everywhere, chunk, CUBOID, strict=True))

    def stream(i: int) -> Iterator[Ints]:
        start = int(random.integers(1_000_000))
        made = make_stream(volume, tissue, seed=i, **options)
        return (batch.origin for batch in made.batches(start, start + _STEPS))

    def alone(_: int) -> Iterator[Ints]:
        return (_draw(everywhere, BATCH, random) for _ in range(_STEPS))

    def unshuffled(_: int) -> Iterator[Ints]:
        for _ in range(_STEPS):
            corners = _draw(in_chunks, BATCH // _IN_A_ROW, random) // chunk * chunk
            room = np.subtract(chunk, CUBOID) + 1
            within = (random.random((BATCH, 3)) * room).astype(np.int64)
            yield np.repeat(corners, _IN_A_ROW, axis=0) + within

    kinds: dict[str, tuple[Measure, Callable[[int], Iterator[Ints]]]] = {
        "design_effect": (everywhere, stream),
        "design_effect_unshuffled": (in_chunks, unshuffled),
        "design_effect_independent": (everywhere, alone),
    }
    n_groups = max(2, n_batches // _STEPS)
    effects = {}
    for name, (measure, batches) in kinds.items():
        mean = fields.expected(measure)
        singles = [fields.means(_draw(measure, BATCH, random)) for _ in range(_SINGLE)]
        variance = ((np.concatenate(singles) - mean) ** 2).mean(axis=0) / BATCH
        groups = [
            np.mean([(fields.means(o).mean(axis=0) - mean) ** 2 / variance for o in batches(i)])
            for i in range(n_groups)
        ]
        error = np.std(groups, ddof=1) / np.sqrt(n_groups)
        effects[name] = Effect(float(np.mean(groups)), float(error))
    return effects


def _draw(measure: Measure, n: int, random: np.random.Generator) -> Ints:
    return np.stack([random.choice(origins, n) for origins in measure], axis=1)
