from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cubeclf_core.augment import drop_background, flip_and_rotate, generator, jitter_intensity
from cubeclf_core.backbones import build_backbone, load_backbone, save_backbone
from cubeclf_core.errors import InputError
from cubeclf_core.metrics import classification_metrics, rank_me
from cubeclf_core.normalise import match_channels, standardise
from cubeclf_core.vit import SIZES, Vit3d, Vit3dConfig, sincos_positions


def nano(**settings) -> Vit3d:
    return build_backbone(Vit3dConfig(size="nano", **settings), seed=0).eval()


def cuboids(n: int = 3, channels: int = 2, seed: int = 0) -> torch.Tensor:
    return 300 * torch.rand(n, channels, 20, 50, 50, generator=generator(seed))


def test_tokens_are_patches_of_the_given_size() -> None:
    backbone = nano()
    assert backbone.config.patch_shape == (4, 10, 10)
    assert backbone.config.grid == (5, 5, 5)
    assert backbone(standardise(cuboids())).shape == (3, 126, 96)
    assert backbone.embed(standardise(cuboids())).shape == (3, 3 * 96)
    isotropic = nano(patch_um=(10.0, 10.0, 10.0))
    assert isotropic(standardise(cuboids(1))).shape == (1, 251, 96)


def test_impossible_networks_are_refused() -> None:
    with pytest.raises(InputError, match="patch"):
        Vit3dConfig(patch_um=(12.0, 10.0, 10.0))
    with pytest.raises(InputError, match="nano"):
        Vit3dConfig(size="giant")
    with pytest.raises(InputError, match="vit-nano"):
        load_backbone("scratch:resnet18")


@pytest.mark.parametrize("size", SIZES)
def test_every_size_can_be_built(size: str) -> None:
    with torch.device("meta"):  # shapes without memory
        backbone = Vit3d(Vit3dConfig(size=size))
        tokens = backbone(torch.zeros(1, 2, 20, 50, 50))
    width, depth, _ = SIZES[size]
    assert tokens.shape == (1, 126, width)
    assert len(backbone.blocks) == depth


def test_kept_tokens_keep_their_place() -> None:
    backbone, x = nano(), standardise(cuboids())
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
    view = standardise(cuboids())[:, :, :12, :30, :30]
    assert backbone(view).shape == (3, 28, 96)
    # the middle of an odd grid is where it was
    torch.testing.assert_close(backbone.positions((3, 3, 3))[0, 13], own[62])


def test_sincos_tells_the_axes_apart() -> None:
    grid = sincos_positions((2, 3, 4), 12).view(2, 3, 4, 12)
    assert (grid[0, ..., :4] == grid[0, 0, 0, :4]).all()  # the first third depends on z alone
    assert (grid[:, 1, :, 4:8] == grid[0, 1, 0, 4:8]).all()
    assert (grid[..., 2, 8:] == grid[0, 0, 2, 8:]).all()


def test_centre_counts_in_the_embedding() -> None:
    """Features pooled at the centre move more when the centre changes than when a corner does."""
    backbone, x = nano(), standardise(cuboids(1))
    centre, corner = x.clone(), x.clone()
    centre[:, :, 8:12, 20:30, 20:30] += 5
    corner[:, :, :4, :10, :10] += 5
    base = backbone.embed(x)
    assert (backbone.embed(centre) - base).norm() > 1.5 * (backbone.embed(corner) - base).norm()


def test_backbone_survives_its_file_bit_for_bit(tmp_path) -> None:
    backbone = nano(channels=1)
    save_backbone(tmp_path / "b.safetensors", backbone, {"objective": "none"})
    loaded, origin = load_backbone(str(tmp_path / "b.safetensors"))
    assert loaded.config == backbone.config
    assert origin["objective"] == "none"
    x = standardise(cuboids(channels=1))
    assert torch.equal(loaded.embed(x), backbone.embed(x))


def test_seed_alone_decides_random_weights() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    weights = [
        build_backbone(Vit3dConfig(size="nano"), seed).blocks[0].mlp.fc1.weight
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@given(st.floats(0.01, 100), st.floats(-500, 500))
def test_standardising_forgets_gain_and_offset(gain: float, offset: float) -> None:
    raw = cuboids(2).double()
    x = standardise(raw)
    torch.testing.assert_close(x.mean((2, 3, 4)), torch.zeros(2, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std((2, 3, 4)), torch.ones(2, 2), atol=1e-3, rtol=0)
    torch.testing.assert_close(standardise(gain * raw + offset), x, atol=2e-2, rtol=0)


def test_missing_and_constant_channels_are_zero() -> None:
    raw = cuboids(channels=1)
    assert not match_channels(standardise(raw), 2)[:, 1].any()
    assert torch.equal(match_channels(cuboids(), 1), cuboids()[:, :1])
    assert not standardise(torch.full((1, 1, 4, 4, 4), 317.0)).any()


def test_flips_move_values_and_never_mix_z_with_y() -> None:
    raw = cuboids(16)
    moved = flip_and_rotate(raw, generator(0, 1))
    assert torch.equal(moved.flatten(2).sort(2).values, raw.flatten(2).sort(2).values)
    assert len({tuple(item[0, 0, 0, :3].tolist()) for item in moved}) == 16
    # a plane stays a plane: the sets of values per z are those of the input, in order or reversed
    planes, before = (t.flatten(3).sort(3).values for t in (moved, raw))
    same = [(p == b).all() or (p == b.flip(1)).all() for p, b in zip(planes, before, strict=True)]
    assert all(same)
    assert torch.equal(flip_and_rotate(raw, generator(0, 1)), moved)


def test_intensity_jitter_keeps_order_and_can_be_nothing() -> None:
    raw = cuboids(4)
    unchanged = jitter_intensity(raw, generator(0), gamma=0.0, noise=0.0)
    torch.testing.assert_close(unchanged, raw, rtol=1e-4, atol=1e-2)
    bent = jitter_intensity(raw, generator(0), noise=0.0)
    order = raw.flatten(2).argsort(2)
    ordered = bent.flatten(2).gather(2, order)
    assert (ordered.diff(dim=2) >= -1e-3).all()
    assert not torch.allclose(bent, raw, rtol=0.01)


def test_only_the_background_is_dropped() -> None:
    raw = cuboids(64)
    dropped = drop_background(raw, generator(0), probability=0.5)
    assert torch.equal(dropped[:, 0], raw[:, 0])
    gone = ~dropped[:, 1].flatten(1).any(1)
    assert 16 < int(gone.sum()) < 48
    assert torch.equal(dropped[~gone], raw[~gone])


def test_generators_of_neighbouring_keys_are_unrelated() -> None:
    draws = torch.stack([torch.randn(2000, generator=generator(0, step)) for step in range(8)])
    off_diagonal = torch.corrcoef(draws) - torch.eye(8)
    assert off_diagonal.abs().max() < 0.1


def test_rank_me_is_the_number_of_directions() -> None:
    basis = torch.linalg.qr(torch.randn(64, 64, generator=generator(3)))[0]
    assert rank_me(basis[:, :8]) == pytest.approx(8, rel=0.01)
    assert rank_me(torch.ones(50, 10)) == pytest.approx(1, rel=0.01)


def test_average_precision_is_given_over_the_prevalence() -> None:
    import numpy as np

    labels = np.array([1, 0, 0, 0])
    found = classification_metrics(labels, np.array([0.9, 0.1, 0.2, 0.3]))
    assert found["auc"] == found["average_precision"] == 1.0
    assert found["average_precision_less_prevalence"] == 0.75
