"""How often parts of a large brain decode its chunks."""

from __future__ import annotations

import threading
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch

from cubeclf_core.classifier import LoadedClassifier
from cubeclf_core.vit_config import Vit3dConfig
from cubeclf_core.volumes import ArraySource, Volume
from finetune.classifying.parts import make_parts
from finetune.classifying.scoring import Scorer, score_parts

UM = (5.0, 1.0, 1.0)
CHUNK, CUBOID = (64, 128, 128), (20, 50, 50)
LOCK = threading.Lock()


class Counting(ArraySource):
    """Counts how often each of its chunks is decoded."""

    counts: Counter[tuple[int, ...]]

    def __getitem__(self, key):
        touched = (range(s.start // c, -(-s.stop // c)) for s, c in zip(key, CHUNK, strict=True))
        with LOCK:
            self.counts.update(product(*touched))
        return super().__getitem__(key)


LAYOUTS = (
    pytest.param((600, 2000, 1500), 8000, 3000, 4, 1.25, id="four parts"),
    pytest.param(
        *((1600, 7000, 5000), 200_000, 16_384, 16, 1.2),
        id="a whole brain",
        marks=pytest.mark.slow,
    ),
)


@pytest.mark.parametrize(("shape", "n", "most", "n_parts", "times"), LAYOUTS)
def test_parts_decode_few_chunks_twice(shape, n, most, n_parts, times) -> None:
    """Half of the candidates are in crowds, half anywhere."""
    random = np.random.default_rng(0)
    crowds = random.uniform(0, shape, (n // 400, 3))[random.integers(n // 400, size=n // 2)]
    crowds += random.normal(0, (20, 100, 100), crowds.shape)
    where = np.concatenate([crowds, random.uniform(0, shape, (n // 2, 3))])
    where = np.floor(np.clip(where, 0, np.array(shape) - 1))
    source = Counting(np.broadcast_to(np.uint16(0), shape), CHUNK)  # takes no memory
    object.__setattr__(source, "counts", Counter())
    volume = Volume("v", (source,), UM)
    parts = make_parts(where, volume.chunk_shape, CUBOID, np.zeros(n, bool), most)
    network = Vit3dConfig(size="nano", channels=1)
    says_nothing = LoadedClassifier(lambda cuboids: torch.zeros(len(cuboids), 2), network)
    done = list(score_parts(Scorer((says_nothing,), None, flips=False), volume, parts))
    assert len(done) == len(parts) == n_parts
    assert sum(len(part) for part, _ in done) == n
    assert source.counts.total() / len(source.counts) < times
