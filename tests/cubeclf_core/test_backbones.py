from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file

from cubeclf_core.augment import drop_background
from cubeclf_core.backbones import build_backbone, load_backbone, save_backbone
from cubeclf_core.draws import Draws
from cubeclf_core.errors import CheckpointError, InputError, RunFailed
from cubeclf_core.inflate import inflate
from cubeclf_core.normalise import match_channels, normalise
from cubeclf_core.vit import Vit3d, Vit3dConfig

TINY = "vit_tiny_patch16_224"


def cuboids(n: int = 3, channels: int = 2) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return 300 * torch.rand(n, channels, 20, 50, 50, generator=random)


def image_weights(name: str = TINY, **settings: Any) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, pretrained=False, **settings).state_dict()


def same_weights(a: Vit3d, b: Vit3d) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize(
    "settings",
    [
        {"channels": 1},
        {"positions": "learned", "register_tokens": 4, "layer_scale": 1e-5, "drop_path": 0.1},
    ],
    ids=["plain", "everything"],
)
def test_a_backbone_survives_its_file_bit_for_bit(tmp_path: Path, settings: dict) -> None:
    backbone = build_backbone(Vit3dConfig(size="nano", **settings), seed=0).eval()
    save_backbone(tmp_path / "b.safetensors", backbone, {"objective": "none"})
    loaded, origin = load_backbone(str(tmp_path / "b.safetensors"))
    assert loaded.config == backbone.config
    assert not loaded.training
    assert origin["objective"] == "none"
    x = normalise(cuboids(channels=backbone.config.channels))
    assert torch.equal(loaded.embed(x), backbone.embed(x))


def test_the_seed_alone_decides_random_weights() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    config = Vit3dConfig(size="nano")
    first, again, other = (build_backbone(config, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(first, again)
    assert not torch.equal(first.blocks[0].mlp.fc1.weight, other.blocks[0].mlp.fc1.weight)
    named, _ = load_backbone("scratch:vit-nano", seed=1)
    assert same_weights(named, other)


def test_a_network_from_scratch_is_what_the_config_says() -> None:
    config = Vit3dConfig(channels=1, patch_um=(10.0, 10.0, 10.0), register_tokens=2)
    backbone, origin = load_backbone("scratch:vit-nano", config=config)
    assert backbone.config == Vit3dConfig(**{**vars(config), "size": "nano"})
    assert origin == {"backbone": "scratch:vit-nano"}
    with pytest.raises(InputError, match="vit-nano"):
        load_backbone("scratch:resnet18")


@pytest.mark.parametrize("channels", [1, 2])
def test_a_2d_file_is_inflated(tmp_path: Path, channels: int) -> None:
    weights = image_weights()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    name = str(tmp_path / "model.safetensors")
    backbone, origin = load_backbone(name, channels=channels)
    expected = Vit3dConfig(size="tiny", channels=channels, positions="learned")
    assert backbone.config == expected
    assert same_weights(backbone, inflate(weights, expected))
    assert origin == {"backbone": name}
    assert backbone.embed(normalise(cuboids(1, channels))).isfinite().all()
    sincos = Vit3dConfig(patch_um=(10.0, 10.0, 10.0))
    assert load_backbone(name, config=sincos)[0].config == sincos
    with pytest.raises(InputError, match=r"model.safetensors: .* of size tiny .*small"):
        load_backbone(name, config=Vit3dConfig(size="small"))
    save_backbone(tmp_path / "inflated.safetensors", backbone, origin)
    assert same_weights(load_backbone(str(tmp_path / "inflated.safetensors"))[0], backbone)


def test_a_model_of_timm_is_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    asked = {}

    def downloaded(name: str, pretrained: bool, **settings: Any) -> torch.nn.Module:
        asked.update(settings, name=name, pretrained=pretrained)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return create(name, pretrained=False)

    weights = image_weights()
    monkeypatch.setattr(timm, "create_model", downloaded)
    backbone, origin = load_backbone(f"timm:{TINY}", channels=1)
    assert same_weights(backbone, inflate(weights, backbone.config))
    assert (backbone.config.size, backbone.config.channels) == ("tiny", 1)
    assert origin == {"backbone": f"timm:{TINY}"}
    assert asked["pretrained"]
    assert asked["pretrained_cfg_overlay"]["hf_hub_filename"].endswith(".safetensors")
    with pytest.raises(InputError, match="timm:resnet18 is a ResNet; expected a plain vision"):
        load_backbone("timm:resnet18")
    with pytest.raises(InputError, match="timm has no model 'nonsense'"):
        load_backbone("timm:nonsense")


def test_a_failing_download_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RunFailed, match=f"could not download timm:{TINY}: ") as caught:
        load_backbone(f"timm:{TINY}")
    assert "\n" not in str(caught.value)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("it was unpickled",)


@pytest.mark.parametrize("suffix", [".bin", ".pth", ".pt", ".ckpt", ".safetensors"])
def test_pickles_are_never_read(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"model{suffix}"
    file.write_bytes(pickle.dumps({"patch_embed.proj.weight": Bomb()}))
    expected = (
        "no safetensors file" if suffix == ".safetensors" else "pickle.*expected .safetensors"
    )
    with pytest.raises(CheckpointError, match=expected):
        load_backbone(str(file))


def test_files_that_are_no_backbone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no backbone at"):
        load_backbone(str(tmp_path / "missing.pth"))
    with pytest.raises(CheckpointError, match="expected a run's folder"):
        load_backbone(str(tmp_path))
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "resnet.safetensors")
    with pytest.raises(CheckpointError, match="not written by cubeclf"):
        load_backbone(str(tmp_path / "resnet.safetensors"))
    swin = {"embeddings.patch_embeddings.projection.weight": torch.zeros(96, 3, 4, 4)}
    save_file(swin, tmp_path / "swin.safetensors")
    with pytest.raises(InputError, match=r"swin.safetensors: .* 96 wide and 0 deep"):
        load_backbone(str(tmp_path / "swin.safetensors"))


@pytest.mark.parametrize("name", ["scratch:vit-nano", "2d"])
@torch.no_grad()
def test_one_backbone_serves_signal_alone_and_with_background(tmp_path: Path, name: str) -> None:
    if name == "2d":
        name = str(tmp_path / "model.safetensors")
        save_file(image_weights(), name)
    backbone, _ = load_backbone(name)
    raw = cuboids()
    alone = match_channels(normalise(raw[:, :1]), 2)
    dropped = normalise(drop_background(raw, Draws(0, 0, range(3)), probability=1.0))
    torch.testing.assert_close(dropped, alone)  # in training as in use
    constant = raw.clone()
    constant[:, 1] = 117.0  # a background that was never acquired
    both, signal = backbone.embed(normalise(raw)), backbone.embed(alone)
    for features in (both, signal):
        assert features.isfinite().all()
        assert torch.pdist(features).min() > 1e-3  # cuboids are told apart
    torch.testing.assert_close(backbone.embed(normalise(constant)), signal)
    assert (both - signal).abs().max() > 1e-3  # the background is looked at
