from __future__ import annotations

import dataclasses
import json

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from cubeclf_core.backbones import build_backbone
from cubeclf_core.errors import InputError
from cubeclf_core.normalise import match_channels, normalise
from cubeclf_core.vit import SIZES, Vit3d, Vit3dConfig, sincos_positions


def nano(**settings) -> Vit3d:
    return build_backbone(Vit3dConfig(size="nano", **settings), seed=0).eval()


def cuboids(n: int = 3, channels: int = 2, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return 300 * torch.rand(n, channels, 20, 50, 50, generator=random)


def test_tokens_are_patches_of_the_given_size() -> None:
    backbone = nano()
    assert backbone.config.patch_shape == (4, 10, 10)
    assert backbone.config.grid == (5, 5, 5)
    assert backbone(normalise(cuboids())).shape == (3, 126, 96)
    assert backbone.embed(normalise(cuboids())).shape == (3, 3 * 96)
    isotropic = nano(patch_um=(10.0, 10.0, 10.0))
    assert isotropic(normalise(cuboids(1))).shape == (1, 251, 96)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"patch_um": (12.0, 10.0, 10.0)}, "patch"),
        ({"size": "giant"}, "nano"),
        ({"positions": "rotary"}, "positions is 'rotary', expected sincos or learned"),
        ({"register_tokens": -1}, "register_tokens"),
        ({"layer_scale": 0.0}, "layer_scale"),
        ({"drop_path": 1.0}, "drop_path"),
    ],
)
def test_impossible_networks_are_refused(settings: dict, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Vit3dConfig(**settings)


def test_a_config_survives_json_and_old_ones_are_read() -> None:
    config = Vit3dConfig(positions="learned", register_tokens=4, layer_scale=1e-5, drop_path=0.1)
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    assert Vit3dConfig.from_dict(values) == config
    old = ("size", "channels", "cuboid_shape", "voxel_size_um", "patch_um")
    assert Vit3dConfig.from_dict({key: values[key] for key in old}) == Vit3dConfig()
    with pytest.raises(TypeError, match="rotary"):
        Vit3dConfig.from_dict({**values, "rotary": True})


@pytest.mark.parametrize("size", SIZES)
def test_every_size_can_be_built(size: str) -> None:
    with torch.device("meta"):  # shapes without memory
        backbone = Vit3d(Vit3dConfig(size=size))
        tokens = backbone(torch.zeros(1, 2, 20, 50, 50))
    width, depth, _ = SIZES[size]
    assert tokens.shape == (1, 126, width)
    assert len(backbone.blocks) == depth


def test_kept_tokens_keep_their_place() -> None:
    backbone, x = nano(), normalise(cuboids())
    everything = torch.arange(125).expand(3, -1)
    torch.testing.assert_close(backbone(x, everything), backbone(x))
    order = torch.randperm(125).expand(3, -1)
    shuffled = backbone(x, order)[:, 1:]
    torch.testing.assert_close(shuffled, backbone(x)[:, 1:][:, order[0]], atol=1e-5, rtol=1e-4)


def test_positions_are_distinct_and_resampled_for_other_views() -> None:
    backbone = nano()
    own = backbone.positions((5, 5, 5))[0]
    assert torch.cdist(own, own).fill_diagonal_(1).min() > 1e-3
    assert backbone.positions((3, 3, 3)).shape == (1, 27, 96)
    view = normalise(cuboids())[:, :, :12, :30, :30]
    assert backbone(view).shape == (3, 28, 96)
    # the middle of an odd grid is where it was
    torch.testing.assert_close(backbone.positions((3, 3, 3))[0, 13], own[62])


@given(st.tuples(*[st.integers(1, 7)] * 3), st.sampled_from(["sincos", "learned"]))
def test_positions_of_other_views_are_interpolated(grid: tuple[int, int, int], kind: str) -> None:
    backbone = nano(positions=kind)
    own = backbone.pos_embed.detach()[0, :, :8].view(5, 5, 5, 8).numpy()
    # the middle of each patch, in the middles of the network's own patches
    axes = [((np.arange(n) + 0.5) * 5 / n - 0.5).clip(0, 4) for n in grid]
    places = np.stack(np.meshgrid(*axes, indexing="ij"))
    expected = [map_coordinates(own[..., i], places, order=1) for i in range(8)]
    found = backbone.positions(grid)[0, :, :8].detach().view(*grid, 8)
    np.testing.assert_allclose(found, np.stack(expected, -1), atol=1e-5)


def test_learned_positions_are_trained_by_views_of_any_size() -> None:
    backbone = nano(positions="learned")
    assert 0.018 < backbone.pos_embed.std() < 0.022
    for view in (cuboids(1), cuboids(1)[:, :, :8, :30, :30]):
        backbone.zero_grad()
        backbone(normalise(view))[:, 1:].square().sum().backward()
        assert (backbone.pos_embed.grad.abs().sum(2) > 0).float().mean() > 0.5
    assert not nano().pos_embed.requires_grad


def test_register_tokens_take_part_and_are_left_out() -> None:
    backbone, x = nano(register_tokens=4), normalise(cuboids())
    before = backbone(x)
    assert before.shape == (3, 126, 96)
    assert backbone(x, torch.arange(30).expand(3, -1)).shape == (3, 31, 96)
    assert backbone.embed(x).shape == (3, 3 * 96)
    assert backbone.reg_token is not None
    before[:, 1:].square().sum().backward()
    assert backbone.reg_token.grad.abs().sum() > 0
    with torch.no_grad():
        backbone.reg_token.normal_()
    assert (backbone(x) - before).abs().mean() > 1e-3


def test_masked_content_cannot_be_seen_but_its_place_can() -> None:
    backbone, x = nano(register_tokens=1), normalise(cuboids())
    token = torch.randn(1, 1, 96, generator=torch.Generator().manual_seed(1))
    masked = torch.zeros(3, 5, 5, 5, dtype=torch.bool)
    masked[:, 1:3, :, 2:] = True
    voxels = masked.repeat_interleave(4, 1).repeat_interleave(10, 2).repeat_interleave(10, 3)
    other = torch.where(voxels[:, None], torch.randn_like(x), x)
    masked = masked.flatten(1)
    seen = backbone(x, masked=masked, mask_token=token)
    assert torch.equal(backbone(other, masked=masked, mask_token=token), seen)
    assert not torch.allclose(backbone(other), backbone(x), atol=1e-3)
    hidden = seen[0, 1:][masked[0]]  # differ by their places alone
    assert torch.cdist(hidden, hidden).fill_diagonal_(1).min() > 1e-3
    nothing = torch.zeros_like(masked)
    assert torch.equal(backbone(x, masked=nothing, mask_token=token), backbone(x))


def test_the_mask_token_learns() -> None:
    backbone, x = nano(), normalise(cuboids(1))
    token = torch.zeros(1, 1, 96, requires_grad=True)
    masked = torch.arange(125)[None] < 40
    backbone(x, masked=masked, mask_token=token)[:, 1:][masked].square().sum().backward()
    assert token.grad.abs().sum() > 0
    with pytest.raises(AssertionError, match="mask token"):
        backbone(x, masked=masked)
    with pytest.raises(AssertionError, match="keep"):
        backbone(x, torch.arange(9)[None], masked=masked, mask_token=token)


def test_drop_path_acts_in_training_alone_and_more_with_depth() -> None:
    backbone, x = nano(drop_path=0.5), normalise(cuboids())
    assert torch.equal(backbone.eval()(x), nano()(x))  # the same weights
    backbone.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert not torch.allclose(backbone(x), nano()(x), atol=1e-3)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in backbone.blocks]
    assert rates == pytest.approx([0, 0.5 / 3, 1 / 3, 0.5])


