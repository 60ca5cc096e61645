from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cubeclf_core.augment import flip_and_rotate
from cubeclf_core.config import AugmentConfig
from cubeclf_core.draws import Draws
from cubeclf_core.normalise import normalise
from cubeclf_core.vit import Vit3dConfig
from pretrain.views import cut_view, make_global_views, make_view

VOXEL = (5.0, 1.0, 1.0)
STRONG = AugmentConfig(warp=0.5, blur=0.5, stripes=0.5, drop_background=0.5)
OFF = AugmentConfig(
    flip=False, warp=0, gamma=0, blur=0, stripes=0, noise=0, drop_background=0, rescale=0
)


def counts(n: int = 4, channels: int = 2, shape=(8, 24, 24), seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    rate = 200 + 100 * torch.rand(n, channels, *shape, generator=random)
    return torch.poisson(rate, generator=random)


def drawn(n: int, seed: int = 0) -> Draws:
    return Draws(seed, 0, range(n))


def test_views_are_cut_and_never_resized() -> None:
    canvas = torch.arange(24 * 60 * 60).float().view(1, 1, 24, 60, 60).repeat(150, 1, 1, 1, 1)
    views = cut_view(canvas, (12, 30, 30), drawn(150), OFF, VOXEL)
    assert views.shape == (150, 1, 12, 30, 30)
    assert (views.diff(dim=4) == 1).all()
    assert (views.diff(dim=3) == 60).all()
    assert (views.diff(dim=2) == 3600).all()
    starts = views[:, 0, 0, 0, 0].long()
    assert set((starts // 3600).tolist()) == set(range(13))  # every plane that it can start in
    for places in (starts % 3600 // 60, starts % 60):
        assert places.min() <= 2
        assert places.max() >= 28
        assert places.max() <= 30


def test_only_warped_views_are_resampled_and_stay_where_they_are() -> None:
    ramps = torch.stack(
        torch.meshgrid(*(torch.arange(n) * 1.0 for n in (12, 40, 40)), indexing="ij")
    )
    canvas = ramps.expand(60, -1, -1, -1, -1).contiguous()
    plain = cut_view(canvas, (8, 20, 20), drawn(60), OFF, VOXEL)
    warped = cut_view(canvas, (8, 20, 20), drawn(60), replace(OFF, warp=0.4), VOXEL)
    same = (plain == warped).flatten(1).all(1)
    assert 24 < int(same.sum()) < 48
    gap = (warped - plain)[~same]
    assert gap.abs().amax((1, 2, 3, 4)).min() > 0.05
    assert gap[:, :, 3:5, 9:11, 9:11].abs().max() < 1.0  # the middle of the view
    assert warped[:, 0].min() >= 0  # beyond the canvas its border goes on
    assert warped[:, 0].max() <= 11.001


@settings(max_examples=25)
@given(
    st.tuples(st.integers(2, 8), st.integers(2, 12), st.integers(2, 12)),
    st.tuples(*[st.integers(0, 3)] * 3),
    st.integers(1, 2),
    st.integers(0, 99),
)
def test_a_view_is_normalised_whatever_the_margin(shape, margin, channels, seed) -> None:
    canvas = counts(3, channels, tuple(s + m for s, m in zip(shape, margin, strict=True)), seed)
    before = canvas.clone()
    view = make_view(canvas, shape, drawn(3, seed), replace(STRONG, rescale=0), VOXEL)
    assert view.shape == (3, channels, *shape)
    assert view.dtype == torch.float32
    torch.testing.assert_close(view.mean((2, 3, 4)), torch.zeros(3, channels), atol=1e-3, rtol=0)
    deviation = view.std((2, 3, 4), correction=0)
    assert (deviation <= 10**0.5 * 1.01).all()  # as without any background
    assert (deviation[:, 0] > 0).all()
    assert torch.equal(canvas, before)


def test_half_a_batch_gets_the_views_that_it_gets_in_the_whole() -> None:
    canvas = counts(8)
    whole = make_view(canvas, (6, 20, 20), Draws(1, 2, range(8)), STRONG, VOXEL)
    half = make_view(canvas[4:], (6, 20, 20), Draws(1, 2, range(4, 8)), STRONG, VOXEL)
    torch.testing.assert_close(whole[4:], half, atol=1e-4, rtol=1e-4)
    other = make_view(canvas, (6, 20, 20), Draws(1, 2, range(8)).fork(1), STRONG, VOXEL)
    assert not torch.equal(whole, other)


def test_all_off_is_the_normalised_cuboid() -> None:
    canvas = counts()
    assert torch.equal(make_view(canvas, (8, 24, 24), drawn(4), OFF, VOXEL), normalise(canvas))
    flipped = make_view(canvas, (8, 24, 24), drawn(4), replace(OFF, flip=True), VOXEL)
    values, expected = (x.flatten(2).sort(2).values for x in (flipped, normalise(canvas)))
    torch.testing.assert_close(values, expected)
    moved = flip_and_rotate(canvas, drawn(4).fork(1), voxel_size_um=VOXEL)
    torch.testing.assert_close(flipped, normalise(moved))


def test_global_views_differ_in_surroundings_and_miss_a_background_everywhere() -> None:
    canvas = counts(8)
    network = Vit3dConfig(size="nano", cuboid_shape=(8, 20, 20))
    augment = replace(OFF, drop_background=0.5, surroundings=1.0, surroundings_um=(4.0, 5.0))
    first, second = make_global_views(canvas, 2, network, drawn(8), augment)
    assert not torch.equal(first[:, 0], second[:, 0])
    for view in (first, second):
        blank = view[:, 1] == 0
        whole, some = blank.flatten(1).all(1), blank.flatten(1).any(1)
        assert torch.equal(whole, some)
        assert 0 < int(whole.sum()) < 8
        assert view[:, 0].flatten(1).any(1).all()


@pytest.mark.parametrize("drop", [0.0, 1.0])
def test_the_background_can_be_missing(drop: float) -> None:
    view = make_view(counts(), (8, 24, 24), drawn(4), AugmentConfig(drop_background=drop), VOXEL)
    assert view[:, 0].flatten(1).any(1).all()
    assert bool(view[:, 1].any()) == (drop == 0)


def test_views_stay_exact_under_autocast() -> None:
    canvas = counts()
    expected = make_view(canvas, (6, 20, 20), drawn(4), STRONG, VOXEL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(make_view(canvas, (6, 20, 20), drawn(4), STRONG, VOXEL), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_makes_the_same_views() -> None:
    canvas = counts(8)
    quiet = replace(STRONG, noise=0)  # whose numbers are drawn another way on a CPU
    here = make_view(canvas, (6, 20, 20), drawn(8), quiet, VOXEL)
    draws = Draws(0, 0, range(8), "cuda")
    there = make_view(canvas.cuda(), (6, 20, 20), draws, quiet, VOXEL)
    torch.testing.assert_close(there.cpu(), here, atol=1e-3, rtol=1e-3)
