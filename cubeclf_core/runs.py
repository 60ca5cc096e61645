"""The folder that a run leaves: config, environment, metrics, log, figures, exported weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from cubeclf_core.cli import to_yaml
from cubeclf_core.console import is_main_process, say
from cubeclf_core.environment import environment
from cubeclf_core.errors import InputError
from cubeclf_core.files import mark, replacing


def check_same_settings(folder: Path, config: Any, may_change: Collection[str]) -> None:
    """Raise unless a run's folder holds a run with the same settings, which may then go on.

    Parameters
    ----------
    folder
        Of the run.
    config
        The resolved config dataclass.
    may_change
        Settings that may differ.

    Raises
    ------
    InputError
        If one differs that may not, or ``config.yaml`` cannot be read.
    """
    written = folder / "config.yaml"
    try:
        before = yaml.safe_load(written.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{written} cannot be read, so nothing can be resumed: {error}") from error
    if not isinstance(before, dict):
        raise InputError(f"{written} holds no settings, so nothing can be resumed")
    for name, value in yaml.safe_load(to_yaml(config)).items():
        if name not in may_change and value != before.get(name):
            raise InputError(
                f"--{name.replace('_', '-')} is {value}, but the run in {folder} began with "
                f"{before.get(name)}; resume with the settings it began with, or choose another "
                "--out"
            )


class RunFolder:
    """A run's folder; made anew once all input has been checked, or opened again to go on.

    On several devices only rank 0 writes; the others may ask it to, and nothing happens.

    Parameters
    ----------
    path
        Where; its parents are made.
    config
        The resolved config dataclass, written as ``config.yaml`` that ``--config`` reads back.
        A folder that stood there is removed; `check_output` has been asked before.
    resume
        Keep what is there; only ``config.yaml`` is written anew.
    """

    def __init__(self, path: Path, config: Any, *, resume: bool = False) -> None:
        self.path = path
        self.exported = path / "exported"
        if not is_main_process():
            return
        asked = {field.name for field in dataclasses.fields(config)} & {"overwrite", "resume"}
        rerun = to_yaml(dataclasses.replace(config, **dict.fromkeys(asked, False)))  # it asks again
        if resume:
            self.write_text("config.yaml", rerun)
        else:
            with replacing(path) as made:  # so that there is no folder that cannot be resumed
                made.mkdir()
                mark(made)
                (made / "config.yaml").write_text(rerun, encoding="utf-8")
        name = "environment.json"
        if resume:  # it may be another machine: both are kept
            name = f"environment_{len(list(path.glob('environment*.json')))}.json"
        self.write_json(name, environment())

    def log(self, **values: float | int | str) -> None:
        """Append one line to ``metrics.jsonl``."""
        self.append("metrics.jsonl", values)

    def append(self, name: str, values: Mapping[str, Any]) -> None:
        """Append one line to a file of JSON lines."""
        if not is_main_process():
            return
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def trim(self, name: str, step: int) -> None:
        """Cut a file of JSON lines off before a step: a resumed run takes it again.

        The last line may be torn, when the run was killed as it was written.
        """
        path = self.path / name
        if not is_main_process() or not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                if json.loads(line)["step"] < step:
                    kept.append(line)
            except json.JSONDecodeError:
                break
        with replacing(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def tell(self, message: str) -> None:
        """Print a line and keep it in ``train.log``."""
        if not is_main_process():
            return
        say(message)
        with (self.path / "train.log").open("a", encoding="utf-8") as file:
            file.write(message + "\n")

    def write_json(self, name: str, values: Any) -> None:
        """Write a JSON file of the folder, whole or not at all."""
        self.write_text(name, json.dumps(values, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the folder, whole or not at all."""
        if not is_main_process():
            return
        with replacing(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def save_figure(self, name: str, figure: Figure) -> Path:
        """Write a figure as PNG, whole or not at all, and return its path."""
        path = self.path / name
        if not is_main_process():
            return path
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
        return path
