"""Measure whether pretraining learns: telling cells from the rest in real c-Fos blocks.

Each objective is pretrained without labels, by cubeclf-pretrain itself; then its backbone is
frozen, and a linear head as cubeclf-finetune fits it (of each cuboid as it is; --full: of copies
too), and k-NN, learn labels in two protocols. Own brain: 100 labels of one half of a block, tested
on the other half; the backbone has seen the block, unlabelled. Transfer: labels of other blocks
only; the backbone has not seen the tested one. Beside them stand the same network untrained,
principal components, a random forest on radial means, brightness rules, crowding, and the whole
network fine-tuned on the same labels. Then what a training step costs. Prints tables, draws a plot,
says how the objectives compare; the exit code is 0 whatever they do, but for --check.

Takes some 30 minutes on two cores; --full takes many hours.
Needs the real data, see CUBECLF_REAL_DATA.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.learning.config import DEFAULT, FULL, QUICK, LearningConfig
from cubeclf_core.console import console
from cubeclf_core.errors import CubeclfError


def parse(argv: Sequence[str] | None = None) -> LearningConfig:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pretraining",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    say = parser.add_argument
    say(
        "--blocks",
        nargs="+",
        default=LearningConfig.blocks,
        help="whose labels are used; to choose settings give 695 753, and 969 stays closed "
        "(default: all three; the folder keeps count of how often 969 was opened)",
    )
    say("--full", action="store_true", help="three seeds and longer training")
    say(
        "--patch-um",
        nargs=3,
        type=float,
        metavar=("Z", "Y", "X"),
        help="patch of the networks, to compare with the default",
    )
    say("--quick", action="store_true", help="a step or two of everything, to see that it runs")
    say(
        "--check",
        action="store_true",
        help="exit with 1 unless the default objective's worst seed is above the best of the "
        "untrained network and of the principal components, in both protocols",
    )
    say("--json", type=Path, help="file to write all figures to, as one flat object")
    say(
        "--plot",
        type=Path,
        help="file to draw to (PNG, PDF, SVG); by default beside --json, or else ./pretraining.png",
    )
    say(
        "--folder",
        type=Path,
        help="where the pretrainings go; by default a temporary folder, removed at the end",
    )
    say(
        "--reuse",
        action="store_true",
        help="take pretrainings with the same settings from --folder as they are",
    )
    say("--seeds", type=int, help="pretrainings of each objective")
    say("--steps-scale", type=float, help="times as many steps of each")
    say("--methods", nargs="+", default=LearningConfig.methods, help="objectives to pretrain by")
    given = vars(parser.parse_args(argv))
    several = ("blocks", "methods", "patch_um")
    lists = {name: tuple(given[name]) for name in several if given[name] is not None}
    return LearningConfig(**{**given, **lists})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; give the exit code."""
    config = parse(argv)
    from benchmarks.learning.measure import measure  # late, so that --help answers at once
    from benchmarks.learning.report import default_learns

    effort = FULL if config.full else QUICK if config.quick else DEFAULT
    try:
        figures = measure(config, effort)
    except CubeclfError as error:
        console.print(f"error: {error}", markup=False)
        return error.exit_code
    return int(config.check and not default_learns(figures))


if __name__ == "__main__":
    sys.exit(main())
