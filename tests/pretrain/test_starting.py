from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from cubeclf_core.backbones import build_backbone, save_backbone
from cubeclf_core.cli import to_yaml
from cubeclf_core.errors import InputError
from cubeclf_core.inflate import inflate
from cubeclf_core.vit import Vit3d, Vit3dConfig
from pretrain.config import NetworkConfig, PretrainConfig
from pretrain.starting import starting_backbone


def config(
    init: object = None, size: str = "nano", method: str = "simclr", **network: Any
) -> PretrainConfig:
    name = None if init is None else str(init)
    settings = NetworkConfig(**network)
    return PretrainConfig(
        brains=("brain.zarr",),
        out=Path("run"),
        init=name,
        size=size,
        method=method,
        network=settings,
        seed=3,
    )


def image_weights(path: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """Write a 2D network of size nano, every weight random, and return what was written."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = VisionTransformer(
            img_size=50, patch_size=10, embed_dim=96, depth=4, num_heads=3, **settings
        )
    weights = {name: torch.rand_like(tensor) for name, tensor in network.state_dict().items()}
    save_file(weights, path)
    return weights


UNLIKE: dict[str, Any] = {
    "voxel_size_um": (5.0, 2.0, 2.0),
    "patch_um": (10.0, 20.0, 20.0),
    "positions": "learned",
    "register_tokens": 2,
    "layer_scale": 1e-5,
    "projection": 24,
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A backbone of ours that is unlike the default in all that can be set."""
    unlike = Vit3dConfig(size="nano", channels=1, drop_path=0.3, **UNLIKE)
    save_backbone(tmp_path / "ours.safetensors", build_backbone(unlike, 7), {"steps": 1})
    return tmp_path / "ours.safetensors"


@pytest.fixture
def typed(command, tmp_path: Path) -> Callable[[PretrainConfig, str], PretrainConfig]:
    """Further flags after a command with some settings, as the command reads them."""

    def read(wrong: PretrainConfig, flags: str) -> PretrainConfig:
        file = tmp_path / "wrong.yaml"
        file.write_text(to_yaml(wrong))
        done = command("cubeclf-pretrain", "--config", file, *flags.split(), "--print-config")
        printed = yaml.safe_load(done.out)
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in printed["network"].items()}
        network = NetworkConfig(**values)
        return dataclasses.replace(wrong, size=printed["size"], network=network)

    return read


def same_weights(a: Vit3d, b: Vit3d) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def drop_rates(network: Vit3d) -> list[float]:
    return [getattr(block.drop_path1, "drop_prob", 0.0) for block in network.blocks]


@pytest.mark.parametrize("init", [None, "scratch:vit-nano"])
def test_random_weights_are_of_the_network_that_the_settings_describe(init: str | None) -> None:
    network = starting_backbone(config(init, drop_path=0.2, **UNLIKE), channels=1)
    assert network.config == Vit3dConfig(size="nano", channels=1, drop_path=0.2, **UNLIKE)
    assert same_weights(network, build_backbone(network.config, seed=3))
    assert network.training


@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_2d_weights_go_into_the_network_that_the_settings_describe(
    tmp_path: Path, positions: str
) -> None:
    weights = image_weights(tmp_path / "model.safetensors")
    asked = {**UNLIKE, "positions": positions, "drop_path": 0.2}
    network = starting_backbone(config(tmp_path / "model.safetensors", **asked), channels=1)
    assert network.config == Vit3dConfig(size="nano", channels=1, **asked)
    assert same_weights(network, inflate(weights, network.config))
    assert network.pos_embed.requires_grad == (positions == "learned")
    assert drop_rates(network) == pytest.approx([0, 0.2 / 3, 0.4 / 3, 0.2])
    assert network.training


def test_gains_and_registers_of_2d_weights_are_kept(tmp_path: Path) -> None:
    weights = image_weights(tmp_path / "model.safetensors", init_values=0.3, reg_tokens=4)
    network = starting_backbone(config(tmp_path / "model.safetensors", register_tokens=1), 2)
    assert network.config.register_tokens == 4
    assert network.config.layer_scale is not None
    assert torch.equal(network.blocks[0].ls1.gamma, weights["blocks.0.ls1.gamma"])


