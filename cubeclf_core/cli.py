"""The launcher that all commands share: parse, load `--config`, run, and turn errors into exits.

Nothing here imports torch, so `--help` answers at once; a command's code is imported only when
its arguments have been understood.

Exit codes: 0 done, 1 failed while running, 2 bad usage or input, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import cyclopts
import yaml
from cyclopts import App, Parameter

from cubeclf_core.console import console
from cubeclf_core.errors import CubeclfError, InputError

INTERRUPTED = 130


def launch(name: str, config_class: type[Any], target: str) -> NoReturn:
    """Run one command line to its end and exit.

    Parameters
    ----------
    name
        The command, as the user typed it.
    config_class
        A frozen dataclass; its fields are the flags and its docstring is the help.
    target
        ``"module:function"``; the function takes the config. Imported only when needed.
    """
    debug = "--debug" in sys.argv
    try:
        _parse_and_run(name, config_class, target, sys.argv[1:])
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


def _parse_and_run(name: str, config_class: type[Any], target: str, argv: Sequence[str]) -> None:
    arguments, file = _take_config_file(argv)
    settings = _read_settings(Path(file), config_class) if file else {}
    app = App(
        name=name,
        help=(config_class.__doc__ or "").split("\n\n    Parameters\n")[0],
        config=cyclopts.config.Dict(settings, source=str(file)) if settings else None,
        default_parameter=Parameter(negative_iterable=()),
        error_formatter=lambda error: _one_line(f"error: {error}"),
        error_console=console,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        version=_version,
    )
    app.default(_command(config_class, target))
    app(arguments)


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


def _take_config_file(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """Split ``--config FILE`` off the arguments."""
    rest: list[str] = []
    file: str | None = None
    tokens = iter(argv)
    for token in tokens:
        if token == "--config":
            file = next(tokens, None)
            if file is None:
                raise InputError("--config needs a YAML file after it")
        elif token.startswith("--config="):
            file = token.partition("=")[2]
        else:
            rest.append(token)
    return rest, file


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
