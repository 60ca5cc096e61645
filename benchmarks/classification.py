"""Measure how fast candidates are classified, as whole commands, and how well.

cellfinder with its ResNet-50 and with our .keras, and cubeclf-classify with each size and format,
one process after another, on the same candidates of a real crop and of a simulated brain; then ours
alone on many more, to see how time and memory grow. Beside each speed stands the average precision
of that very classifier on real c-Fos blocks, and beside the default that of cellfinder's ResNet-18
trained on the same labels.

The default is a frozen pretrained network with a head fitted to 100 labels: --folder takes that of
`python -m benchmarks.pretraining`, and keeps what is made. Without its runs all networks have
random weights, which are as fast. Takes about an hour on two cores; nothing else should run
meanwhile. Needs the real data, see CUBECLF_REAL_DATA, and cellfinder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.classifying.config import FORMATS, FULL, QUICK, SIZES, ClassificationConfig
from cubeclf_core.console import console
from cubeclf_core.errors import CubeclfError


def parse(argv: Sequence[str] | None = None) -> ClassificationConfig:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.classification",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    say = parser.add_argument
    say(
        "--folder",
        type=Path,
        help="of python -m benchmarks.pretraining; brains, classifiers and average precisions are "
        "kept in it (default: a temporary one, removed at the end)",
    )
    say("--quick", action="store_true", help="few candidates and no real data, to see that it runs")
    say("--check", action="store_true", help="exit with 1 unless all that must be reached is")
    say("--no-cellfinder", dest="cellfinder", action="store_false", help="ours alone")
    say("--rounds", type=int, help="of all runs; figures are medians (default: 1)")
    say("--sizes", nargs="+", choices=SIZES, help="of networks")
    say("--formats", nargs="+", choices=FORMATS, help="what classifiers are stored as")
    say("--json", type=Path, help="file to write all figures to, as one flat object")
    say(
        "--plot",
        type=Path,
        help="file to draw to; by default beside --json, or else ./classification.png",
    )
    given = vars(parser.parse_args(argv))
    several = {name: tuple(given[name]) for name in ("sizes", "formats") if given[name]}
    return ClassificationConfig(**{**given, **several})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; give the exit code."""
    config = parse(argv)
    from benchmarks.classifying.measure import measure  # late, so that --help answers at once
    from benchmarks.classifying.report import met

    try:
        figures = measure(config, QUICK if config.quick else FULL)
    except CubeclfError as error:
        console.print(f"error: {error}", markup=False)
        return error.exit_code
    return int(config.check and not met(figures))


if __name__ == "__main__":
    sys.exit(main())