def test_2d_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    image_weights(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"model.safetensors: .* of size nano .* of size tiny"):
        starting_backbone(config(tmp_path / "model.safetensors", size="tiny"), channels=2)


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_our_own_weights_go_on_with_the_drop_path_of_the_settings(saved: Path, rate: float) -> None:
    network = starting_backbone(config(saved, drop_path=rate, **UNLIKE), channels=1)
    assert network.config == Vit3dConfig(size="nano", channels=1, drop_path=rate, **UNLIKE)
    assert same_weights(network, build_backbone(network.config, seed=7))
    assert drop_rates(network) == pytest.approx([rate * i / 3 for i in range(4)])
    assert network.training
    torch.manual_seed(0)
    x = torch.randn(2, 1, 20, 50, 50)
    # Gains of 1e-5 hide the branches; without them dropped branches show.
    with torch.no_grad():
        for block in network.blocks:
            for gain in (block.ls1.gamma, block.ls2.gamma):
                gain.fill_(1.0)
        same = torch.equal(network(x), network(x))
    assert same == (rate == 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"positions": "sincos"}, "has positions learned, but the settings ask for positions"),
        ({"patch_um": (20.0, 20.0, 20.0)}, "patch_um 10 20 20, .* ask for patch_um 20 20 20"),
        ({"register_tokens": 0}, "register_tokens 2, .* register_tokens 0"),
        ({"layer_scale": None}, "layer_scale 1e-05, .* layer_scale none"),
        (
            {"voxel_size_um": (5.0, 1.0, 1.0), "patch_um": (10.0, 10.0, 10.0)},
            "voxel_size_um 5 2 2, patch_um 10 20 20, but",
        ),
        ({"size": "micro"}, "size nano, .* size micro"),
    ],
)
def test_what_is_unlike_our_own_weights_is_named_and_mended_by_what_the_error_says(
    saved: Path, typed, change: dict[str, Any], says: str
) -> None:
    """The advice is typed as it stands."""
    wrong = config(saved, **{**UNLIKE, **change})
    with pytest.raises(InputError, match=says) as caught:
        starting_backbone(wrong, channels=1)
    assert str(caught.value).startswith(f"--init {saved} has ")
    _, _, flags = str(caught.value).partition("; add ")
    assert starting_backbone(typed(wrong, flags), channels=1).config.positions == "learned"


@pytest.mark.parametrize("asked", [24, 32, 0])
@pytest.mark.parametrize("method", ["simclr", "mae"])
def test_a_projection_is_kept_where_it_fits_and_is_new_elsewhere(
    saved: Path, method: str, asked: int
) -> None:
    network = starting_backbone(config(saved, method=method, **{**UNLIKE, "projection": asked}), 1)
    assert network.config.projection == (0 if method == "mae" else asked)
    before, after = build_backbone(Vit3dConfig(size="nano", channels=1, **UNLIKE), 7), network
    assert torch.equal(before.blocks[0].mlp.fc1.weight, after.blocks[0].mlp.fc1.weight)
    if method == "simclr" and asked:
        same = torch.equal(before.projection[1].weight, after.projection[1].weight)
        assert same == (asked == 24)
    assert after.embed(torch.randn(1, 1, 20, 50, 50)).shape == (1, network.embedding_width)


def test_dino_has_a_projection_for_what_it_is_given() -> None:
    for features, width in (("pooled", 24), ("class", 0)):
        asked = dataclasses.replace(
            config(method="dino", projection=24), settings={"features": features}
        )
        assert starting_backbone(asked, 1).config.projection == width


def test_a_network_without_gains_is_asked_for_by_none(tmp_path: Path, typed) -> None:
    save_backbone(tmp_path / "plain.safetensors", build_backbone(Vit3dConfig(size="nano"), 0), {})
    wrong = config(tmp_path / "plain.safetensors", layer_scale=0.1)
    with pytest.raises(InputError, match=r"; add --network.layer-scale none$"):
        starting_backbone(wrong, channels=2)
    right = typed(wrong, "--network.layer-scale none")
    assert starting_backbone(right, channels=2).config.layer_scale is None


def test_channels_of_our_own_weights_have_to_be_there(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"channels 1, .* channels 2; add --channels 1$"):
        starting_backbone(config(saved, **UNLIKE), channels=2)
    both = tmp_path / "both.safetensors"
    save_backbone(both, build_backbone(Vit3dConfig(size="nano"), 0), {})
    with pytest.raises(InputError, match="; not all brains have a background: choose another"):
        starting_backbone(config(both), channels=1)
    asked = dataclasses.replace(config(both), channels=1)
    with pytest.raises(InputError, match=r"; add --channels 2$"):
        starting_backbone(asked, channels=1)


def test_cuboids_of_another_shape_cannot_be_asked_for(tmp_path: Path) -> None:
    other = Vit3dConfig(size="nano", cuboid_shape=(20, 60, 60))
    save_backbone(tmp_path / "other.safetensors", build_backbone(other, 0), {})
    with pytest.raises(InputError, match=r"cuboid_shape 20 60 60, .* choose another backbone$"):
        starting_backbone(config(tmp_path / "other.safetensors"), channels=2)


def test_a_network_from_scratch_has_the_size_of_its_name() -> None:
    with pytest.raises(InputError, match=r"size nano, .* size tiny; add --size nano$"):
        starting_backbone(config("scratch:vit-nano", size="tiny"), channels=2)
