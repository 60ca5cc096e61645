from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cubeclf_core.config import AugmentConfig
from cubeclf_core.draws import Draws
from cubeclf_core.normalise import normalise
from pretrain import mae
from pretrain.masks import draw_mask

GRID = (2, 2, 2)
shapes = st.tuples(*[st.integers(1, 3)] * 3)


def hide(n: int, count: int = 6, step: int = 0) -> torch.Tensor:
    return draw_mask("random", GRID, count, Draws(0, step, range(n)))


@given(shapes, shapes, st.integers(1, 2))
def test_unpatchify_undoes_patchify(patch, grid, channels: int) -> None:
    shape = [p * g for p, g in zip(patch, grid, strict=True)]
    x = torch.arange(2 * channels * math.prod(shape)).view(2, channels, *shape).float()
    patches = mae.patchify(x, patch)
    assert patches.shape == (2, math.prod(grid), channels, math.prod(patch))
    first = x[0, :, : patch[0], : patch[1], : patch[2]].flatten(1)
    assert torch.equal(patches[0, 0], first)
    assert torch.equal(mae.unpatchify(patches, patch, grid), x)


def test_error_is_that_of_a_naive_loop(counts) -> None:
    x = normalise(counts(3, (8, 20, 20)))
    x[2, 1] = 0  # a channel that was blanked
    masked = hide(3)
    guess = torch.randn(3, 8, 2, 400, generator=torch.Generator().manual_seed(3))
    target, counted = mae.normalise_patches(mae.patchify(x, (4, 10, 10)))
    found = mae.masked_error(guess, target, counted * masked[..., None])
    places = [(z, y, px) for z in range(2) for y in range(2) for px in range(2)]
    for b in range(3):
        errors = []
        for token, (z, y, px) in enumerate(places):
            for c in range(2):
                patch = x[b, c, 4 * z : 4 * z + 4, 10 * y : 10 * y + 10, 10 * px : 10 * px + 10]
                if masked[b, token] and patch.any():
                    normal = (patch - patch.mean()) / patch.std(correction=0)
                    errors.append((guess[b, token, c] - normal.flatten()).square().mean())
        torch.testing.assert_close(found[b], torch.stack(errors).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["cuboid", "patch"])
def test_blank_channel_counts_for_nothing(objective, counts, target: str) -> None:
    """What stands for it in the prediction has no gradient, whatever the augmentation does."""
    model = objective("mae", target=target, augment=AugmentConfig(drop_background=1.0))
    loss, _ = model(counts(4, model.canvas_shape), Draws(0, 0, range(4)), 0.0)
    loss.backward()
    signal, background = model.predict.weight.grad.unflatten(0, (2, -1))
    assert signal.abs().sum() > 0
    assert not background.any()


def test_neighbour_mean_is_that_of_a_naive_loop() -> None:
    target = torch.randn(1, 27, 1, 4, generator=torch.Generator().manual_seed(0))
    masked = draw_mask("random", (3, 3, 3), 19, Draws(0, 1, range(1)))
    guess = mae.neighbour_mean(target, masked, mae.neighbours((3, 3, 3)))
    places = [(z, y, x) for z in range(3) for y in range(3) for x in range(3)]
    for i, place in enumerate(places):
        near = [
            target[0, j].mean(1)
            for j, other in enumerate(places)
            if j != i
            and not masked[0, j]
            and all(abs(a - b) <= 1 for a, b in zip(place, other, strict=True))
        ]
        expected = torch.stack(near).mean(0)[:, None] if near else torch.zeros(1, 1)
        torch.testing.assert_close(guess[0, i], expected)


def test_the_encoder_does_not_see_what_is_masked(objective, counts) -> None:
    model = objective("mae").eval()
    x = normalise(counts(2, (8, 20, 20)))
    masked = hide(2)
    patches = mae.patchify(x, (4, 10, 10))
    patches = torch.where(masked[:, :, None, None], 1000.0, patches)
    changed = mae.unpatchify(patches, (4, 10, 10), GRID)
    assert not torch.equal(changed, x)
    assert torch.equal(model.reconstruct(changed, masked), model.reconstruct(x, masked))


@pytest.mark.parametrize(("target", "masks"), [("cuboid", "block"), ("patch", "random")])
def test_mae_learns_what_its_surroundings_tell(objective, target: str, masks: str) -> None:
    """On ramps, that neighbours continue, the loss falls far below the baseline."""
    plain = AugmentConfig(warp=0, blur=0, stripes=0)
    model = objective("mae", channels=1, target=target, masks=masks, mask_ratio=0.6, augment=plain)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 3e-3, betas=(0.9, 0.95))
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=15)
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in model.canvas_shape), indexing="ij")
    shares = []
    for step in range(50):
        slopes = torch.randn(8, 3, 1, 1, 1, generator=torch.Generator().manual_seed(step))
        ramps = 1000 + 100 * sum(slopes[:, i] * axes[i] for i in range(3))
        loss, told = model(ramps[:, None], Draws(2, step, range(8)), step / 50)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warm_up.step()
        shares.append(float(loss.detach() / told["neighbour_mean"]))
    assert sum(shares[-5:]) / 5 < 0.6 < sum(shares[:5]) / 5


@pytest.mark.parametrize("channels", [1, 2])
def test_picture_shows_the_reconstruction(objective, counts, channels: int) -> None:
    model = objective("mae", channels=channels, target="patch").eval()
    with torch.no_grad():
        cuboids = counts(6, model.canvas_shape, channels)
        figure = model.picture(cuboids, Draws(0, 0, range(6)))
    for axes, other in zip(figure.axes, figure.axes[1:], strict=False):
        shown, beside = (np.ma.filled(axis.images[0].get_array(), -9) for axis in (axes, other))
        assert shown.shape == beside.shape
        assert not np.array_equal(shown, beside)
