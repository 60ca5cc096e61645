"""Where a run's numbers can be watched: TensorBoard, Weights & Biases or MLflow, by name.

``metrics.jsonl`` of the run's folder has every number in any case. A tracker shows the same ones
under the same names; what happens to it never stops a training.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import yaml
from matplotlib.image import imread

from cubeclf_core.console import is_main_process, say
from cubeclf_core.errors import InputError
from cubeclf_core.files import replacing

_PROJECT = "cubeclf"
_IDS = "trackers.json"  # under which id each service knows the run
_LONGEST_REST = 64


@runtime_checkable
class Tracker(Protocol):
    """One place where a run can be watched."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the numbers of a step."""

    def figure(self, step: int, name: str, path: Path) -> None:
        """Add a picture, a PNG that has been written already, under a name."""

    def close(self) -> None:
        """Send what is left and stop."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise if a tracker is unknown or not installed, before any work is done.

    Raises
    ------
    InputError
        With what to install.
    """
    for name in names:
        if name not in _TRACKERS:
            known = ", ".join(_TRACKERS)
            raise InputError(f"no logger {name!r}; expected some of {known}")
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder that wandb left has no origin
            raise InputError(f"--logger {name} is not installed: pip install cubeclf[{name}]")


def open_trackers(
    names: Sequence[str],
    folder: Path,
    config: Mapping[str, Any],
    run_name: str,
    *,
    resumed_at: int | None = None,
) -> list[Tracker]:
    """Open trackers by name; none on other ranks than 0.

    Parameters
    ----------
    names
        Some of "tensorboard", which writes into ``folder/tensorboard``; "wandb", which asks for an
        account unless ``WANDB_MODE=offline``; "mlflow", which writes into ``folder/mlflow`` unless
        ``MLFLOW_TRACKING_URI`` names a server.
    folder
        Of the run.
    config
        The run's settings, nested.
    run_name
        What to call the run.
    resumed_at
        The step at which a run goes on that was stopped: its trackers are continued, and what they
        have from there on is replaced where that is possible.

    Returns
    -------
    list of Tracker
        They never raise: one that fails warns once, rests for longer and longer, and tries again.

    Raises
    ------
    InputError
        If one is unknown, not installed or does not start. Of a resumed run, one that does not
        start is left out with a warning.
    """
    check_trackers(names)
    if not is_main_process():
        return []
    settings = json.loads(json.dumps(config, default=str))
    opened: list[Tracker] = []
    for name in names:
        try:
            with _quiet():
                tracker = _TRACKERS[name](folder, settings, run_name, resumed_at)
        except Exception as error:  # each service raises kinds of its own
            why = f"{name} does not start: {_one_line(error)}"
            if resumed_at is None:
                raise InputError(f"{why}; leave it out of --logger, or {_CURES[name]}") from error
            say(f"warning   {why}; going on without it, metrics.jsonl has every number")
            continue
        opened.append(_Careful(name, tracker))
    return opened


