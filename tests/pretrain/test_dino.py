from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn
from lightly.utils.scheduler import cosine_schedule

from cubeclf_core.config import AugmentConfig
from cubeclf_core.draws import Draws
from cubeclf_core.errors import InputError
from cubeclf_core.normalise import normalise
from pretrain.self_distillation import MovingMean, koleo, sinkhorn, view_cross_entropy

FAMILY = ["dino", "dinov2"]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n_local", [0, 3])
def test_cross_entropy_is_that_of_lightly(n_local: int) -> None:
    taught, said = normal(2, 5, 16), normal(2 + n_local, 5, 16, seed=1).requires_grad_()
    each = view_cross_entropy((taught / 0.05).softmax(-1), said)
    expected = DINOLoss(output_dim=16)(list(taught), list(said), teacher_temp=0.05)
    torch.testing.assert_close(each.mean(), expected)
    (found,) = torch.autograd.grad(each.mean(), said)
    torch.testing.assert_close(found, torch.autograd.grad(expected, said)[0])
    one = view_cross_entropy((taught[:, 2:3] / 0.05).softmax(-1), said[:, 2:3])
    torch.testing.assert_close(each[2], one[0])


def test_koleo_is_that_of_lightly_and_finite() -> None:
    tokens = normal(9, 12).requires_grad_()
    torch.testing.assert_close(koleo(tokens), KoLeoLoss()(tokens), rtol=1e-4, atol=1e-5)
    for few in (tokens[:1], tokens[:1].repeat(3, 1)):
        loss = koleo(few)
        (gradient,) = torch.autograd.grad(loss, tokens, retain_graph=True)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_sinkhorn_is_that_of_lightly_and_uses_all_prototypes() -> None:
    logits = normal(40, 8).tanh() + torch.linspace(-0.5, 0.5, 8)
    logits = logits.clamp(-1, 1)
    targets = sinkhorn(logits, 0.1)
    torch.testing.assert_close(targets, lightly_sinkhorn(logits, iterations=3, epsilon=0.1))
    balanced = sinkhorn(logits, 0.1, iterations=50)
    torch.testing.assert_close(balanced.sum(1), torch.ones(40))
    torch.testing.assert_close(balanced.sum(0), torch.full((8,), 5.0), rtol=1e-2, atol=1e-2)
    assert sinkhorn(logits[:0], 0.1).shape == (0, 8)


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3), min_size=1, max_size=5))
def test_a_mean_does_not_depend_on_how_a_step_is_cut(steps: list[list[int]]) -> None:
    cut, whole = MovingMean(normal(3)), MovingMean(normal(3))
    for step, sizes in enumerate(steps):
        rows = normal(sum(sizes), 3, seed=step)
        for part in rows.split(sizes):
            cut.add(part)
        whole.add(rows)
        cut.move()
        whole.move()
    torch.testing.assert_close(cut.value, whole.value)
    assert cut.moves == sum(map(any, steps))


def test_a_mean_is_plain_at_first_and_then_moves() -> None:
    mean = MovingMean(torch.full((3,), 100.0), momentum=0.75)
    rows = normal(6, 2, 3)
    for step in range(3):
        mean.add(rows[step])
        mean.move()
    torch.testing.assert_close(mean.value, rows[:3].mean((0, 1)))
    for step in (3, 4):
        before = mean.value.clone()
        mean.add(rows[step])
        mean.move()
        torch.testing.assert_close(mean.value, 0.75 * before + 0.25 * rows[step].mean(0))


