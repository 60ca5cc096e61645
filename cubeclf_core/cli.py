"""The launcher that all commands share: parse, load `--config`, run, and turn errors into exits.

Nothing here imports torch, so `--help` answers at once; a command's code is imported only when
its arguments have been understood.

Exit codes: 0 done, 1 failed while running, 2 bad usage or input, 75 stopped by a signal but
ready to go on, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import cyclopts
import yaml
from cyclopts import App, Parameter

from cubeclf_core.console import console
from cubeclf_core.errors import CubeclfError, InputError

INTERRUPTED = 130


Presets = Mapping[str, Mapping[str, Any]]


def launch(
    name: str, config_class: type[Any], target: str, presets: Presets | None = None
) -> NoReturn:
    """Run one command line to its end and exit.

    Parameters
    ----------
    name
        The command, as the user typed it.
    config_class
        A frozen dataclass; its fields are the flags and its docstring is the help.
    target
        ``"module:function"``; the function takes the config. Imported only when needed.
    presets
        Settings by the name that ``--preset`` takes; what the user gives wins over them.
    """
    debug = "--debug" in sys.argv
    try:
        _parse_and_run(name, config_class, target, sys.argv[1:], presets or {})
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)
    except CubeclfError as error:
        if debug:
            traceback.print_exc()
        _fail(str(error), error.exit_code)
    except Exception as error:
        if debug:
            traceback.print_exc()
        hint = "run again with --debug for the traceback"
        _fail(f"{type(error).__name__}: {error} ({hint})", 1)
    sys.exit(0)


def _parse_and_run(
    name: str, config_class: type[Any], target: str, argv: Sequence[str], presets: Presets
) -> None:
    arguments, file = _take(argv, "--config", "a YAML file")
    settings = _read_settings(Path(file), config_class) if file else {}
    _, preset = (
        _take(arguments, "--preset", f"one of {', '.join(presets)}") if presets else ([], "")
    )
    preset = preset or str(settings.get("preset", ""))
    if preset in presets:  # an unknown one is told when the arguments are parsed
        settings = {**presets[preset], **settings}
    arguments = [*_free_settings(settings, config_class, arguments), *arguments]
    app = App(
        name=name,
        help=(config_class.__doc__ or "").split("\n\n    Parameters\n")[0],
        config=cyclopts.config.Dict(settings, source=file or preset) if settings else None,
        default_parameter=Parameter(negative_iterable=()),
        error_formatter=lambda error: _one_line(f"error: {error}"),
        error_console=console,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        version=_version,
    )
    app.default(_command(config_class, target))
    app(arguments)


def _free_settings(
    settings: dict[str, Any], config_class: type[Any], arguments: Sequence[str]
) -> list[str]:
    """Take mappings of free settings out of a file's, as flags, unless a flag wins over them.

    Left in, a single flag would win over the whole mapping.
    """
    given = {word.partition("=")[0].replace("-", "_") for word in arguments}
    flags = []
    for field in dataclasses.fields(config_class):
        values = settings.get(field.name)
        if field.default_factory is dict and isinstance(values, dict):
            del settings[field.name]
            for name, value in values.items():
                flag = f"--{field.name}.{name}"
                if flag.replace("-", "_") not in given:
                    flags += [flag, json.dumps(value)]
    return flags


def _command(config_class: type[Any], target: str) -> Callable[..., None]:
    def command(
        settings: Any,
        *,
        config: Path | None = None,
        print_config: bool = False,
        debug: bool = False,
    ) -> None:
        if print_config:
            print(to_yaml(settings), end="")
            return
        module, function = target.split(":")
        getattr(importlib.import_module(module), function)(settings)

    # Set by hand, since the annotations of a closure are strings that cyclopts cannot resolve.
    command.__annotations__ = {
        "settings": Annotated[config_class, Parameter(name="*")],
        "config": Annotated[
            Path | None, Parameter(help="YAML file with any of these settings; flags win over it.")
        ],
        "print_config": _flag("Print the resolved settings as YAML and stop."),
        "debug": _flag("Show the traceback of an error."),
        "return": None,
    }
    return command


def _flag(text: str) -> object:
    return Annotated[bool, Parameter(negative="", help=text)]


def _take(argv: Sequence[str], flag: str, what: str) -> tuple[list[str], str]:
    """Split ``FLAG VALUE`` off the arguments; the value is empty if it is not there."""
    rest: list[str] = []
    value = ""
    tokens = iter(argv)
    for token in tokens:
        if token == flag:
            value = next(tokens, "")
            if not value:
                raise InputError(f"{flag} needs {what} after it")
        elif token.startswith(f"{flag}="):
            value = token.partition("=")[2]
        else:
            rest.append(token)
    return rest, value


def _read_settings(path: Path, config_class: type[Any]) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--config {path} cannot be read as YAML: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"--config {path} holds no mapping of setting names to values")
    known = {field.name for field in dataclasses.fields(config_class)}
    for name in settings:
        if name not in known:
            names = ", ".join(sorted(known))
            raise InputError(f"--config {path} has the setting {name!r}; expected some of {names}")
    return {key: value for key, value in settings.items() if value is not None}


def to_yaml(config: Any) -> str:
    """Write a config dataclass as YAML that ``--config`` reads back."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _version() -> str:
    from importlib.metadata import version

    return version("cubeclf")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _fail(message: str, exit_code: int) -> NoReturn:
    console.print(_one_line(f"error: {message}"), markup=False)
    sys.exit(exit_code)
