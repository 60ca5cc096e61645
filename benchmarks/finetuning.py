"""Measure what few labels are worth: own-brain and transfer, on real c-Fos blocks.

Contenders learn the same labels: simple rules, a forest on radial means, cellfinder's ResNet-18 and
a vision transformer from scratch, and the backbones of `python -m benchmarks.pretraining --folder`,
frozen, with LoRA and fine-tuned. Own brain: 20, 50 and 100 labels of one half of a block, tested on
the other; the backbone has seen the block, unlabelled. Transfer: 20, 100, 500 and all labels of the
other blocks; it has not. What is measured is kept in FOLDER/finetuning, so that a run that was
stopped goes on; delete it when a contender has changed.

Takes hours on two cores. Needs the real data, see CUBECLF_REAL_DATA.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cubeclf_core.console import console
from cubeclf_core.errors import CubeclfError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; give the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.finetuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    say = parser.add_argument
    say("folder", type=Path, help="of python -m benchmarks.pretraining, with its runs")
    say("--blocks", nargs="+", default=("695", "753", "969"), help="whose labels are used")
    say("--contenders", nargs="+", help="some of them; all by default")
    say("--own", nargs="+", type=int, default=(20, 50, 100), help="labels of one half of a block")
    say(
        "--transfer",
        nargs="+",
        type=int,
        default=(20, 100, 500, 0),
        help="labels of the other blocks; 0 is all of them",
    )
    say("--seeds", type=int, default=3, help="of the contenders and of the draws of labels")
    say("--show", action="store_true", help="print what has been measured, and measure no more")
    say("--json", type=Path, help="file to write all figures to, as one flat object")
    say("--plot", type=Path, default=Path("finetuning.png"), help="file to draw to")
    given = parser.parse_args(argv)
    from benchmarks.learning.grid import Grid, run_grid  # late, so that --help answers at once

    try:
        settings: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in vars(given).items()
        }
        run_grid(Grid(**settings))
    except CubeclfError as error:
        console.print(f"error: {error}", markup=False)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
