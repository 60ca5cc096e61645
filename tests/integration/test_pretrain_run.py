"""What a pretraining run does beside learning: it watches itself, tells, stops, and exports."""

from __future__ import annotations

import json
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from timm.models.vision_transformer import VisionTransformer

from cubeclf_core.backbones import load_backbone
from cubeclf_core.stream import CuboidStream
from pretrain import fit
from pretrain.mae import Mae
from pretrain.presets import PRESETS

SMALL = ("--size", "nano", "--batch-size", 4, "--memory-gb", 0.25, "--logger", "none")
OFTEN = ("--log-every", 1, "--monitor-every", 3, "--checkpoint-every", 3)


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def config_of(command):
    """Resolve a command line, without running it."""

    def get(*words: object) -> dict[str, object]:
        outcome = command("cubeclf-pretrain", "brain.zarr", "--out", "r", *words, "--print-config")
        assert outcome.code == 0, outcome.err
        return yaml.safe_load(outcome.out)

    return get


@pytest.mark.parametrize("name", list(PRESETS))
def test_flags_win_over_config_and_config_over_preset(name: str, config_of, tmp_path) -> None:
    plain, preset = config_of(), config_of("--preset", name)
    for key, value in preset.items():
        assert value == {**PRESETS[name], "preset": name}.get(key, plain[key]), key
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({"steps": 11, "batch_size": 12, "preset": name}))
    mixed = config_of("--config", file, "--batch-size", 24)
    assert (mixed["steps"], mixed["batch_size"]) == (11, 24)
    assert mixed["size"] == PRESETS[name]["size"]


def test_printed_config_is_one_that_can_be_given(config_of, tmp_path) -> None:
    nested = ("--settings.temperature", 0.6, "--network.drop-path", 0.1, "--augment.warp", 0)
    given = tmp_path / "given.yaml"
    given.write_text(yaml.safe_dump({"settings": {"teacher_temperature": [0.04, 0.07]}}))
    first = config_of("--preset", "laptop", "--config", given, *nested)
    assert first["settings"] == {"temperature": 0.6, "teacher_temperature": [0.04, 0.07]}
    assert first["network"]["drop_path"] == 0.1
    assert first["augment"]["warp"] == 0
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in first.items() if k not in ("brains", "out")}))
    assert config_of("--config", file) == first


def test_probe_measures_exports_and_tells(command, simulated, tmp_path) -> None:
    brain, out = simulated(0), tmp_path / "run"
    outcome = command(
        *("cubeclf-pretrain", brain.volume, "--out", out, "--probe", brain.brains_file),
        *("--method", "mae", "--steps", 4, *SMALL, *OFTEN),
    )
    assert outcome.code == 0, outcome.err
    probed = [line for line in lines(out) if "probe_linear_auc" in line]
    assert [line["step"] for line in probed] == [0, 3, 4]
    assert all(0 <= line["probe_knn_auc"] <= 1 for line in probed)
    assert {"rank_me", "mean_cosine", "shortcut_depth"} <= probed[0].keys()
    for name in ("best_probe", "backbone"):
        backbone, origin = load_backbone(str(out / "exported" / f"{name}.safetensors"))
        assert origin["objective"] == "mae"
        assert (out / "exported" / f"{name}.json").exists()
        assert backbone.config.size == "nano"
    card = (out / "exported" / "README.md").read_text()
    assert "| brain | 40 × 224 × 224 |" in card
    assert "| probe_linear_auc |" in card
    for picture in ("progress.png", "figures/reconstruction.png", "figures/tokens.png"):
        assert (out / picture).stat().st_size > 5000, picture
    assert any(line.startswith("probe     linear AUC") for line in outcome.lines)


@pytest.mark.parametrize(
    ("method", "parts"),
    [pytest.param("simclr", 1, marks=pytest.mark.slow), ("simclr", 2), ("mae", 1)],
)
def test_a_cuboid_that_breaks_the_loss_is_named(
    method: str, parts: int, command, simulated, tmp_path, monkeypatch
) -> None:
    """Also where others are compared with it, whose loss it breaks too."""
    right = fit.to_network
    calls = []

    def broken(batch, shape, device):
        cuboids = right(batch, shape, device)
        calls.append(batch)
        if len(calls) == 3:
            cuboids[2] = torch.inf
        return cuboids

    monkeypatch.setattr(fit, "to_network", broken)
    out = tmp_path / "run"
    words = ("--out", out, "--method", method, "--steps", 6, "--accumulate", parts)
    outcome = command("cubeclf-pretrain", simulated(0).volume, *words, *SMALL, *OFTEN)
    assert outcome.code == 1
    origin = calls[2].origin[2].tolist()
    assert "the loss of step 2 is nan, from 1 cuboids" in outcome.lines[-1]
    assert f"brain brain at z y x {origin}" in outcome.lines[-1]
    assert not (out / "exported" / "backbone.safetensors").exists()


