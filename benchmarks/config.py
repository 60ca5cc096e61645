"""What a benchmark can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StreamingConfig:
    """What ``python -m benchmarks.streaming`` was told; see its help."""

    volume: Path | None = None
    quick: bool = False
    json: Path | None = None
    plot: Path | None = None
    folder: Path | None = None
    memory_gb: float = 2.0
    threads: int | None = None