@pytest.mark.parametrize("name", FAMILY)
def test_teacher_follows_and_is_not_trained(objective, counts, name: str) -> None:
    model = objective(name, network={"drop_path": 0.2}).train()
    before = model.teacher.blocks[0].mlp.fc1.weight.clone()
    assert torch.equal(before, model.backbone.blocks[0].mlp.fc1.weight)
    assert not any(module.training for module in model.teacher.modules())
    loss, told = model(counts(4, model.canvas_shape), Draws(0, 0, range(4)), 0.0)
    loss.backward()
    teachers = [p for key, p in model.named_parameters() if key.startswith("teacher")]
    assert not any(p.requires_grad or p.grad is not None for p in teachers)
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    model.before_update(0.0)
    frozen = {key for key, p in trained.items() if p.grad is None}
    assert frozen == {key for key in trained if key.endswith("last_layer.weight_v")}
    with torch.no_grad():
        model.backbone.blocks[0].mlp.fc1.weight.add_(1.0)
    model.after_update(0.0)
    moved = model.teacher.blocks[0].mlp.fc1.weight - before
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), atol=1e-5, rtol=0)
    assert model.exported is model.teacher
    assert float(told["uniform"]) == pytest.approx(math.log(64))


@pytest.mark.parametrize("name", FAMILY)
def test_the_student_sees_local_views_that_are_cut_and_not_resized(
    objective, counts, name: str
) -> None:
    """Each is a window of its canvas as it is; the teacher sees whole cuboids only."""
    off = {field.name: 0.0 for field in dataclasses.fields(AugmentConfig)}
    still = dataclasses.replace(
        AugmentConfig(), **{**off, "flip": False, "surroundings_um": (8, 18)}
    )
    dino = objective(name, channels=1, augment=still).train()
    seen: dict[str, list[torch.Tensor]] = {"backbone": [], "teacher": []}
    for which, inputs in seen.items():
        getattr(dino, which).register_forward_pre_hook(
            lambda _, given, inputs=inputs: inputs.append(given[0])
        )
    canvas = counts(3, dino.canvas_shape, 1)
    dino(canvas, Draws(0, 0, range(3)), 0.5)
    whole, small = dino.backbone.config.cuboid_shape, dino.backbone.config.patch_shape
    assert {tuple(view.shape[2:]) for view in seen["teacher"]} == {whole}
    local = [view for view in seen["backbone"] if tuple(view.shape[2:]) != whole]
    assert [tuple(view.shape) for view in local] == [(2 * 3, 1, *small)]
    for i, view in enumerate(local[0]):
        windows = canvas[i % 3, 0]
        for axis, n in enumerate(small):
            windows = windows.unfold(axis, n, 1)
        windows = normalise(windows.reshape(-1, 1, *small))
        assert (windows - view).abs().amax((1, 2, 3, 4)).min() < 1e-4


def test_schedules_follow_the_progress(objective, counts) -> None:
    model = objective("dino", momentum=0.9, teacher_temperature=(0.04, 0.08))
    cuboids = counts(2, model.canvas_shape)
    for progress, temperature in ((0.0, 0.04), (0.15, 0.06), (0.3, 0.08), (0.9, 0.08)):
        _, told = model(cuboids, Draws(0, 0, range(2)), progress)
        assert float(told["teacher_temperature"]) == pytest.approx(temperature)
        expected = cosine_schedule(
            step=round(1000 * progress), max_steps=1001, start_value=0.9, end_value=1.0
        )
        assert float(told["momentum"]) == pytest.approx(expected)


def test_told_numbers_fit_each_other(objective, counts) -> None:
    model = objective("dino")
    cuboids = counts(6, model.canvas_shape)
    loss, told = model(cuboids, Draws(0, 0, range(6)), 0.0)
    parts = told["cross_entropy"] + 0.1 * told["koleo"]
    torch.testing.assert_close(loss, parts, check_stride=False)
    torch.testing.assert_close(told["per_cuboid"].mean(), told["cross_entropy"])
    torch.testing.assert_close(told["kl"], told["cross_entropy"] - told["teacher_entropy"])
    assert 0 < told["teacher_entropy"] < told["marginal_entropy"] < told["uniform"]
    assert not any(value.requires_grad for value in told.values())