def test_layer_scale_starts_where_it_is_told() -> None:
    x = normalise(cuboids(1))
    embedded = nano().patch_embed(x) + nano().positions((5, 5, 5))
    tiny = nano(layer_scale=1e-5)
    torch.testing.assert_close(tiny(x)[:, 1:], tiny.norm(embedded), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(nano()(x)[:, 1:], tiny(x)[:, 1:], atol=0.1)
    torch.testing.assert_close(nano(layer_scale=1.0)(x), nano()(x))
    gains = [name for name, _ in tiny.named_parameters() if name.endswith("gamma")]
    assert len(gains) == 2 * 4


def test_it_compiles_without_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # checks cannot be traced
    backbone, view = nano(register_tokens=2, positions="learned"), normalise(cuboids(1))
    view, masked = view[:, :, :8, :30, :30], torch.arange(18)[None] < 5
    token = torch.ones(1, 1, 96)
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected = backbone(view, masked=masked, mask_token=token)
        assert torch.equal(compiled(view, masked=masked, mask_token=token), expected)


def test_sincos_tells_the_axes_apart() -> None:
    grid = sincos_positions((2, 3, 4), 12).view(2, 3, 4, 12)
    assert (grid[0, ..., :4] == grid[0, 0, 0, :4]).all()  # the first third depends on z alone
    assert (grid[:, 1, :, 4:8] == grid[0, 1, 0, 4:8]).all()
    assert (grid[..., 2, 8:] == grid[0, 0, 2, 8:]).all()


def test_centre_counts_in_the_embedding() -> None:
    """Features pooled at the centre move more when the centre changes than when a corner does."""
    backbone, x = nano(), normalise(cuboids(1))
    centre, corner = x.clone(), x.clone()
    centre[:, :, 8:12, 20:30, 20:30] += 5
    corner[:, :, :4, :10, :10] += 5
    base = backbone.embed(x)
    assert (backbone.embed(centre) - base).norm() > 1.5 * (backbone.embed(corner) - base).norm()


@given(st.floats(0.01, 100), st.floats(0, 500))
def test_normalising_forgets_gain_and_keeps_contrast(gain: float, offset: float) -> None:
    raw = cuboids(2).double()
    x = normalise(raw)
    torch.testing.assert_close(x.mean((2, 3, 4)), torch.zeros(2, 2), atol=1e-4, rtol=0)
    mean, deviation = raw.mean((2, 3, 4)), raw.std((2, 3, 4), correction=0)
    expected = (deviation / (0.12 * mean)).sqrt().float()
    torch.testing.assert_close(x.std((2, 3, 4), correction=0), expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(normalise(gain * raw), x, atol=1e-3, rtol=1e-3)
    less = (mean / (mean + offset)).sqrt().float()[:, :, None, None, None]
    torch.testing.assert_close(normalise(raw + offset), less * x, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("mean", [0.0, -300.0, 1e-6])
def test_cuboids_without_background_stay_finite(mean: float) -> None:
    raw = cuboids(2).double()
    x = normalise(raw - raw.mean((2, 3, 4), keepdim=True) + mean)
    expected = torch.full((2, 2), 10**0.5)
    torch.testing.assert_close(x.std((2, 3, 4), correction=0), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("register_tokens", [0, 2])
def test_a_projection_makes_the_embedding_of_the_pooled_tokens(register_tokens: int) -> None:
    plain, projecting = (
        nano(projection=n, register_tokens=register_tokens).eval() for n in (0, 24)
    )
    shared = {k: v for k, v in projecting.state_dict().items() if k in plain.state_dict()}
    plain.load_state_dict(shared)
    x = normalise(cuboids(4))
    assert (plain.embedding_width, projecting.embedding_width) == (3 * 96, 24)
    pooled = plain.embed(x)
    torch.testing.assert_close(projecting.projection(pooled), projecting.embed(x))
    torch.testing.assert_close(projecting.projection(3 * pooled + 1), projecting.embed(x))
    alone = projecting.embed(x)
    assert alone.shape == (4, 24)
    projecting.config = dataclasses.replace(projecting.config, pooled_beside=True)
    assert projecting.embedding_width == 24 + plain.embedding_width
    torch.testing.assert_close(projecting.embed(x), torch.cat([alone, pooled], 1))


def test_nothing_lies_beside_a_projection_that_is_not_there() -> None:
    with pytest.raises(InputError, match="pooled_beside"):
        Vit3dConfig(pooled_beside=True)


def test_missing_and_constant_channels_are_zero() -> None:
    raw = cuboids(channels=1)
    assert not match_channels(normalise(raw), 2)[:, 1].any()
    assert torch.equal(match_channels(cuboids(), 1), cuboids()[:, :1])
    assert not normalise(torch.full((1, 1, 4, 4, 4), 317.0)).any()
