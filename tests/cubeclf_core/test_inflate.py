from __future__ import annotations

import re

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cubeclf_core.errors import CheckpointError, InputError
from cubeclf_core.inflate import fitting_size, inflate, inflate_patch
from cubeclf_core.vit import Vit3dConfig

Weights = dict[str, Tensor]

FLAT = Vit3dConfig(size="micro", patch_um=(100.0, 10.0, 10.0), positions="learned")
"""Patches as deep as the cuboid, so that its tokens are those of an image."""


def image_network(depth: int = 6, **settings) -> VisionTransformer:
    """A 2D network of size micro, every weight random, with the grid of the default cuboid."""
    settings = {"img_size": 50, "patch_size": 10, **settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = VisionTransformer(
            embed_dim=192, depth=depth, num_heads=3, num_classes=0, global_pool="", **settings
        ).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def images(size: int = 50) -> Tensor:
    return torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(1))


def as_volume(planes: Tensor, channels: int) -> Tensor:
    return planes[:, :, None].expand(-1, channels, 20, -1, -1)


def hugging_face(state: Weights, style: str) -> Weights:
    """Name timm's weights as `transformers` names those of ViTModel or Dinov2Model."""
    names = {
        r"^cls_token": "embeddings.cls_token",
        r"^pos_embed": "embeddings.position_embeddings",
        r"^reg_token": "embeddings.register_tokens",
        r"^patch_embed\.proj": "embeddings.patch_embeddings.projection",
        r"^norm\.": "layernorm.",
        r"^blocks\.(\d+)\.": r"encoder.layer.\1.",
        r"\.attn\.proj": ".attention.output.dense",
        r"\.ls(\d)\.gamma": r".layer_scale\1.lambda1",
    }
    if style == "vit":
        names |= {
            r"\.norm1": ".layernorm_before",
            r"\.norm2": ".layernorm_after",
            r"\.mlp\.fc1": ".intermediate.dense",
            r"\.mlp\.fc2": ".output.dense",
        }
    renamed: Weights = {}
    for name, tensor in state.items():
        for timms, theirs in names.items():
            name = re.sub(timms, theirs, name)
        if ".attn.qkv." not in name:
            renamed[name] = tensor
            continue
        for part, value in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            renamed[name.replace("attn.qkv", f"attention.attention.{part}")] = value
    return renamed


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("settings", [{}, {"init_values": 0.3, "reg_tokens": 4}])
@torch.no_grad()
def test_a_volume_of_equal_planes_is_seen_as_its_plane(channels: int, settings: dict) -> None:
    flat = image_network(**settings)
    config = Vit3dConfig(**{**vars(FLAT), "channels": channels})
    network = inflate(flat.state_dict(), config).eval()
    grey, volume = images().expand(-1, 3, -1, -1), as_volume(images(), channels)
    torch.testing.assert_close(
        network.patch_embed(volume), flat.patch_embed(grey), atol=1e-4, rtol=1e-4
    )
    expected = flat(grey)
    expected = torch.cat([expected[:, :1], expected[:, flat.num_prefix_tokens :]], dim=1)
    torch.testing.assert_close(network(volume), expected, atol=1e-4, rtol=1e-4)
    assert network.config.register_tokens == settings.get("reg_tokens", 0)


