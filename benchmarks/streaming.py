"""Measure how fast cuboids of 20×50×50 voxels come from a volume, and at which memory.

Prints a table, and draws a plot: cuboids per second of processor time and of the clock, one by one
with zarr-python, dask and tensorstore (where installed), by the stream and by the reader of
candidates; memory; and how independent the cuboids of a batch are. A figure that misses what it
must reach is marked; the exit code is 0 all the same.

The volume is made for it: two channels of uint16, blosc-zstd in chunks of 64×128×128, which
compress two-fold. Takes some ten minutes, 3 GB of disk and 10 GB of memory; --quick a third of the
time. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.config import StreamingConfig
from cubeclf_core.console import console
from cubeclf_core.errors import CubeclfError


def parse(argv: Sequence[str] | None = None) -> StreamingConfig:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.streaming",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    say = parser.add_argument
    say("--volume", type=Path, help="a zarr or OME-Zarr of one or two channels to read instead")
    say("--quick", action="store_true", help="a smaller volume, fewer and shorter measurements")
    say("--json", type=Path, help="file to write all figures to, as one flat object")
    say(
        "--plot",
        type=Path,
        help="file to draw to (PNG, PDF, SVG); by default beside --json, or else ./streaming.png",
    )
    say(
        "--folder",
        type=Path,
        help="where to make the volume, and to find it the next time; "
        "by default a temporary folder, which is removed at the end",
    )
    say(
        "--memory-gb",
        type=float,
        default=StreamingConfig.memory_gb,
        help="of each of the three streams whose speed is measured, "
        "in GB of 2³⁰ bytes (default: %(default)s)",
    )
    say("--threads", type=int, help="that decode (default: one a core, at most 8)")
    return StreamingConfig(**vars(parser.parse_args(argv)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; give the exit code."""
    config = parse(argv)
    from benchmarks.measure import FULL, QUICK, measure  # late, so that --help answers at once

    try:
        measure(config, QUICK if config.quick else FULL)
    except CubeclfError as error:
        console.print(f"error: {error}", markup=False)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