@pytest.mark.parametrize(("keep", "tokens"), [(1.0, 9), (0.5, 5), (0.01, 2)])
def test_student_sees_a_share_of_the_patches(objective, counts, keep: float, tokens: int) -> None:
    model = objective("dino", student_keep=keep, local_views=0, features="class")
    seen = []
    model.backbone.blocks[0].register_forward_hook(lambda _, x, y: seen.append(y.shape[1]))
    loss, _ = model(counts(2, model.canvas_shape), Draws(0, 0, range(2)), 0.0)
    assert torch.isfinite(loss)
    assert seen == [tokens]


def test_the_teacher_is_asked_by_its_own_projection(objective, counts) -> None:
    """The student's may be anywhere: what the teacher says stays as it was."""
    told = []
    for moved in (0.0, 1.0):
        model = objective("dino")
        with torch.no_grad():
            model.backbone.projection[1].weight += moved * torch.randn(
                model.backbone.projection[1].weight.shape
            )
        _, numbers = model(counts(4, model.canvas_shape), Draws(0, 0, range(4)), 0.0)
        told.append(numbers)
    assert torch.equal(told[0]["teacher_entropy"], told[1]["teacher_entropy"])
    assert not torch.equal(told[0]["cross_entropy"], told[1]["cross_entropy"])


def test_without_masks_dinov2_is_dino(objective, counts) -> None:
    losses = []
    for name, settings in (("dino", {}), ("dinov2", {"mask_probability": 0.0})):
        model = objective(name, **settings)
        loss, told = model(counts(4, model.canvas_shape), Draws(0, 0, range(4)), 0.0)
        losses.append(loss)
    assert torch.equal(*losses)
    assert told["ibot"] == 0


def test_patch_loss_is_that_of_lightly(objective) -> None:
    model = objective("dinov2")
    taught, learned = normal(6, 8, 96), normal(6, 8, 96, seed=1)
    hidden = normal(6, 8, seed=2) > 0.5
    hidden[3] = False
    each = model._patch_loss(taught, learned, hidden, progress=1.0)
    seen = model._centred(taught, model.patch_feature_centre)[hidden]
    guessed = model._centred(learned, model.patch_feature_centre)[hidden]
    expected = IBOTPatchLoss(output_dim=64)(
        model.teacher_patch_head(seen),
        model.patch_head(guessed),
        hidden.view(6, 1, 8),
        teacher_temp=0.07,
    )
    assert each.shape == (3,)
    torch.testing.assert_close(each.mean(), expected)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dino", {}),
        ("dinov2", {}),
        pytest.param(
            "dinov2",
            {"centring": "sinkhorn", "masks": "random"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_student_learns_what_the_teacher_says(objective, counts, name: str, settings) -> None:
    """Of the same views again and again, and of a teacher that stays: by heart, that is."""
    model = objective(
        name,
        local_views=0,
        koleo_weight=0,
        momentum=0.9999,
        freeze_last_layer=0,
        teacher_temperature=(0.07, 0.07),
        **settings,
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-3)
    cuboids = counts(8, model.canvas_shape)
    history = []
    for _ in range(30):
        loss, told = model(cuboids, Draws(0, 0, range(8)), 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_update(0.0)
        history.append({key: float(value.mean()) for key, value in told.items()})
    first, last = history[1], history[-1]  # the first step has yet to find its centres
    assert last["kl"] < 0.5 * first["kl"]
    if name == "dinov2":
        assert last["ibot"] < first["ibot"] - 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"local_patches": (3, 1, 1)}, r"dinov2.local_patches is \(3, 1, 1\), expected no more"),
        ({"student_keep": 0.5}, "dinov2.student_keep is 0.5, expected 1"),
        ({"mask_share": (0.5, 0.1)}, "dinov2.mask_share"),
        ({"momentum": 1.0}, "dinov2.momentum is 1.0, expected at least 0 and below 1"),
    ],
)
def test_impossible_settings_are_refused(objective, settings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        objective("dinov2", **settings)
