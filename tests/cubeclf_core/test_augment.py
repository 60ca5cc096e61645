from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cubeclf_core import augment
from cubeclf_core.config import AugmentConfig
from cubeclf_core.draws import Draws
from cubeclf_core.errors import InputError
from cubeclf_core.normalise import normalise
from cubeclf_core.warp import warp

VOXEL = (5.0, 1.0, 1.0)
GENTLE = {"rotation_deg": 15.0, "scale": 0.1, "elastic_um": 2.0}
NOTHING = {"rotation_deg": 0.0, "scale": 0.0, "elastic_um": 0.0}
OFF = AugmentConfig(gamma=0, blur=0, stripes=0, noise=0)
ALL = AugmentConfig(blur=0.5, stripes=0.5, noise=0.5)


def standardise(x: torch.Tensor) -> torch.Tensor:
    """To mean 0 and deviation 1."""
    centred = x - x.mean((2, 3, 4), keepdim=True)
    return centred / centred.std((2, 3, 4), correction=0, keepdim=True).clamp_min(1e-6)


def counts(n: int = 8, channels: int = 2, shape=(6, 11, 11), seed: int = 0) -> torch.Tensor:
    """Photons of a blob, on a camera with an offset."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, size) for size in shape), indexing="ij")
    blob = 200 + 300 * torch.exp(-4 * torch.stack(axes).square().sum(0))
    random = torch.Generator().manual_seed(seed)
    rate = blob.expand(n, channels, *shape) * (0.5 + torch.rand(n, channels, 1, 1, 1))
    return 100 + torch.poisson(rate, generator=random)


def drawn(n: int, seed: int = 0) -> Draws:
    return Draws(seed, 3, range(n))


def warp_middle(cuboids: torch.Tensor, draws: Draws, **strengths) -> torch.Tensor:
    """Warp a view as large as the canvas."""
    middle = (torch.tensor(cuboids.shape[2:]) - 1) / 2
    middles = middle.repeat(len(cuboids), 1)
    return warp(cuboids, tuple(cuboids.shape[2:]), middles, draws, voxel_size_um=VOXEL, **strengths)


CHANGES: dict[str, Callable[[torch.Tensor, Draws], torch.Tensor]] = {
    "flip": partial(augment.flip_and_rotate, voxel_size_um=VOXEL),
    "bend": partial(augment.bend, gamma=0.25),
    "blur": partial(augment.blur, sigma_um=2.0, voxel_size_um=VOXEL),
    "stripes": partial(augment.stripes, voxel_size_um=VOXEL),
    "noise": partial(augment.photon_noise, noise=0.5),
    "drop": partial(augment.drop_background, probability=0.5),
    "rescale": partial(augment.rescale_channels, strength=0.3),
    "warp": partial(warp_middle, **GENTLE),
    "all": partial(augment.change_intensities, config=ALL, voxel_size_um=VOXEL),
}
every_change = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
shapes = st.tuples(st.integers(1, 7), st.integers(1, 12), st.integers(1, 12))


@every_change
@settings(max_examples=15)
@given(shape=shapes, channels=st.integers(1, 3), n=st.integers(1, 4), seed=st.integers(0, 99))
def test_shape_and_type_are_kept_and_the_input_is_left_alone(
    change, shape, channels: int, n: int, seed: int
) -> None:
    raw = counts(n, channels, shape, seed)
    before = raw.clone()
    changed = change(raw, drawn(n, seed))
    assert changed.shape == raw.shape
    assert changed.dtype == torch.float32
    assert changed.isfinite().all()
    assert torch.equal(raw, before)


@every_change
@pytest.mark.parametrize("shape", [(6, 11, 11), (20, 25, 30)])
def test_half_a_batch_gets_what_it_gets_in_the_whole(change, shape) -> None:
    raw = counts(8, shape=shape)
    whole = change(raw, Draws(2, 5, range(8)))
    half = change(raw[4:], Draws(2, 5, range(4, 8)))
    torch.testing.assert_close(whole[4:], half)
    assert not torch.equal(whole, change(raw, Draws(2, 6, range(8))))
    assert not torch.equal(whole, raw)


def test_flips_move_values_and_never_mix_z_with_y() -> None:
    raw = torch.randn(500, 1, 4, 5, 5)
    moved = augment.flip_and_rotate(raw, drawn(500), voxel_size_um=VOXEL)
    assert torch.equal(moved.flatten(2).sort(2).values, raw.flatten(2).sort(2).values)
    ramp = torch.arange(4 * 5 * 5).float().view(1, 1, 4, 5, 5).expand(500, -1, -1, -1, -1)
    turned = augment.flip_and_rotate(ramp, drawn(500), voxel_size_um=VOXEL)
    assert len({tuple(item.flatten().tolist()) for item in turned}) == 16
    # a plane stays a plane: the sets of values per z are those of the input, in order or reversed
    planes, before = (t.flatten(3).sort(3).values for t in (moved, raw))
    same = [(p == b).all() or (p == b.flip(1)).all() for p, b in zip(planes, before, strict=True)]
    assert all(same)


@pytest.mark.parametrize("along_z", [0.0, 0.25, 0.5, 1.0])
def test_z_is_turned_round_as_often_as_asked(along_z: float) -> None:
    ramp = torch.arange(4.0)[:, None, None].expand(4000, 1, 4, 5, 5)
    turned = augment.flip_and_rotate(ramp, drawn(4000), voxel_size_um=VOXEL, along_z=along_z)
    flipped = turned[:, 0, 0, 0, 0] == 3
    assert float(flipped.float().mean()) == pytest.approx(along_z, abs=0.03)


@pytest.mark.parametrize(("shape", "most"), [((4, 5, 5), 16), ((4, 5, 6), 8)])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 100])
def test_turns_keep_z_first_and_flip_it_then(shape, most: int, n: int) -> None:
    raw = torch.randn(2, 1, *shape)
    turned = augment.turns(raw, n, voxel_size_um=VOXEL)
    assert len(turned) == min(n, most)
    assert torch.equal(turned[0], raw)
    assert len({tuple(one.flatten().tolist()) for one in turned}) == len(turned)
    kept = -(-len(turned) // 2)
    for i, one in enumerate(turned):
        planes, before = (t.flatten(3).sort(3).values for t in (one, raw))
        assert torch.equal(planes, before if i < kept else before.flip(2))


@pytest.mark.parametrize(("shape", "voxel_um"), [((4, 5, 6), VOXEL), ((4, 5, 5), (5.0, 1.0, 2.0))])
def test_y_and_x_are_exchanged_only_where_they_are_alike(shape, voxel_um) -> None:
    ramp = torch.arange(math.prod(shape)).float().view(1, 1, *shape).expand(90, -1, -1, -1, -1)
    turned = augment.flip_and_rotate(ramp, drawn(90), voxel_size_um=voxel_um)
    assert len({tuple(item.flatten().tolist()) for item in turned}) == 8
    assert (turned.diff(dim=4).abs() == 1).all()


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0.05, 1.0))
def test_bending_keeps_the_range_and_the_order(seed: int, gamma: float) -> None:
    raw = counts(3, seed=seed)
    bent = augment.bend(raw, drawn(3, seed), gamma=gamma)
    torch.testing.assert_close(bent.amax((2, 3, 4)), raw.amax((2, 3, 4)))
    torch.testing.assert_close(bent.amin((2, 3, 4)), raw.amin((2, 3, 4)))
    order = raw.flatten(2).argsort(2)
    assert (bent.flatten(2).gather(2, order).diff(dim=2) >= -1e-3).all()


def test_bending_by_nothing_and_a_constant_change_nothing() -> None:
    raw = counts()
    torch.testing.assert_close(augment.bend(raw, drawn(8), gamma=0.0), raw)
    flat = torch.full((2, 1, 3, 4, 5), 317.0)
    assert torch.equal(augment.bend(flat, drawn(2), gamma=0.5), flat)


@settings(max_examples=20)
@given(shapes, st.floats(0, 3), st.integers(0, 99))
def test_blur_keeps_the_sum_and_a_constant_and_lowers_the_variance(shape, sigma, seed) -> None:
    raw = counts(2, 2, shape, seed)
    blurred = augment.blur(raw, drawn(2, seed), sigma_um=sigma, voxel_size_um=VOXEL)
    torch.testing.assert_close(blurred.sum((2, 3, 4)), raw.sum((2, 3, 4)))
    variance, before = (t.var((2, 3, 4), correction=0) for t in (blurred, raw))
    assert (variance <= before * 1.0001 + 1e-3).all()
    assert (blurred >= raw.amin((2, 3, 4), keepdim=True) - 1e-3).all()
    flat = torch.full((2, 1, *shape), 317.0)
    torch.testing.assert_close(
        augment.blur(flat, drawn(2, seed), sigma_um=sigma, voxel_size_um=VOXEL), flat
    )


def test_blur_is_a_gaussian_in_micrometres() -> None:
    """As SciPy's, where that one's samples are close enough to make a Gaussian."""
    raw = counts(6, 1, (20, 40, 40))
    smooth = torch.from_numpy(ndimage.gaussian_filter(raw.numpy(), (0, 0, 1, 2, 2)))
    blurred = augment.blur(smooth, drawn(6), sigma_um=4.0, voxel_size_um=VOXEL)
    sigmas = drawn(6).uniform(high=4.0).tolist()
    wide = [index for index, sigma in enumerate(sigmas) if sigma > 1]
    assert len(wide) >= 3
    for index in wide:
        sigma = sigmas[index]  # along z thrice, in 5 µm voxels
        along = [sigma * 3 / 5, sigma, sigma]
        expected = ndimage.gaussian_filter(smooth[index, 0].numpy(), along, truncate=6)
        error = (blurred[index, 0] - torch.from_numpy(expected)).abs().max()
        assert error < 0.05 * (blurred[index] - smooth[index]).abs().max()


@settings(max_examples=20)
@given(shapes, st.floats(0.01, 1.0), st.integers(0, 99))
def test_stripes_are_bounded_and_along_y_or_x(shape, strength: float, seed: int) -> None:
    raw = counts(4, 2, shape, seed)
    low = raw.amin((2, 3, 4), keepdim=True)
    striped = augment.stripes(raw, drawn(4, seed), strength=strength, voxel_size_um=VOXEL)
    light = (striped - low) / (raw - low)
    light = torch.where(raw - low > 1, light, torch.nan)
    seen = light[~light.isnan()]
    assert (seen.log().abs() <= strength + 1e-3).all()
    for item in light:
        along = [
            (item.nan_to_num(-9).amax((0, axis)) + (-item).nan_to_num(-9).amax((0, axis))).amax()
            for axis in (2, 3)
        ]
        assert min(float(spread) for spread in along) < 1e-3  # one value along y, or along x


def test_stripes_change_slowly_from_plane_to_plane() -> None:
    flat = torch.full((30, 1, 20, 50, 50), 300.0)
    flat[:, :, 0, 0, 0] = 100
    light = (augment.stripes(flat, drawn(30), strength=0.3, voxel_size_um=VOXEL) - 100) / 200
    light = light[:, :, 1:]
    assert light.diff(dim=2).abs().max() < 2 * 0.3 * 2 / 19 * math.exp(0.3)
    assert light.var((3, 4)).min() > 1e-3


def test_noise_keeps_the_mean_and_has_the_strength_that_was_drawn() -> None:
    raw = counts(60, 1, (10, 20, 20))
    draws = drawn(60)
    noise = augment.photon_noise(raw, draws, noise=0.4) - raw
    share = noise.std((2, 3, 4)) / raw.std((2, 3, 4))
    expected = drawn(60).uniform(1, 1, 1, 1, high=0.4)[:, :, 0, 0, 0]
    torch.testing.assert_close(share, expected, rtol=0.1, atol=1e-3)
    error = raw.std((2, 3, 4)) * share / math.sqrt(4000)
    assert (noise.mean((2, 3, 4)).abs() < 5 * error).all()
    assert torch.equal(augment.photon_noise(raw, drawn(60), noise=0.0), raw)
    flat = torch.full((2, 1, 3, 4, 5), 317.0)
    assert torch.equal(augment.photon_noise(flat, drawn(2), noise=0.5), flat)


def test_noise_grows_with_the_signal() -> None:
    """As a line: b where there is no signal, and a for each count above."""
    raw = torch.arange(1.0, 5).repeat_interleave(5000).view(1, 1, 20, 25, 40) * 100
    slopes = []
    for seed in range(6):
        noise = augment.photon_noise(raw, drawn(1, seed), noise=1.0) - raw
        variance = noise.flatten().view(4, 5000).var(1)
        steps = variance.diff()
        assert (steps > -0.05 * variance[1:]).all()
        torch.testing.assert_close(
            steps, steps.mean().expand(3), rtol=0, atol=0.1 * float(variance[-1])
        )
        slopes.append(float(variance[-1] / variance[0]))
    assert max(slopes) > 2


@settings(max_examples=10)
@given(st.floats(0.1, 20), st.floats(-1000, 1000))
def test_strengths_mean_the_same_for_any_camera(gain: float, offset: float) -> None:
    """Gain and offset of the counts pass through."""
    raw = counts(6)
    here, there = (
        standardise(augment.change_intensities(x, drawn(6), ALL, VOXEL))
        for x in (raw, gain * raw + offset)
    )
    torch.testing.assert_close(here, there, rtol=0, atol=0.02)


def test_only_the_background_is_dropped() -> None:
    raw = counts(64)
    dropped = augment.drop_background(raw, drawn(64), probability=0.5)
    assert torch.equal(dropped[:, 0], raw[:, 0])
    gone = ~dropped[:, 1].flatten(1).any(1)
    assert 16 < int(gone.sum()) < 48
    assert torch.equal(dropped[~gone], raw[~gone])
    assert torch.equal(augment.drop_background(raw, drawn(64), probability=0.0), raw)
    alone = counts(4, 1)
    assert torch.equal(augment.drop_background(alone, drawn(4), probability=1.0), alone)


@settings(max_examples=20)
@given(st.floats(0, 1), st.integers(0, 99))
def test_rescaling_is_a_gain_and_an_offset_within_bounds(strength: float, seed: int) -> None:
    x = normalise(counts(5, 2, (6, 11, 12), seed))
    x[0, 1] = 0
    rescaled = augment.rescale_channels(x, drawn(5, seed), strength=strength)
    assert not rescaled[0, 1].any()  # what is missing stays missing
    deviation, mean = rescaled.std((2, 3, 4), correction=0), rescaled.mean((2, 3, 4))
    there = torch.ones(5, 2, dtype=torch.bool)
    there[0, 1] = False
    gain = deviation[there] / x.std((2, 3, 4), correction=0)[there]
    assert (gain.log().abs() <= strength + 1e-3).all()
    assert (mean.abs() <= strength + 1e-3).all()
    torch.testing.assert_close(standardise(rescaled), standardise(x), atol=1e-3, rtol=0)


def test_strength_zero_is_the_identity() -> None:
    raw = counts()
    assert torch.equal(augment.change_intensities(raw, drawn(8), OFF, VOXEL), raw)


def test_switching_one_off_does_not_shift_the_others() -> None:
    raw = counts(16)
    with_blur, without = (
        augment.change_intensities(
            raw, drawn(16), AugmentConfig(blur=blur, stripes=0, noise=0.5), VOXEL
        )
        for blur in (0.3, 0.0)
    )
    same = (with_blur == without).flatten(1).all(1)
    assert 0 < int(same.sum()) < 16


def test_chosen_cuboids_alone_are_changed() -> None:
    raw = counts(400, 1, (2, 3, 3))
    changed = augment.on_some(lambda some, _: some + 1, raw, drawn(400), 0.3)
    step = (changed - raw).flatten(1)
    assert ((step == 0).all(1) | (step == 1).all(1)).all()
    assert float(step[:, 0].mean()) == pytest.approx(0.3, abs=0.08)


@settings(max_examples=15)
@given(shapes, st.integers(0, 99))
def test_warp_keeps_a_constant_and_by_nothing_is_a_copy(shape, seed: int) -> None:
    flat = torch.full((2, 2, *shape), 317.0)
    torch.testing.assert_close(warp_middle(flat, drawn(2, seed), **GENTLE), flat)
    raw = counts(2, 2, shape, seed)
    torch.testing.assert_close(
        warp_middle(raw, drawn(2, seed), **NOTHING), raw, rtol=1e-4, atol=0.05
    )


def blob(shape=(20, 50, 50), width_um: float = 6.0) -> torch.Tensor:
    """A ball in the middle, in µm."""
    axes = [(torch.arange(n) - (n - 1) / 2) * size for n, size in zip(shape, VOXEL, strict=True)]
    squared = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0)
    return torch.exp(-squared / (2 * width_um**2))


def centre_vox(image: torch.Tensor) -> torch.Tensor:
    axes = torch.meshgrid(*(torch.arange(n).float() for n in image.shape), indexing="ij")
    return torch.stack([(axis * image).sum() / image.sum() for axis in axes])


def test_warp_keeps_a_cell_in_its_place_and_its_size_within_the_scale() -> None:
    before = blob()
    canvas = before.expand(40, 1, -1, -1, -1)
    warped = warp_middle(canvas, drawn(40), **{**GENTLE, "elastic_um": 0.0})
    volume = warped.sum((1, 2, 3, 4)) / before.sum()
    assert (volume.log().abs() < 3.3 * 0.1).all()
    assert volume.log().std() > 0.03
    for item in warp_middle(canvas, drawn(40), **GENTLE):
        assert (centre_vox(item[0]) - centre_vox(before)).abs().max() < 1


def test_rotation_alone_turns_planes_within_themselves() -> None:
    """What depends on z alone stays, and a disc too; a bar turns by the angle drawn."""
    alone = {**NOTHING, "rotation_deg": 30.0}
    depth = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(6, 1, 8, 30, 30).contiguous()
    torch.testing.assert_close(warp_middle(depth, drawn(6), **alone), depth, atol=1e-4, rtol=1e-4)
    disc = blob((8, 30, 30)).expand(6, 1, -1, -1, -1)
    gap = (warp_middle(disc, drawn(6), **alone) - disc)[..., 6:-6, 6:-6]
    assert gap.abs().max() < 0.01
    y, x = torch.meshgrid(torch.arange(-20.0, 21), torch.arange(-20.0, 21), indexing="ij")
    bar = torch.exp(-(y**2) / 8 - x**2 / 72).expand(6, 1, 3, 41, 41)
    turned = warp_middle(bar, drawn(6), **alone)[:, 0, 1]
    xy, xx, yy = ((turned * part).sum((1, 2)) for part in (x * y, x * x, y * y))
    angle = torch.atan2(2 * xy, xx - yy) / 2 * 180 / math.pi
    expected = drawn(6).uniform(low=-30, high=30)
    torch.testing.assert_close(angle.abs(), expected.abs(), atol=0.5, rtol=0)
    assert (angle.sign() * angle.sign()[0] == expected.sign() * expected.sign()[0]).all()


def test_elastic_displacements_are_bounded_in_micrometres() -> None:
    ramps = torch.stack(
        torch.meshgrid(
            *(torch.arange(n) * size for n, size in zip((20, 50, 50), VOXEL, strict=True)),
            indexing="ij",
        )
    )
    canvas = ramps.expand(8, -1, -1, -1, -1)
    moved = warp_middle(canvas, drawn(8), **{**NOTHING, "elastic_um": 2.0}) - canvas
    assert moved.abs().max() <= 2.001
    assert moved.abs().amax((0, 2, 3, 4)).min() > 1  # along each axis
    assert moved[:, :, 9:11, 24:26, 24:26].abs().max() < 0.3


@pytest.mark.parametrize(
    ("name", "value"),
    [("warp", 1.5), ("blur", -0.1), ("scale", 0.9), ("noise", math.nan), ("elastic_um", math.inf)],
)
def test_impossible_strengths_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"augment\.{name} is .*, expected 0 to"):
        AugmentConfig(**{name: value})