@torch.no_grad()
def test_a_model_of_timm_by_its_name_is_seen_as_its_plane() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flat = timm.create_model("vit_tiny_patch16_224", pretrained=False).eval()
    config = Vit3dConfig(
        cuboid_shape=(20, 224, 224), patch_um=(100.0, 16.0, 16.0), positions="learned"
    )
    network = inflate(flat.state_dict(), config).eval()  # its head is ignored
    grey = images(224)[:1].expand(-1, 3, -1, -1)
    found = network(as_volume(grey[:, :1], 2))
    torch.testing.assert_close(found, flat.forward_features(grey), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_patches_share_the_response_of_equal_planes() -> None:
    """Where patches are thinner than the cuboid, every layer of tokens is the image's."""
    flat = image_network()
    network = inflate(flat.state_dict(), Vit3dConfig(size="micro", positions="learned"))
    tokens = network.patch_embed(as_volume(images(), 2)) + network.pos_embed
    grey = images().expand(-1, 3, -1, -1)
    expected = (flat.patch_embed(grey) + flat.pos_embed[:, 1:])[:, None].expand(-1, 5, -1, -1)
    torch.testing.assert_close(tokens.unflatten(1, (5, 25)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("style", ["vit", "dinov2"])
@pytest.mark.parametrize("prefix", ["", "vit.", "model.encoder."])
def test_hugging_face_names_give_the_same_network(style: str, prefix: str) -> None:
    settings = {"init_values": 0.1} if style == "dinov2" else {}
    state = image_network(**settings).state_dict()
    theirs = {prefix + name: tensor for name, tensor in hugging_face(state, style).items()}
    heads = ("classifier.weight", "pooler.dense.weight", f"{prefix}embeddings.mask_token")
    theirs |= {name: torch.zeros(3) for name in heads}
    expected, found = inflate(state, FLAT), inflate(theirs, FLAT)
    assert found.config == expected.config
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_registers_of_hugging_face_and_of_dinov2_itself() -> None:
    state = image_network(reg_tokens=4, no_embed_class=True, init_values=0.1).state_dict()
    theirs = hugging_face(state, "dinov2")
    meta = {("register_tokens" if n == "reg_token" else n): t for n, t in state.items()}
    for weights in (state, theirs, meta):
        network = inflate(weights, FLAT)
        assert torch.equal(network.reg_token, state["reg_token"])
        assert torch.equal(network.cls_token, state["cls_token"])  # it had no position


@given(
    st.sampled_from([(4, 10, 10), (2, 10, 5), (1, 8, 8), (3, 20, 16)]),
    st.integers(1, 3),
    st.sampled_from([8, 14, 16]),
)
def test_a_constant_patch_gives_the_same_whatever_the_size(
    shape: tuple[int, int, int], channels: int, size: int
) -> None:
    weight = torch.randn(7, 3, size, size, generator=torch.Generator().manual_seed(size))
    inflated = inflate_patch(weight, shape, channels)
    assert inflated.shape == (7, channels, *shape)
    torch.testing.assert_close(
        inflated.sum((1, 2, 3, 4)), weight.sum((1, 2, 3)), atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_a_smaller_patch_sees_a_smaller_image_alike() -> None:
    """A smooth image at 16 pixels a patch, and the same one at 10."""
    random = torch.Generator().manual_seed(2)
    coarse = torch.randn(64, 1, 4, 4, generator=random)
    smooth = F.interpolate(coarse, size=16, mode="bicubic")
    rough = torch.randn(32, 3, 20, 20, generator=random)
    weight = F.avg_pool2d(rough, 5, 1)  # smooth too, as learned ones are
    before = F.conv2d(smooth.expand(-1, 3, -1, -1), weight).flatten(1)
    small = F.interpolate(smooth, size=10, mode="bicubic", antialias=True)
    after = F.conv2d(small, inflate_patch(weight, (1, 10, 10), 1)[:, :, 0]).flatten(1)
    assert (after - before).norm() < 0.1 * before.norm()


def test_positions_are_resized_within_planes() -> None:
    state = image_network(img_size=224, patch_size=16).state_dict()
    network = inflate(state, Vit3dConfig(size="micro", positions="learned"))
    planes = network.pos_embed.detach().unflatten(1, (5, 25))
    assert (planes == planes[:, :1]).all()
    own = state["pos_embed"][:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2)
    expected = F.interpolate(own, size=(5, 5), mode="bicubic", antialias=True)
    torch.testing.assert_close(planes[:, 0].transpose(1, 2), expected.flatten(2))
    assert torch.equal(network.cls_token, state["cls_token"] + state["pos_embed"][:, :1])
    assert network.pos_embed.requires_grad


def test_fixed_positions_stay_as_they_are() -> None:
    network = inflate(image_network().state_dict(), Vit3dConfig(size="micro"))
    assert not network.pos_embed.requires_grad
    assert (network.pos_embed[:, 0] != network.pos_embed[:, 25]).any()  # z has a say


@torch.no_grad()
def test_what_the_config_adds_does_not_change_what_blocks_do() -> None:
    state = image_network().state_dict()
    volume = as_volume(images(), 2)
    expected = inflate(state, FLAT).eval()(volume)
    gains = inflate(state, Vit3dConfig(**{**vars(FLAT), "layer_scale": 1e-5, "drop_path": 0.1}))
    assert gains.config.layer_scale == 1e-5
    torch.testing.assert_close(gains.eval()(volume), expected)
    before = torch.get_rng_state()
    two = [inflate(state, Vit3dConfig(**{**vars(FLAT), "register_tokens": 2})) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(two[0].reg_token, two[1].reg_token)


def test_inflating_leaves_the_weights_given_alone() -> None:
    state = image_network().state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    network = inflate(state, FLAT)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_half_precision_is_read_as_float32() -> None:
    state = {name: tensor.half() for name, tensor in image_network().state_dict().items()}
    network = inflate(state, FLAT)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_a_norm_behind_the_pooling_is_the_norm() -> None:
    state = image_network().state_dict()
    pooled = {re.sub(r"^norm\.", "fc_norm.", name): tensor for name, tensor in state.items()}
    assert torch.equal(inflate(pooled, FLAT).norm.weight, state["norm.weight"])


def test_weights_of_another_size_say_which_one_fits() -> None:
    state = image_network(depth=12).state_dict()
    assert fitting_size(state) == "tiny"
    with pytest.raises(InputError, match=r"of size tiny .192 wide, 12 deep.*micro"):
        inflate(state, FLAT)
    with pytest.raises(InputError, match=r"192 wide and 5 deep; expected .*small .384 wide"):
        fitting_size(image_network(depth=5).state_dict())


def without(state: Weights, *names: str) -> Weights:
    return {name: tensor for name, tensor in state.items() if name not in names}


def test_what_is_missing_is_never_random() -> None:
    state = image_network().state_dict()
    for name in state:
        if name != "patch_embed.proj.weight" and not re.match(r"blocks\.[1-4]", name):
            with pytest.raises(CheckpointError, match=f"lack {re.escape(name)}"):
                inflate(without(state, name), FLAT)
    theirs = hugging_face(state, "vit")
    key = "encoder.layer.3.attention.attention.key.weight"
    with pytest.raises(CheckpointError, match=r"lack blocks.3.attn.key.weight"):
        inflate(without(theirs, key), FLAT)
    scaled = image_network(init_values=0.1).state_dict()
    with pytest.raises(CheckpointError, match=r"lack blocks.2.ls1.gamma"):
        inflate(without(scaled, "blocks.2.ls1.gamma"), FLAT)


@pytest.mark.parametrize(
    "settings",
    [{"qk_norm": True}, {"pre_norm": True}, {"mlp_ratio": 3.0}, {"class_token": False}],
    ids=str,
)
def test_other_networks_are_refused(settings: dict) -> None:
    with pytest.raises(CheckpointError, match=r"q_norm|norm_pre|lack patch|mlp.fc1|lack cls_token"):
        inflate(image_network(**settings).state_dict(), FLAT)


def test_odd_weights_are_refused() -> None:
    state = image_network().state_dict()
    with pytest.raises(CheckpointError, match="found none"):
        inflate({"conv1.weight": torch.zeros(64, 3, 7, 7)}, FLAT)
    both = {f"{who}.{name}": state[name] for who in ("student", "teacher") for name in state}
    with pytest.raises(CheckpointError, match=r"several .student\.patch.*teacher"):
        inflate(both, FLAT)
    with pytest.raises(CheckpointError, match="square grid of positions in 2D weights, found 24"):
        inflate({**state, "pos_embed": torch.zeros(1, 24, 192)}, FLAT)
