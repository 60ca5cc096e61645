"""What ``python -m benchmarks.classification`` can be told, and how much there is to measure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cubeclf_core.axes import Shape3

SIZES = ("nano", "micro", "tiny", "small")
DEFAULT_SIZE = "nano"
FORMATS = ("fast", "exact", "torch", "onnx", "int8", "keras")
"""A run's own file, read as the machine is fastest or as it was trained, and exports of it."""


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """What the user said; see ``python -m benchmarks.classification --help``."""

    folder: Path | None = None
    quick: bool = False
    check: bool = False
    cellfinder: bool = True
    rounds: int | None = None
    sizes: tuple[str, ...] | None = None
    formats: tuple[str, ...] | None = None
    json: Path | None = None
    plot: Path | None = None


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes
    ----------
    candidates
        Where cellfinder takes part.
    simulated
        Shape of the simulated brain that they are in, z y x, and its cells.
    many
        Candidates of the two brains for ours alone, and those brains' shapes: as many voxels for
        each candidate.
    rounds
        Of the runs that ratios are made of; figures are medians.
    sizes, formats
        Of ours, where they are not told.
    real
        Whether real data takes part: the crop, and the blocks that average precision is of.
    """

    candidates: int = 3000
    simulated: tuple[Shape3, int] = ((96, 640, 640), 2400)
    many: tuple[tuple[int, Shape3], ...] = (
        (20_000, (128, 1024, 1024)),
        (200_000, (256, 2304, 2304)),
    )
    rounds: int = 1
    sizes: tuple[str, ...] = SIZES
    formats: tuple[str, ...] = FORMATS
    real: bool = True


FULL = Effort()
QUICK = Effort(
    candidates=100,
    simulated=((32, 192, 192), 60),
    many=((100, (32, 160, 160)), (400, (32, 320, 320))),
    sizes=(DEFAULT_SIZE,),
    formats=("fast", "exact"),
    real=False,
)
