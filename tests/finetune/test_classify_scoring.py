"""How often parts of a large brain decode its chunks."""

from __future__ import annotations

import threading
from collections import Counter
from itertools import product

import numpy as np
import torch

from cubeclf_core.classifier import LoadedClassifier
from cubeclf_core.vit_config import Vit3dConfig
from cubeclf_core.volumes import ArraySource, Volume
from finetune.classify_parts import make_parts
from finetune.classify_scoring import Scorer, score_parts

UM = (5.0, 1.0, 1.0)
SHAPE, CHUNK, CUBOID = (600, 2000, 1500), (64, 128, 128), (20, 50, 50)
LOCK = threading.Lock()


class Counting(ArraySource):
    """Counts how often each of its chunks is decoded."""

    counts: Counter[tuple[int, ...]]

    def __getitem__(self, key):
        touched = (range(s.start // c, -(-s.stop // c)) for s, c in zip(key, CHUNK, strict=True))
        with LOCK:
            self.counts.update(product(*touched))
        return super().__getitem__(key)


def test_parts_decode_few_chunks_twice() -> None:
    """Half of the candidates in crowds, half anywhere; four parts, on all sides of each other."""
    random = np.random.default_rng(0)
    n = 8000
    crowds = random.uniform(0, SHAPE, (20, 3))[random.integers(20, size=n // 2)]
    crowds += random.normal(0, (20, 100, 100), crowds.shape)
    where = np.concatenate([crowds, random.uniform(0, SHAPE, (n // 2, 3))])
    where = np.floor(np.clip(where, 0, np.array(SHAPE) - 1))
    source = Counting(np.broadcast_to(np.uint16(0), SHAPE), CHUNK)  # takes no memory
    object.__setattr__(source, "counts", Counter())
    volume = Volume("v", (source,), UM)
    parts = make_parts(where, volume.chunk_shape, CUBOID, np.zeros(n, bool), n // 3)
    network = Vit3dConfig(size="nano", channels=1)
    says_nothing = LoadedClassifier(lambda cuboids: torch.zeros(len(cuboids), 2), network)
    done = list(score_parts(Scorer((says_nothing,), None, flips=False), volume, parts))
    assert len(done) == len(parts) == 4
    assert sum(len(part) for part, _ in done) == n
    times = source.counts.total() / len(source.counts)
    assert len(source.counts) > 1000
    assert times < 1.3, times
