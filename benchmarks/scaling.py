"""Measure how time and memory grow: with brains, with the batch, and with processes.

Each figure is of a process of its own with one thread: cuboids a second, seconds until the first
batch, and the most memory it held. How classification grows with candidates is measured by
`python -m benchmarks.classification`. Takes some eight minutes; nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from benchmarks.output import Figures, machine, working_folder, write_json
from benchmarks.page import scaling_part
from cubeclf_core.axes import Shape3
from cubeclf_core.console import console, say
from cubeclf_core.errors import CubeclfError, RunFailed

BRAINS = (1, 4, 16)
BATCHES = (16, 64, 256)
_BATCH = 64  # where something else is varied
PROCESSES = (1, 2)
_SHAPE: Shape3 = (128, 256, 256)
_STEPS = 16
PACKAGES = ("torch", "timm", "zarr", "numpy")

# What a process measures of a pretraining: from its start, and by its own account.
_RUN = """
import json, os, resource, sys, time
from pathlib import Path
start = time.monotonic()
import torch
from pretrain.config import PretrainConfig
from pretrain.fit import Fit
from pretrain.run import pretrain
torch.set_num_threads(1)
first = []
step = Fit._step
def timed(self, *args):
    first.append(time.monotonic())
    return step(self, *args)
Fit._step = timed
given = json.loads(sys.argv[1])
pretrain(PretrainConfig(**{**given, "out": Path(given["out"])}))
seconds = (first[-1] - first[2]) / (len(first) - 3)  # the first steps fill the pool
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
told = {"cuboids_per_s": given["batch_size"] / seconds, "start_seconds": first[0] - start}
if os.environ.get("RANK", "0") == "0":
    print("FIGURES " + json.dumps(told | {"memory_gb": memory}))
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; give the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    given = parser.parse_args(argv)
    try:
        with working_folder(None) as folder:
            figures = measure(folder)
        if given.json:
            write_json(figures, given.json)
    except CubeclfError as error:
        console.print(f"error: {error}", markup=False)
        return error.exit_code
    print("\n\n".join(scaling_part(figures)), flush=True)
    return 0


def measure(folder: Path, shape: Shape3 = _SHAPE, steps: int = _STEPS) -> Figures:
    """Measure all there is: ``brains.N.FIGURE``, ``batch.N.FIGURE``, ``processes.N.FIGURE``.

    Figures are ``cuboids_per_s``, ``start_seconds`` from the start of the process to the first
    batch, and ``memory_gb``, of one process, GB of 2³⁰ bytes.
    """
    from benchmarks.volume import write_brain  # late, so that --help answers at once

    write_brain(folder / "brain.ome.zarr", shape)
    figures = machine(PACKAGES)

    @functools.cache  # what all three have in common is one figure
    def pretrain(brains: int, batch_size: int, processes: int) -> dict[str, float]:
        return _pretrain(folder, steps, brains, batch_size, processes)

    for n in BRAINS:
        figures |= _named(f"brains.{n}", pretrain(n, _BATCH, 1))
    for n in BATCHES:
        figures |= _named(f"batch.{n}", pretrain(1, n, 1))
    for n in PROCESSES:
        figures |= _named(f"processes.{n}", pretrain(1, _BATCH, n))
    return figures


def _named(key: str, found: dict[str, float]) -> Figures:
    say(f"{key}: {found['cuboids_per_s']:.0f} cuboids/s, {found['memory_gb']:.2f} GB")
    return {f"{key}.{name}": value for name, value in found.items()}


def _pretrain(
    folder: Path, steps: int, brains: int, batch_size: int, processes: int
) -> dict[str, float]:
    """Pretrain for some steps, in one process or in several by gloo; figures of the first."""
    file = folder / f"{brains}.yaml"
    signal = str(folder / "brain.ome.zarr")
    entries = [{"name": f"brain {i}", "signal": signal} for i in range(brains)]
    file.write_text(yaml.safe_dump(entries), encoding="utf-8")
    settings = {
        "brains": [str(file)],
        "out": str(folder / "run"),
        "size": "nano",
        "steps": steps,
        "batch_size": batch_size,
        "candidate_share": 0.0,
        "memory_gb": 0.25,
        "logger": ["none"],
        "monitor_every": 1_000_000,
        "checkpoint_every": 1_000_000,
        "overwrite": True,
    }
    code = folder / "run.py"
    code.write_text(_RUN, encoding="utf-8")
    words = [sys.executable]
    if processes > 1:
        words += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run(
        [*words, str(code), json.dumps(settings)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FIGURES ")]
    if done.returncode or not lines:
        raise RunFailed(f"a pretraining failed: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, float] = json.loads(lines[0].removeprefix("FIGURES "))
    return found


if __name__ == "__main__":
    sys.exit(main())
