from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cubeclf_core.augment import generator
from cubeclf_core.backbones import build_backbone
from cubeclf_core.normalise import standardise
from cubeclf_core.vit import Vit3dConfig
from pretrain import mae
from pretrain.config import DinoConfig, MaeConfig
from pretrain.dino import Dino
from pretrain.views import cut_view, make_view


def nano(channels: int = 2):
    return build_backbone(Vit3dConfig(size="nano", channels=channels), seed=0)


def counts(n: int = 4, shape=(20, 50, 50), channels: int = 2, seed: int = 0) -> torch.Tensor:
    rate = 200 + 100 * torch.rand(n, channels, *shape, generator=generator(seed))
    return torch.poisson(rate, generator=generator(seed, 1))


shapes = st.tuples(*[st.integers(1, 3)] * 3)


@given(shapes, shapes, st.integers(1, 2))
def test_unpatchify_undoes_patchify(patch, grid, channels: int) -> None:
    shape = [p * g for p, g in zip(patch, grid, strict=True)]
    x = torch.arange(2 * channels * math.prod(shape)).view(2, channels, *shape).float()
    patches = mae.patchify(x, patch)
    assert patches.shape == (2, math.prod(grid), channels, math.prod(patch))
    first = x[0, :, : patch[0], : patch[1], : patch[2]].flatten(1)
    assert torch.equal(patches[0, 0], first)
    assert torch.equal(mae.unpatchify(patches, patch, grid), x)


@given(st.integers(1, 5), st.integers(2, 130), st.floats(0.1, 0.9))
def test_masks_have_the_same_count_in_every_cuboid(batch: int, tokens: int, ratio: float) -> None:
    masked = mae.random_mask(batch, tokens, ratio, generator(0))
    assert (masked.sum(1) == round(ratio * tokens)).all()
    keep = mae.visible_tokens(masked)
    assert keep.shape == (batch, tokens - round(ratio * tokens))
    assert not masked.gather(1, keep).any()


def test_all_tokens_are_masked_alike() -> None:
    share = mae.random_mask(4000, 20, 0.75, generator(0)).float().mean(0)
    assert (share - 0.75).abs().max() < 0.03


def test_mae_loss_is_that_of_a_naive_loop() -> None:
    x = standardise(counts(2))
    masked = mae.random_mask(2, 125, 0.75, generator(2))
    guess = torch.randn(2, 125, 2, 400, generator=generator(3))
    target, counted = mae.normalise_patches(mae.patchify(x, (4, 10, 10)))
    found = mae.masked_error(guess, target, counted * masked[..., None])
    errors = []
    for b in range(2):
        for token, (z, y, px) in enumerate(
            (z, y, px) for z in range(5) for y in range(5) for px in range(5)
        ):
            if not masked[b, token]:
                continue
            for c in range(2):
                patch = x[b, c, 4 * z : 4 * z + 4, 10 * y : 10 * y + 10, 10 * px : 10 * px + 10]
                normal = (patch - patch.mean()) / patch.std(correction=0)
                errors.append((guess[b, token, c] - normal.flatten()).square().mean())
    torch.testing.assert_close(found, torch.stack(errors).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["cuboid", "patch"])
def test_blank_channel_counts_for_nothing(target: str) -> None:
    x = standardise(counts(2))
    x[:, 1] = 0
    target, counted = mae.Mae(nano(), MaeConfig(target=target))._target(x)
    assert not counted[..., 1].any()
    assert counted[..., 0].all()
    guess = target.clone()
    guess[:, :, 1] = 100
    assert mae.masked_error(guess, target, counted) == 0


def test_neighbour_mean_is_that_of_a_naive_loop() -> None:
    target = torch.randn(1, 27, 1, 4, generator=generator(0))
    masked = mae.random_mask(1, 27, 0.7, generator(1))
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


def test_the_encoder_does_not_see_what_is_masked() -> None:
    objective = mae.Mae(nano(), MaeConfig()).eval()
    x = standardise(counts(2))
    masked = mae.random_mask(2, 125, 0.75, generator(0))
    patches = mae.patchify(x, (4, 10, 10))
    patches = torch.where(masked[:, :, None, None], 1000.0, patches)
    changed = mae.unpatchify(patches, (4, 10, 10), (5, 5, 5))
    assert not torch.equal(changed, x)
    assert torch.equal(objective.reconstruct(changed, masked), objective.reconstruct(x, masked))


@pytest.mark.parametrize("target", ["cuboid", "patch"])
def test_mae_learns_what_its_surroundings_tell(target: str) -> None:
    """On ramps, that neighbours continue, the loss falls far below the baseline."""
    torch.manual_seed(0)
    objective = mae.Mae(nano(channels=1), MaeConfig(target=target))
    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 3e-3, betas=(0.9, 0.95))
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=20)
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (20, 50, 50)), indexing="ij")
    for step in range(130):
        slopes = torch.randn(8, 3, 1, 1, 1, generator=generator(1, step))
        ramps = 1000 + 100 * sum(slopes[:, i] * axes[i] for i in range(3))
        loss, extra = objective(ramps[:, None], generator(2, step), step / 130)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warm_up.step()
    assert loss < 0.7 * extra["neighbour_mean"]


def test_views_are_cut_and_never_resized() -> None:
    canvas = torch.arange(24 * 60 * 60).float().view(1, 1, 24, 60, 60).repeat(50, 1, 1, 1, 1)
    views = cut_view(canvas, (12, 30, 30), generator(0))
    assert views.shape == (50, 1, 12, 30, 30)
    assert (views.diff(dim=4) == 1).all()
    assert (views.diff(dim=3) == 60).all()
    assert (views.diff(dim=2) == 3600).all()
    starts = views[:, 0, 0, 0, 0]
    assert (starts // 3600).unique().numel() == 13  # every plane that it can start in
    view = make_view(counts(4, (24, 60, 60)), (20, 50, 50), generator(0))
    torch.testing.assert_close(view[:, 0].mean((1, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)


def test_dino_teacher_follows_and_is_not_trained() -> None:
    objective = Dino(nano(), DinoConfig(prototypes=64))
    before = objective.teacher.blocks[0].mlp.fc1.weight.clone()
    assert torch.equal(before, objective.backbone.blocks[0].mlp.fc1.weight)
    loss, extra = objective(counts(4, objective.canvas_shape), generator(0), 0.0)
    loss.backward()
    assert all(p.grad is None for p in objective.teacher.parameters())
    assert all(p.grad is None for p in objective.teacher_head.parameters())
    assert objective.head.last_layer.weight_v.grad is not None
    objective.before_update(0.0)
    assert objective.head.last_layer.weight_v.grad is None
    with torch.no_grad():
        objective.backbone.blocks[0].mlp.fc1.weight.add_(1.0)
    objective.after_update(0.0)
    moved = objective.teacher.blocks[0].mlp.fc1.weight - before
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), atol=1e-5, rtol=0)
    assert objective.exported is objective.teacher
    assert float(extra["uniform"]) == pytest.approx(math.log(64))


@pytest.mark.parametrize("objective", ["mae", "dino"])
def test_one_seed_gives_one_loss(objective: str) -> None:
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(7)
        model = (
            mae.Mae(nano(), MaeConfig())
            if objective == "mae"
            else Dino(nano(), DinoConfig(prototypes=64))
        )
        loss, _ = model(counts(2, model.canvas_shape), generator(seed), 0.0)
        losses.append(float(loss.detach()))
    assert losses[0] == losses[1] != losses[2]