@pytest.mark.slow
def test_accumulation_changes_nothing_but_rounding(command, simulated, tmp_path) -> None:
    losses = []
    for parts in (1, 2):
        out = tmp_path / str(parts)
        words = ("--out", out, "--method", "mae", "--steps", 4, "--accumulate", parts)
        words = (*words, *SMALL, *OFTEN)
        assert command("cubeclf-pretrain", simulated(0).volume, *words).code == 0
        losses.append([line["loss"] for line in lines(out) if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_finished_run_has_nothing_left_to_resume(command, simulated, tmp_path) -> None:
    words = ("cubeclf-pretrain", simulated(0).volume, "--out", tmp_path / "run", "--steps", 2)
    assert command(*words, *SMALL, *OFTEN).code == 0
    before = (tmp_path / "run" / "exported" / "backbone.safetensors").read_bytes()
    again = command(*words, *SMALL, *OFTEN, "--resume")
    assert again.code == 0, again.err
    after = (tmp_path / "run" / "exported" / "backbone.safetensors").read_bytes()
    assert after[-1000:] == before[-1000:]


@pytest.mark.slow
def test_a_run_that_has_ended_goes_on_for_longer(command, simulated, tmp_path) -> None:
    """With the optimiser and the head that it had, at the rates of the longer schedule."""
    words = ("cubeclf-pretrain", simulated(0).volume, "--out", tmp_path / "run", *SMALL, *OFTEN)
    assert command(*words, "--steps", 3).code == 0
    before = lines(tmp_path / "run")
    outcome = command(*words, "--steps", 5, "--resume")
    assert outcome.code == 0, outcome.err
    after = lines(tmp_path / "run")
    assert after[: len(before) - 1] == before[:-1]  # the last is a look, which is taken again
    assert [line["step"] for line in after if "loss" in line] == list(range(5))
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["steps"] == 5
    fewer = command(*words, "--steps", 4, "--resume")
    assert fewer.code == 2
    assert "has taken 5" in fewer.lines[-1]


@pytest.mark.slow
def test_a_short_run_is_looked_at_and_kept_on_the_way(command, simulated, tmp_path) -> None:
    out = tmp_path / "run"
    words = ("cubeclf-pretrain", simulated(0).volume, "--out", out, "--steps", 17, *SMALL)
    assert command(*words, "--method", "mae").code == 0
    looks = [line["step"] for line in lines(out) if "rank_me" in line]
    assert looks == [0, 2, 4, 6, 8, 10, 12, 14, 16, 17]


@pytest.mark.slow
def test_time_spent_waiting_is_told(command, simulated, tmp_path, monkeypatch) -> None:
    batches, shares = CuboidStream.batches, []

    def slow(self, first, last):
        for batch in batches(self, first, last):
            time.sleep(0.5 if last == 6 else 0)  # not for the cuboids that are looked at
            yield batch

    for name, patch in (("slow", True), ("plain", False)):
        with monkeypatch.context() as changed:
            if patch:
                changed.setattr(CuboidStream, "batches", slow)
            words = ("--out", tmp_path / name, "--method", "mae", "--steps", 6, *SMALL, *OFTEN)
            assert command("cubeclf-pretrain", simulated(0).volume, *words).code == 0
        told = [line for line in lines(tmp_path / name) if "wait_share" in line][-1]
        # Seconds waited for a batch, from the share and the rate of cuboids.
        shares.append(told["wait_share"] * 4 / told["cuboids_per_s"])
    assert 0.4 < shares[0] - shares[1] < 0.7


def test_tensorboard_has_the_numbers_unasked(command, simulated, tmp_path) -> None:
    out = tmp_path / "run"
    plain = [word for word in SMALL if word not in ("--logger", "none")]
    words = ("--out", out, "--method", "mae", "--steps", 2, *plain, *OFTEN)
    assert command("cubeclf-pretrain", simulated(0).volume, *words).code == 0
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    told = {line["step"]: line["loss"] for line in lines(out) if "loss" in line}
    found = {event.step: event.value for event in events.Scalars("loss")}
    assert found == pytest.approx(told)


def test_weights_of_images_are_a_start(command, simulated, tmp_path) -> None:
    images = VisionTransformer(embed_dim=96, depth=4, num_heads=3, num_classes=0)
    save_file(images.state_dict(), tmp_path / "images.safetensors")
    out = tmp_path / "run"
    words = ("--out", out, "--steps", 1, "--init", tmp_path / "images.safetensors")
    learned = ("--learning-rate", 1e-9, "--network.positions", "learned")
    outcome = command("cubeclf-pretrain", simulated(0).volume, *words, *learned, *SMALL, *OFTEN)
    assert outcome.code == 0, outcome.err
    backbone, _ = load_backbone(str(out))
    torch.testing.assert_close(backbone.blocks[2].mlp.fc1.weight, images.blocks[2].mlp.fc1.weight)
    assert any("before this training" in line for line in outcome.lines)


@pytest.mark.slow
def test_a_batch_that_exchanges_no_surroundings_is_told_of(command, simulated, tmp_path) -> None:
    six = [6 if word == 4 else word for word in (*SMALL, *OFTEN)]
    words = ("--out", tmp_path / "run", "--steps", 1, *six)
    outcome = command("cubeclf-pretrain", simulated(0).volume, *words)
    assert outcome.code == 0, outcome.err
    assert any("6 cuboids at a time are no multiple of 4" in line for line in outcome.lines)


@pytest.mark.slow
def test_features_that_collapse_stop_the_run(command, simulated, tmp_path) -> None:
    """Weights that decay to nothing, in the objective that has no monitor but the embeddings."""
    out = tmp_path / "run"
    file = tmp_path / "settings.yaml"
    file.write_text("weight_decay: 1000\nmonitor_every: 20\n")
    words = ("--out", out, "--steps", 200, "--config", file, *SMALL)
    outcome = command("cubeclf-pretrain", simulated(0).volume, *words)
    assert outcome.code == 1, outcome.err
    assert any(line.startswith("warning   ") for line in outcome.lines)
    assert "representation collapse" in outcome.lines[-1]
    assert "try" in outcome.lines[-1]


@pytest.mark.slow
def test_a_collapse_is_told_of_and_then_stops_the_run(command, simulated, tmp_path) -> None:
    """A teacher that is so warm that it says the same of everything."""
    out = tmp_path / "run"
    warm = ("--settings.teacher-temperature", "[100, 100]", "--settings.prototypes", 64)
    outcome = command(
        *("cubeclf-pretrain", simulated(0).volume, "--out", out, "--method", "dino", *warm),
        *("--settings.local-views", 0, "--steps", 200, *SMALL, "--log-every", 10),
    )
    assert outcome.code == 1, outcome.err
    assert any(line.startswith("warning   ") for line in outcome.lines)
    assert "uniform" in outcome.lines[-1]
    assert "try" in outcome.lines[-1]


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=pytest.mark.slow) for m in ("mae", "simclr", "dino", "dinov2")],
)
def test_bfloat16_keeps_the_counts(method: str, command, simulated, tmp_path) -> None:
    """Warped views too, which are interpolated from raw counts."""
    losses = []
    small = (
        ()
        if method in ("simclr", "mae")
        else ("--settings.prototypes", 64, "--settings.local-views", 1)
    )
    for precision in ("32-true", "bf16-mixed"):
        out = tmp_path / precision
        words = ("--out", out, "--steps", 2, "--precision", precision, "--method", method, *small)
        outcome = command("cubeclf-pretrain", simulated(0).volume, *words, *SMALL, *OFTEN)
        assert outcome.code == 0, outcome.err
        losses.append([line["loss"] for line in lines(out) if "loss" in line])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_leaves_the_checkpoint(
    command, simulated, tmp_path, monkeypatch
) -> None:
    before_update = Mae.before_update

    def broken(self, progress: float) -> None:
        before_update(self, progress)
        if progress >= 0.5:
            self.predict.bias.grad[0] = torch.inf

    out = tmp_path / "run"
    words = ("cubeclf-pretrain", simulated(0).volume, "--out", out, "--method", "mae")
    words = (*words, "--steps", 6, *SMALL, *OFTEN)
    with monkeypatch.context() as patch:
        patch.setattr(Mae, "before_update", broken)
        outcome = command(*words)
    assert outcome.code == 1
    assert "the gradient of step 3 is " in outcome.lines[-1]
    resumed = command(*words, "--resume")
    assert resumed.code == 0, resumed.err


def test_resume_never_takes_a_folder_that_is_not_this_run(command, simulated, tmp_path) -> None:
    out = tmp_path / "run"
    words = ("cubeclf-pretrain", simulated(0).volume, "--out", out, "--steps", 2, *SMALL, *OFTEN)
    assert command(*words).code == 0
    (out / "checkpoints" / "last.safetensors").unlink()  # to save space, say
    weights = (out / "exported" / "backbone.safetensors").read_bytes()
    outcome = command(*words, "--resume")
    assert outcome.code == 2
    assert "exists already" in outcome.lines[-1]
    assert (out / "exported" / "backbone.safetensors").read_bytes() == weights


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simclr", "mae", "dino"])
def test_compiled_networks_learn_the_same(method: str, simulated, tmp_path) -> None:
    """In processes of their own, as the compiler does not know the types that tests check."""
    losses = []
    for compiled in ("--no-compile", "--compile"):
        out = tmp_path / compiled
        words = ("--out", out, "--steps", 2, "--method", method, *SMALL, *OFTEN, compiled)
        command = Path(sysconfig.get_path("scripts")) / "cubeclf-pretrain"
        done = subprocess.run(
            [command, simulated(0).volume, *map(str, words)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        losses.append([line["loss"] for line in lines(out) if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
