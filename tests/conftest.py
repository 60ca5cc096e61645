from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from beartype import BeartypeConf, beartype
from hypothesis import settings
from jaxtyping import install_import_hook

# What our modules import: if they did it under the hook below, Python would pass over the compiled
# files of these, for seconds.
FIRST = (
    "dask.array",
    "lightning_fabric",
    "matplotlib.figure",
    "sklearn.ensemble",
    "timm",
    "zarr",
)


def pytest_configure(config: pytest.Config) -> None:
    """Check types, shapes and dtypes of annotations at every call; an int will do for a float."""
    if config.getoption("numprocesses", None):
        return  # which has others test
    for name in FIRST:
        import_module(name)
    # The hook takes its checker by a name that can be imported.
    sys.modules["checker"] = checker = ModuleType("checker")
    checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # type: ignore[attr-defined]
    install_import_hook(["cubeclf_core", "pretrain", "finetune"], "checker.check")


settings.register_profile("cubeclf", deadline=None, max_examples=50)
settings.load_profile("cubeclf")

ROOT = Path(__file__).parents[1]
REAL_DATA = Path(os.environ.get("CUBECLF_REAL_DATA", ROOT / ".." / "shared" / "data")).resolve()


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.strip().splitlines()


Command = Callable[..., Outcome]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run an installed command in this process, through its entry point and the launcher."""

    def run(name: str, *arguments: object) -> Outcome:
        (entry,) = entry_points(group="console_scripts", name=name)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            entry.load()()
        captured = capsys.readouterr()
        return Outcome(int(stopped.value.code or 0), captured.out, captured.err)

    return run


@dataclass(frozen=True)
class SimulatedBrain:
    """Paths of a small simulated brain."""

    folder: Path
    volume: Path
    cells: Path
    brains_file: Path


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], SimulatedBrain]:
    """Simulated brains by seed, each made once; small, but big enough for many cuboids."""
    from cubeclf_core.config import SimulateConfig
    from cubeclf_core.simulate import simulate

    made: dict[int, SimulatedBrain] = {}

    def get(seed: int) -> SimulatedBrain:
        if seed not in made:
            folder = tmp_path_factory.mktemp("simulated") / f"brain{seed}"
            simulate(SimulateConfig(out=folder, shape=(40, 224, 224), cells=90, seed=seed))
            file = folder / "brain.yaml"
            entry = {"name": f"brain{seed}", "signal": "brain.ome.zarr", "cells": "cells.xml"}
            file.write_text(yaml.safe_dump([entry]))
            made[seed] = SimulatedBrain(
                folder, folder / "brain.ome.zarr", folder / "cells.xml", file
            )
        return made[seed]

    return get


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real microscopy data; skips where it is absent."""
    if not (REAL_DATA / "cfos").is_dir():
        pytest.skip(f"no real data at {REAL_DATA}; set CUBECLF_REAL_DATA to its folder")
    return REAL_DATA
