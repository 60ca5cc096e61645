"""Settings that go together, by where a run takes place: `cubeclf-pretrain --preset NAME`.

A flag or a --config file wins over a preset. What each took and reached is in
docs/pretraining.md; the laptop's are those of simclr in `python -m benchmarks.pretraining`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # cubeclf-pretrain BRAIN --preset laptop --out runs/laptop
    "laptop": {"size": "nano", "steps": 300, "batch_size": 64},
    # cubeclf-pretrain BRAIN… --preset gpu --out runs/gpu
    # Not run as a whole; by the speed of its steps, two hours on an H200.
    "gpu": {
        "size": "small",
        "steps": 50_000,
        "batch_size": 512,
        "compile": True,
        "memory_gb": 16.0,
        "checkpoint_every": 1000,
        "monitor_every": 1000,
    },
    # torchrun --nproc-per-node 8 $(which cubeclf-pretrain) BRAIN… --preset node --out runs/node
    # Not run as a whole; by the speed of its steps, 36 hours on one H200.
    "node": {
        "size": "base",
        "steps": 100_000,
        "batch_size": 2048,
        "compile": True,
        "memory_gb": 64.0,
        "checkpoint_every": 1000,
        "monitor_every": 1000,
    },
}
