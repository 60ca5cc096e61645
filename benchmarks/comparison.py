"""Run the comparisons of docs/comparison.md: write their brains files, then `cubeclf-compare`.

Those of c-Fos and microglia need the real data, see CUBECLF_REAL_DATA; the others make brains.
Plans are in benchmarks/comparisons. Further flags, --resume and --contenders say, are passed on.

    python -m benchmarks.comparison cfos --folder comparisons/cfos --resume
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cubeclf_core.console import console
from cubeclf_core.errors import CubeclfError

PLANS = Path(__file__).parent / "comparisons"
_RUN = "from finetune.commands import compare; compare()"  # as cubeclf-compare does

# Each unlike the usual in one way: factors of `cubeclf-simulate --traits`, and cells.
UNLIKE: Mapping[str, dict[str, Any]] = {
    "dim": {"traits": {"brightness": 0.5}},
    "blurred": {"traits": {"blur": 2.0}},
    "dense": {"cells": 1200},
    "full of artefacts": {"traits": {"artefacts": 3.0}},
}
_USUAL: Mapping[str, dict[str, Any]] = {"usual 1": {}, "usual 2": {}, "usual 3": {}}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one comparison; give the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.comparison",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=list(MAKE), help="which comparison")
    parser.add_argument("--folder", type=Path, required=True, help="for brains files and results")
    # Whatever else is given are flags of `cubeclf-compare`.
    given, rest = parser.parse_known_args(argv)
    try:
        given.folder.mkdir(parents=True, exist_ok=True)
        MAKE[given.name](given.folder)
        plan = given.folder / "plan.yaml"
        shutil.copyfile(PLANS / f"{given.name}.yaml", plan)
        words = [sys.executable, "-c", _RUN, str(plan), "--out", str(given.folder / "comparison")]
        return subprocess.run([*words, *rest], check=False).returncode
    except CubeclfError as error:
        console.print(f"error: {error}", markup=False)
        return error.exit_code


def _cfos(folder: Path) -> None:
    from benchmarks.learning.blocks import (
        SEEN,
        count_opening,
        data_folder,
        write_brains_file,
        write_labelled,
    )
    from benchmarks.learning.config import LABELLED

    count_opening(folder, LABELLED, ["comparison"])
    for seen in SEEN:
        write_brains_file(data_folder(), seen, folder)
    write_labelled(data_folder(), LABELLED, folder / "labelled.yaml")


def _microglia(folder: Path) -> None:
    from benchmarks.learning.blocks import MICROGLIA, data_folder, write_labelled, write_unlabelled
    from benchmarks.learning.config import LABELLED

    data = data_folder()
    write_unlabelled(data, (*LABELLED, "1230"), folder / "cfos.yaml")
    write_labelled(data, MICROGLIA, folder / "labelled.yaml")


def _simulated(folder: Path) -> None:
    _simulate(folder, {**_USUAL, **UNLIKE}, (96, 512, 512), cells=400)


def _small(folder: Path) -> None:
    _simulate(folder, _USUAL, (64, 320, 320), cells=150)


def _simulate(
    folder: Path, brains: Mapping[str, dict[str, Any]], shape: tuple[int, int, int], cells: int
) -> None:
    from cubeclf_core.config import SimulateConfig
    from cubeclf_core.simulate import simulate

    entries = []
    for seed, (name, changes) in enumerate(brains.items()):
        out = folder / name.replace(" ", "_")
        if not out.exists():
            simulate(SimulateConfig(out=out, shape=shape, seed=seed, **{"cells": cells, **changes}))
        signal = str((out / "brain.ome.zarr").resolve())
        entries.append(
            {"name": name, "signal": signal, "cells": str((out / "cells.xml").resolve())}
        )
    (folder / "labelled.yaml").write_text(yaml.safe_dump(entries), encoding="utf-8")
    usual = [entry for entry in entries if entry["name"] in _USUAL]
    (folder / "usual.yaml").write_text(yaml.safe_dump(usual), encoding="utf-8")


MAKE: Mapping[str, Callable[[Path], None]] = {
    "cfos": _cfos,
    "cfos_own": _cfos,
    "cfos_transfer": _cfos,
    "microglia": _microglia,
    "simulated": _simulated,
    "small": _small,
}

if __name__ == "__main__":
    sys.exit(main())
