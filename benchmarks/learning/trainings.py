"""Pretraining by the command itself, several processes side by side."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.learning.config import Effort
from benchmarks.learning.recipes import COMMON, RECIPES
from cubeclf_core.cli import to_yaml
from cubeclf_core.console import say
from cubeclf_core.errors import RunFailed
from cubeclf_core.vit import Vit3dConfig
from pretrain.config import PretrainConfig
from pretrain.starting import network_config

_TELL_EVERY_S = 30.0
_RUN = "from pretrain.commands import pretrain; pretrain()"  # as cubeclf-pretrain does
_DONE = "done.json"  # in a run's folder, once it has ended well


@dataclass(frozen=True)
class Training:
    """One pretraining of the benchmark.

    Attributes
    ----------
    method
        The objective.
    seen
        Key of `SEEN`.
    config
        All its settings; the seed is among them.
    """

    method: str
    seen: str
    config: PretrainConfig

    @property
    def name(self) -> str:
        """Of its run."""
        return self.config.out.name

    @property
    def out(self) -> Path:
        """Folder of its run."""
        return self.config.out

    @property
    def seconds(self) -> float:
        """How long it took, the start of the process among it."""
        return float(self._told()["seconds"])

    def done(self) -> bool:
        """Whether its folder holds the result of these very settings, on these very brains."""
        written = self.out / "config.yaml"
        again = dataclasses.replace(self.config, overwrite=False)
        return (
            (self.out / _DONE).exists()
            and written.read_text("utf-8") == to_yaml(again)
            and self._told()["brains"] == self.brains()
        )

    def brains(self) -> list[str]:
        """What its brains files say; they are of the same names whatever that is."""
        return [Path(file).read_text("utf-8") for file in self.config.brains]

    def end(self, seconds: float) -> None:
        """Write down that it has ended well, and how long it took."""
        told = {"seconds": seconds, "brains": self.brains()}
        (self.out / _DONE).write_text(json.dumps(told), encoding="utf-8")

    def _told(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((self.out / _DONE).read_text(encoding="utf-8"))
        return told


def settings_of(method: str, effort: Effort) -> dict[str, Any]:
    """Settings of `cubeclf-pretrain` for an objective."""
    settings = {**COMMON, **RECIPES[method], **effort.overrides, "method": method}
    settings["steps"] = max(1, round(settings["steps"] * effort.steps_scale))
    return settings


def network_of(settings: Mapping[str, Any]) -> Vit3dConfig:
    """Network that `cubeclf-pretrain` makes with such settings."""
    config = PretrainConfig(("any",), out=Path("any"), **settings)
    return network_config(config, config.channels or 1)


def plan(
    methods: Sequence[str], brains: Mapping[str, Path], folder: Path, effort: Effort
) -> list[Training]:
    """List all pretrainings: each objective, on what each backbone may see, with each seed.

    Parameters
    ----------
    methods
        The objectives.
    brains
        Brains file of each key of `SEEN`.
    folder
        Where the runs go.
    effort
        How many seeds and steps.
    """
    return [
        Training(
            method,
            seen,
            PretrainConfig(
                (str(file),),
                out=folder / "runs" / f"{method}-{seen}-{seed}",
                seed=seed,
                overwrite=True,
                **settings_of(method, effort),
            ),
        )
        for seed in range(effort.seeds)
        for method in methods
        for seen, file in brains.items()
    ]


def carry_out(trainings: Sequence[Training], *, reuse: bool, side_by_side: int) -> None:
    """Run pretrainings, each in a process of its own with one thread.

    Parameters
    ----------
    trainings
        In the order in which they are begun.
    reuse
        Leave out what is done already with the same settings.
    side_by_side
        Processes at a time.

    Raises
    ------
    RunFailed
        If one fails; the others are stopped.
    """
    waiting = deque(t for t in trainings if not (reuse and t.done()))
    say(f"pretraining: {len(waiting)} runs, {len(trainings) - len(waiting)} are done already")
    running: dict[subprocess.Popen[bytes], tuple[Training, float]] = {}
    told = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < side_by_side:
                training = waiting.popleft()
                running[_start(training)] = training, time.monotonic()
            for process, (training, start) in list(running.items()):
                if process.poll() is not None:
                    del running[process]
                    _end(training, process.returncode, time.monotonic() - start)
            if time.monotonic() - told > _TELL_EVERY_S:
                told = time.monotonic()
                for training, _ in running.values():
                    say(f"{training.name}: {_last_line(training)}")
            time.sleep(0.2)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def _log(training: Training) -> Path:
    return training.out.with_suffix(".log")


def _start(training: Training) -> subprocess.Popen[bytes]:
    training.out.parent.mkdir(parents=True, exist_ok=True)
    file = training.out.with_suffix(".yaml")
    file.write_text(to_yaml(training.config), encoding="utf-8")
    command = [sys.executable, "-c", _RUN, "--config", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with _log(training).open("wb") as log:
        return subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, cwd=Path(__file__).parents[2]
        )


def _end(training: Training, code: int, seconds: float) -> None:
    if code:
        raise RunFailed(
            f"pretraining {training.name} ended with exit code {code}: {_last_line(training)} "
            f"(all it said is in {_log(training)})"
        )
    training.end(seconds)
    say(f"{training.name}: done in {seconds / 60:.1f} min")


def _last_line(training: Training) -> str:
    lines = _log(training).read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else "starting"
