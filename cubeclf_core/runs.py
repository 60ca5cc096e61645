"""The folder that a run leaves: config, environment, metrics, log, figures, exported weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cubeclf_core.cli import to_yaml
from cubeclf_core.console import say
from cubeclf_core.environment import environment
from cubeclf_core.files import mark, remove, replacing


class RunFolder:
    """A new run's folder; made once all input has been checked.

    Parameters
    ----------
    path
        Where; its parents are made.
    config
        The resolved config dataclass, written as ``config.yaml`` that ``--config`` reads back.
        A folder that stood there is removed; `check_output` has been asked before.
    """

    def __init__(self, path: Path, config: Any) -> None:
        remove(path)
        path.mkdir(parents=True)
        mark(path)
        self.path = path
        self.figures = path / "figures"
        self.exported = path / "exported"
        rerun = dataclasses.replace(config, overwrite=False)  # a rerun asks again
        (path / "config.yaml").write_text(to_yaml(rerun), encoding="utf-8")
        self.write_json("environment.json", environment())

    def log(self, **values: float | int | str) -> None:
        """Append one line to ``metrics.jsonl``."""
        self.append("metrics.jsonl", values)

    def append(self, name: str, values: Mapping[str, Any]) -> None:
        """Append one line to a file of JSON lines."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def tell(self, message: str) -> None:
        """Print a line and keep it in ``train.log``."""
        say(message)
        with (self.path / "train.log").open("a", encoding="utf-8") as file:
            file.write(message + "\n")

    def write_json(self, name: str, values: Any) -> None:
        """Write a JSON file of the folder, whole or not at all."""
        with replacing(self.path / name) as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def save_figure(self, name: str, figure: Figure) -> Path:
        """Write a figure as PNG, whole or not at all, and return its path."""
        path = self.path / name
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
        return path
