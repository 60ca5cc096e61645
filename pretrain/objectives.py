"""The objectives by name, and their settings out of YAML; nothing here imports torch.

Adding an objective is a file with a subclass of `pretrain.objective.Objective` and a line here.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from cubeclf_core.errors import InputError

OBJECTIVES: dict[str, str] = {
    "mae": "pretrain.mae:Mae",
    "dino": "pretrain.dino:Dino",
    "dinov2": "pretrain.dinov2:DinoV2",
    "simclr": "pretrain.simclr:Simclr",
}
"""Name to ``module:class``."""


def load_objective(name: str) -> type[Any]:
    """Import the class of an objective, a `pretrain.objective.Objective`.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    if name not in OBJECTIVES:
        raise InputError(f"no objective {name!r}; expected one of {', '.join(OBJECTIVES)}")
    module, _, attribute = OBJECTIVES[name].partition(":")
    found: type[Any] = getattr(importlib.import_module(module), attribute)
    return found


def make_settings(objective: type[Any], values: Mapping[str, Any]) -> Any:
    """Make an objective's settings from what YAML or a command line says.

    Parameters
    ----------
    objective
        A class that `load_objective` returned.
    values
        Name to value; text is read as YAML, lists become tuples, whole numbers do for others.

    Returns
    -------
    object
        An instance of ``objective.Settings``.

    Raises
    ------
    InputError
        If a name is unknown, or a value is of the wrong type or outside its range.
    """
    hints = get_type_hints(objective.Settings)
    names = [field.name for field in dataclasses.fields(objective.Settings)]
    prefix = objective.__name__.lower()
    for name in values:
        if name not in names:
            raise InputError(f"no setting {prefix}.{name}; expected one of {', '.join(names)}")
    made = {
        name: _convert(f"{prefix}.{name}", value, hints[name]) for name, value in values.items()
    }
    return objective.Settings(**made)


def _convert(setting: str, value: Any, wanted: Any) -> Any:
    """Bring a value to the type that is wanted."""
    if isinstance(value, str) and wanted is not str:
        value = _parse(value)
    if get_origin(wanted) is Literal:
        if value in get_args(wanted):
            return value
        wanted_text = " or ".join(map(str, get_args(wanted)))
    elif get_origin(wanted) is tuple:
        parts = get_args(wanted)
        if isinstance(value, list | tuple) and len(value) == len(parts):
            return tuple(_convert(setting, v, p) for v, p in zip(value, parts, strict=True))
        wanted_text = f"{len(parts)} numbers"
    elif wanted is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        wanted_text = "a number"
    else:
        if type(value) is wanted:
            return value
        wanted_text = {int: "a whole number", bool: "true or false", str: "text"}[wanted]
    raise InputError(f"{setting} is {value!r}, expected {wanted_text}")


def _parse(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
        return float(value) if isinstance(value, str) else value  # YAML takes 1e-3 for text
    except (yaml.YAMLError, ValueError):
        return text