class _Careful:
    """A tracker that never raises, and asks a failing service ever more seldom."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name = name
        self._tracker = tracker
        self._failures = 0  # in a row
        self._rest = 0  # calls to leave out
        self._warned = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._try(lambda: self._tracker.log(step, values))

    def figure(self, step: int, name: str, path: Path) -> None:
        self._try(lambda: self._tracker.figure(step, name, path))

    def close(self) -> None:
        self._rest = 0
        self._try(self._tracker.close)

    def _try(self, call: Callable[[], None]) -> None:
        if self._rest:
            self._rest -= 1
            return
        try:
            with _quiet():
                call()
            self._failures = 0
        except Exception as error:  # disk full, no network: the training is worth more
            self._failures += 1
            self._rest = min(1 << self._failures, _LONGEST_REST)
            if not self._warned:
                what = f"{self._name} fails ({_one_line(error)})"
                say(f"warning   {what}; going on, metrics.jsonl has every number")
            self._warned = True


class _TensorBoard:
    """Event files; flushed at every call, so that a disk that is full is noticed here."""

    def __init__(
        self, folder: Path, config: dict[str, Any], run_name: str, resumed_at: int | None
    ) -> None:
        del run_name  # TensorBoard shows folders
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at)
        if resumed_at is None:
            text = yaml.safe_dump(config, sort_keys=False).replace("\n", "\n    ")
            self._writer.add_text("config", f"    {text}", 0)
            self._writer.flush()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def figure(self, step: int, name: str, path: Path) -> None:
        pixels = imread(path)[..., :3]
        self._writer.add_image(name, pixels, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """Weights & Biases; offline runs are sent later with ``wandb sync``."""

    def __init__(
        self, folder: Path, config: dict[str, Any], run_name: str, resumed_at: int | None
    ) -> None:
        self._wandb = wandb = importlib.import_module("wandb")
        known = _known_id(folder, "wandb") if resumed_at is not None else None
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=run_name,
            dir=folder,
            config=config,
            id=known,
            resume="allow" if known else None,
            settings=wandb.Settings(console="off", silent=True),
        )
        _remember_id(folder, "wandb", self._run.id)
        say(f"wandb     {self._run.url or f'offline; later: wandb sync {self._run.dir}/..'}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def figure(self, step: int, name: str, path: Path) -> None:
        self._run.log({name: self._wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """MLflow, on the server that ``MLFLOW_TRACKING_URI`` names or in a database of the run."""

    def __init__(
        self, folder: Path, config: dict[str, Any], run_name: str, resumed_at: int | None
    ) -> None:
        # Two attempts, not the minutes of its default, which training would stand still for.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nobody asked for it
        self._mlflow = mlflow = importlib.import_module("mlflow")
        for chatter in ("mlflow", "alembic"):
            logging.getLogger(chatter).setLevel(logging.WARNING)
        own = (folder / "mlflow").resolve()
        remote = os.environ.get("MLFLOW_TRACKING_URI")
        if not remote:
            own.mkdir(exist_ok=True)
        uri = remote or f"sqlite:///{own.as_posix()}/mlflow.db"
        self._client = client = mlflow.MlflowClient(tracking_uri=uri)
        known = _known_id(folder, "mlflow") if resumed_at is not None else None
        if known:
            self._id = known
            client.update_run(known, status="RUNNING")
        else:
            self._id = client.create_run(
                self._experiment(None if remote else own.as_uri()), run_name=run_name
            ).info.run_id
            params = [mlflow.entities.Param(k, v[:6000]) for k, v in _flat(config).items()]
            client.log_batch(self._id, params=params)
            _remember_id(folder, "mlflow", self._id)
        say(f"mlflow    run {self._id} at {uri}")

    def _experiment(self, artifacts: str | None) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        there = self._client.get_experiment_by_name(name)
        if there:
            return str(there.experiment_id)
        return str(self._client.create_experiment(name, artifact_location=artifacts))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metric = self._mlflow.entities.Metric
        self._client.log_batch(self._id, [metric(k, v, now, step) for k, v in values.items()])

    def figure(self, step: int, name: str, path: Path) -> None:
        pixels = (imread(path)[..., :3] * 255).round().astype("uint8")
        self._client.log_image(self._id, pixels, key=name, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


_TRACKERS: dict[str, Callable[[Path, dict[str, Any], str, int | None], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _MLflow,
}
_CURES = {
    "tensorboard": "see that the folder can be written to",
    "wandb": "log in with `wandb login`, or set WANDB_MODE=offline",
    "mlflow": "see that MLFLOW_TRACKING_URI, if set, can be reached",
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep services' deprecation warnings, which no user of ours can mend, to themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _one_line(error: Exception) -> str:
    said = str(error).strip() or type(error).__name__
    return said.splitlines()[0].strip().rstrip(".")


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Nested settings as dotted names."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{above}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: str(value)}
    return flat


def _known_id(folder: Path, tracker: str) -> str | None:
    file = folder / _IDS
    ids = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    known: str | None = ids.get(tracker)
    return known


def _remember_id(folder: Path, tracker: str, run_id: str) -> None:
    file = folder / _IDS
    ids = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(ids | {tracker: run_id}, indent=2) + "\n", encoding="utf-8")
