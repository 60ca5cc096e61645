from __future__ import annotations

import importlib
import json
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from cubeclf_core.errors import InputError
from cubeclf_core.tracking import check_trackers, open_trackers

CONFIG = {"steps": 20, "out": Path("somewhere"), "mae": {"mask_ratio": 0.75}}
NUMBERS = {"loss": 0.5, "rank_me": 12.0}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Figure(figsize=(1, 0.5), facecolor="#ff0000").savefig(path, dpi=20)
    return path


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def run_twice(name: str, folder: Path, picture: Path) -> None:
    """Log steps 0, 10 and 20; go on from step 10, as after a kill; log 10, 20 and 30."""
    (tracker,) = open_trackers([name], folder, CONFIG, "first")
    for step in (0, 10, 20):
        tracker.log(step, NUMBERS | {"loss": 1.0 / (step + 1)})
    tracker.figure(20, "progress", picture)
    tracker.close()
    (tracker,) = open_trackers([name], folder, CONFIG, "first", resumed_at=10)
    for step in (10, 20, 30):
        tracker.log(step, NUMBERS | {"loss": 1.0 / (step + 1)})
    tracker.close()


def test_tensorboard_shows_every_step_once(
    run_folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_twice("tensorboard", run_folder, picture)
    assert "warning" not in capsys.readouterr().err
    events = EventAccumulator(str(run_folder / "tensorboard")).Reload()
    told = [(event.step, event.value) for event in events.Scalars("loss")]
    assert told == [(step, pytest.approx(1.0 / (step + 1))) for step in (0, 10, 20, 30)]
    assert {event.value for event in events.Scalars("rank_me")} == {12.0}
    (settings,) = events.Tensors("config/text_summary")
    assert "mask_ratio: 0.75" in settings.tensor_proto.string_val[0].decode()


def test_tensorboard_shows_the_picture(run_folder: Path, picture: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tracker,) = open_trackers(["tensorboard"], run_folder, CONFIG, "run")
    tracker.figure(3, "progress", picture)
    tracker.close()
    events = EventAccumulator(str(run_folder / "tensorboard")).Reload()
    (image,) = events.Images("progress")
    stored = tmp_path / "stored.png"
    stored.write_bytes(image.encoded_image_string)
    assert image.step == 3
    assert (imread(stored)[..., :3] == imread(picture)[..., :3]).all()


@pytest.fixture
def _wandb_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    wandb = pytest.importorskip("wandb")
    for name in ("CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    wandb.teardown()


def wandb_lines(folder: Path) -> list[dict[str, Any]]:
    """What an offline run's file, a log in leveldb's format, holds of each step, in order."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("run-*.wandb")
    content, at, whole, lines = file.read_bytes(), 7, b"", []
    while at + 7 <= len(content):
        left = (1 << 15) - at % (1 << 15)  # of the block
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind not in (1, 4):  # the first or a middle part
            continue
        record, whole = Record.FromString(whole), b""
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            lines.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in items})
    return lines


@pytest.mark.usefixtures("_wandb_offline")
def test_wandb_writes_a_folder_offline(
    run_folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_twice("wandb", run_folder, picture)
    importlib.import_module("wandb").teardown()  # its process writes what it still holds
    said = capsys.readouterr().err
    assert "warning" not in said
    assert "wandb sync" in said
    first, second = sorted(p for p in (run_folder / "wandb").glob("offline-run-*") if p.is_dir())
    lines = wandb_lines(first)
    assert [(line["_step"], line["loss"]) for line in lines] == [
        (step, pytest.approx(1.0 / (step + 1))) for step in (0, 10, 20)
    ]
    assert {line["rank_me"] for line in lines} == {12.0}
    assert [line["_step"] for line in wandb_lines(second)] == [10, 20, 30]
    assert first.name.rpartition("-")[2] == second.name.rpartition("-")[2]  # one run
    (shown,) = (first / "files" / "media" / "images").glob("progress_20_*.png")
    assert shown.read_bytes() == picture.read_bytes()


def test_mlflow_keeps_a_database_of_its_own(
    run_folder: Path,
    picture: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow = pytest.importorskip("mlflow")
    run_twice("mlflow", run_folder, picture)
    assert "warning" not in capsys.readouterr().err
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{run_folder}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("cubeclf")
    (run,) = client.search_runs([experiment.experiment_id])  # the second went on with the first
    assert run.info.run_name == "first"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"steps": "20", "out": "somewhere", "mae.mask_ratio": "0.75"}
    told = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "loss")}
    assert told == {step: pytest.approx(1.0 / (step + 1)) for step in (0, 10, 20, 30)}
    assert run.data.metrics["rank_me"] == 12.0
    images = [file.path for file in client.list_artifacts(run.info.run_id, "images")]
    assert any("progress" in path and path.endswith(".png") for path in images)
    assert not (Path.cwd() / "mlruns").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_costs_one_warning_and_no_run(
    run_folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resource = pytest.importorskip("resource")
    others = set(threading.enumerate())
    (tracker,) = open_trackers(["tensorboard"], run_folder, CONFIG, "run")
    tracker.log(0, NUMBERS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))  # as much may a file hold
        for step in range(1, 40):
            tracker.log(step, NUMBERS)
        tracker.figure(40, "progress", picture)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for writer in set(threading.enumerate()) - others:  # which dies of it
        writer.join(60)
        assert not writer.is_alive()
    tracker.close()
    said = capsys.readouterr().err
    assert said.count("warning   tensorboard fails") == 1
    assert "metrics.jsonl" in said


def test_a_failing_service_is_asked_ever_more_seldom(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch.utils import tensorboard

    asked: list[int] = []
    broken = True

    class Service:
        def __init__(self, folder: str, purge_step: int | None) -> None:
            pass

        def add_text(self, name: str, text: str, step: int) -> None:
            pass

        def add_scalar(self, name: str, value: float, step: int) -> None:
            asked.append(step)
            if broken:
                raise OSError("no network")

        def flush(self) -> None:
            pass

    monkeypatch.setattr(tensorboard, "SummaryWriter", Service)
    (tracker,) = open_trackers(["tensorboard"], run_folder, CONFIG, "run")
    for step in range(500):
        tracker.log(step, {"loss": 0.0})
    assert asked[:4] == [0, 3, 8, 17]
    assert len(asked) < 20
    assert capsys.readouterr().err.count("no network") == 1
    broken = False
    for step in range(500, 600):
        tracker.log(step, {"loss": 0.0})
    assert asked[-20:] == list(range(580, 600))  # it answers again


def test_what_does_not_start_is_said_in_one_line(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_folder / "tensorboard").write_text("in the way")
    with pytest.raises(InputError, match="tensorboard does not start"):
        open_trackers(["tensorboard"], run_folder, CONFIG, "run")
    assert open_trackers(["tensorboard"], run_folder, CONFIG, "run", resumed_at=5) == []
    assert "going on without it" in capsys.readouterr().err


def test_unknown_and_missing_loggers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_trackers(["tensorboard"])
    with pytest.raises(InputError, match=r"no logger 'excel'; expected some of tensorboard, wandb"):
        check_trackers(["tensorboard", "excel"])
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in ("wandb", "mlflow"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        with pytest.raises(InputError, match=rf"pip install cubeclf\[{name}\]"):
            check_trackers([name])
        (tmp_path / name).mkdir()  # what a run left there is no package
        with pytest.raises(InputError, match=rf"pip install cubeclf\[{name}\]"):
            check_trackers([name])


def test_only_the_main_process_opens_trackers(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert open_trackers(["tensorboard"], run_folder, CONFIG, "run") == []
    assert not any(run_folder.iterdir())
