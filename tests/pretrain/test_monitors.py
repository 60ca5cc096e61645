"""Collapses are provoked in real objectives, on cuboids with a blob each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cubeclf_core.backbones import build_backbone
from cubeclf_core.config import AugmentConfig
from cubeclf_core.draws import Draws
from cubeclf_core.errors import RunFailed
from cubeclf_core.metrics import embedding_health
from cubeclf_core.vit import Vit3d, Vit3dConfig
from pretrain.dino import Dino
from pretrain.mae import Mae
from pretrain.monitors import Collapsed, Monitors
from pretrain.objective import Objective
from pretrain.probes import embed

SMALL = Vit3dConfig(size="nano", channels=1, cuboid_shape=(8, 20, 20), patch_um=(20, 10, 10))
NO_CHANGE = AugmentConfig(
    warp=0, gamma=0, blur=0, stripes=0, noise=0, drop_background=0, rescale=0, surroundings=0
)
STEPS = 100
WARM_UP, PATIENCE = 40, 2
STOPPED = WARM_UP + 3 * PATIENCE


def blobs(step: int, n: int = 8, shape=(8, 20, 20)) -> torch.Tensor:
    random = torch.Generator().manual_seed(step)
    axes = torch.meshgrid(*(torch.linspace(-1, 1, k) for k in shape), indexing="ij")
    centres = torch.rand(3, n, 1, 1, 1, generator=random) * 1.6 - 0.8
    radius = 0.2 + 0.5 * torch.rand(n, 1, 1, 1, generator=random)
    squared = sum((axis - centre).square() for axis, centre in zip(axes, centres, strict=True))
    return torch.poisson(100 + 400 * torch.exp(-squared / radius**2), generator=random)[:, None]


def nano() -> Vit3d:
    torch.manual_seed(0)
    return build_backbone(SMALL, seed=0)


def dino(**settings: object) -> Dino:
    small = {
        "prototypes": 64,
        "local_views": 0,
        "local_patches": (1, 1, 1),
        "canvas_margin": (0, 0, 0),
        "freeze_last_layer": 0.0,
    }
    return Dino(nano(), Dino.Settings(**(small | settings)), NO_CHANGE)


def train(
    objective: Objective, rate: float = 1e-3, weight_decay: float = 0.05
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train, and hand out what the objective tells of each step."""
    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, rate, weight_decay=weight_decay)
    for step in range(STEPS):
        share = step / STEPS
        cuboids = blobs(step, shape=objective.canvas_shape)
        loss, told = objective(cuboids, Draws(0, step, range(len(cuboids))), share)
        optimizer.zero_grad()
        loss.backward()
        objective.before_update(share)
        optimizer.step()
        objective.after_update(share)
        yield step, {name: float(v) for name, v in told.items() if v.ndim == 0}


def health(objective: Objective) -> dict[str, float]:
    return embedding_health(embed(objective.exported, blobs(10**6, 32))[1])


def provoked(objective: Objective) -> list[str]:
    """What is found in a run that collapses."""
    monitors, warnings = Monitors(STEPS, patience=PATIENCE, warm_up=WARM_UP), []
    with pytest.raises(Collapsed) as stopped:  # noqa: PT012
        for step, told in train(objective):
            warnings += monitors.check(step, told)
    assert step == STOPPED
    assert f"stopped at step {step}" in str(stopped.value)
    assert isinstance(stopped.value, RunFailed)
    return [*warnings, str(stopped.value)]


def test_a_teacher_that_says_nothing_is_warned_of_and_stopped() -> None:
    """Class tokens are nearly alike at first; a head that sees what they share says nothing."""
    objective = dino(koleo_weight=0.0)
    objective.feature_centre.value.zero_()
    objective.feature_centre.move = lambda: None  # never centred
    warning, stopped = provoked(objective)
    for line in (warning, stopped):
        assert "says nothing of any cuboid (uniform collapse)" in line
        assert "where ln K is 4.159; try a lower learning rate" in line
        assert "\n" not in line
    assert f"step {WARM_UP + PATIENCE}:" in warning


def test_a_teacher_that_says_one_thing_is_warned_of_and_stopped() -> None:
    objective = dino(koleo_weight=0.0, teacher_temperature=(0.01, 0.01), momentum=0.5)
    objective.centre.move = lambda: None  # no centring
    warning, stopped = provoked(objective)
    for line in (warning, stopped):
        assert "says the same of all cuboids (point collapse)" in line
        assert "try a higher teacher temperature" in line


def test_features_that_become_alike_are_warned_of_and_stopped() -> None:
    """A masked autoencoder whose weights decay away; its loss, near 1 anyway, says nothing."""
    objective = Mae(nano(), Mae.Settings(), NO_CHANGE)
    monitors = Monitors(STEPS, patience=PATIENCE, warm_up=WARM_UP)
    untrained, warnings = health(objective), []
    with pytest.raises(Collapsed, match=r"representation.* RankMe 1.*weight decay"):  # noqa: PT012
        for step, told in train(objective, 1e-2, weight_decay=50):
            assert monitors.check(step, told) == []
            if step % 2 == 0:
                warnings += monitors.check_embeddings(step, health(objective), untrained)
    assert step == STOPPED
    assert len(warnings) == 1
    assert "features no longer tell cuboids apart" in warnings[0]


def test_a_healthy_run_is_left_alone_where_it_is_nearly_flat() -> None:
    objective = dino(prototypes=512, features="class")
    monitors, untrained = Monitors(STEPS, patience=PATIENCE, warm_up=5), health(objective)
    flat = 0
    for step, told in train(objective):
        assert monitors.check(step, told) == []
        if step % 10 == 0:
            assert monitors.check_embeddings(step, health(objective), untrained) == []
        flat += min(told["teacher_entropy"], told["cross_entropy"]) > 0.98 * math.log(512)
        if step == STOPPED:
            break
    assert flat > 3 * PATIENCE


def said(sharpness: float, own: float, n: int = 16, k: int = 64) -> dict[str, float]:
    """What a teacher tells whose logits have a part that all cuboids share and one of their own."""
    random = torch.Generator().manual_seed(0)
    shared, single = torch.randn(k, generator=random), torch.randn(n, k, generator=random)
    targets = (sharpness * (shared + own * single)).softmax(-1)
    student = (sharpness * shared.expand(n, k)).log_softmax(-1)
    return {
        "teacher_entropy": float(torch.special.entr(targets).sum(-1).mean()),
        "marginal_entropy": float(torch.special.entr(targets.mean(0)).sum()),
        "cross_entropy": float(-(targets * student).sum(-1).mean()),
        "uniform": math.log(k),
    }


TEACHERS = {
    "healthy": said(3.0, 1.0),
    "uniform": said(1e-3, 1e-3),
    "point": said(100.0, 1e-4),
    "flat, but of use": said(0.2, 1.0),
}


def judged(monitors: Monitors, teachers: list[str], first: int = 0) -> list[str]:
    """What is found, until the run is stopped."""
    found = []
    for step, teacher in enumerate(teachers, first):
        try:
            found += monitors.check(step, TEACHERS[teacher])
        except Collapsed as stopped:
            return [*found, str(stopped)]
    return found


@pytest.mark.parametrize("teacher", TEACHERS)
def test_collapses_are_told_from_what_is_none(teacher: str) -> None:
    found = judged(Monitors(1000), [teacher] * 1000)
    collapse = teacher in ("uniform", "point")
    assert [line.partition(":")[0] for line in found] == (
        ["step 150", "stopped at step 250"] if collapse else []
    )
    assert all(f"{teacher} collapse" in line for line in found)


def test_one_odd_batch_neither_warns_nor_saves() -> None:
    odd = ["healthy"] * 9 + ["point"]
    assert judged(Monitors(1000), odd * 100) == []
    saved = ["point"] * 9 + ["healthy"]
    assert len(judged(Monitors(1000), saved * 100)) == 2


def test_a_collapse_that_heals_is_told_of_again_when_it_comes_back() -> None:
    for_a_while = ["uniform"] * 70 + ["healthy"] * 20
    found = judged(Monitors(1000, patience=50), ["healthy"] * 100 + for_a_while * 3)
    assert len(found) == 3
    assert all(line.startswith("step ") for line in found)


@pytest.mark.parametrize(
    ("begin", "expected"),
    [
        (846, ["step 898", "stopped at step 998"]),
        (847, ["step 899", "step 999"]),  # where it would have been stopped
        (848, ["step 900"]),
    ],
)
def test_a_run_is_not_stopped_at_its_last_step(begin: int, expected: list[str]) -> None:
    found = judged(Monitors(1000), ["healthy"] * begin + ["point"] * (1000 - begin))
    assert [line.partition(":")[0] for line in found] == expected


def test_warm_up_and_patience_follow_the_length_of_a_run() -> None:
    for steps, warm_up, patience in ((100, 50, 20), (2000, 200, 100), (100_000, 10_000, 1000)):
        monitors = Monitors(steps)
        assert (monitors.warm_up, monitors.patience) == (warm_up, patience)
        assert judged(monitors, ["point"] * min(warm_up, 1000)) == []


def test_monitors_that_are_off_find_nothing() -> None:
    monitors = Monitors(1000, enabled=False)
    assert judged(monitors, ["point"] * 1000) == []
    assert looked(monitors, range(1000)) == []


HEALTHY = {"mean_cosine": 0.77, "feature_deviation": 0.38, "rank_me": 54.0}


@pytest.mark.parametrize(
    ("found", "bad"),
    [
        ({}, False),
        ({"mean_cosine": 0.9995}, True),
        ({"feature_deviation": 0.01}, True),
        ({"rank_me": 1.05}, True),  # on a line: neither cosine nor deviation show it
        ({"mean_cosine": 0.99, "feature_deviation": 0.1, "rank_me": 5.0}, False),
    ],
)
def test_features_are_judged_by_each_measure(found: dict[str, float], bad: bool) -> None:
    monitors = Monitors(1000)
    assert monitors.check_embeddings(200, HEALTHY | found, HEALTHY) == []
    assert bool(monitors.check_embeddings(250, HEALTHY | found, HEALTHY)) == bad


def test_features_are_judged_against_the_untrained_network() -> None:
    """A fresh network's features may be as alike as those of a collapsed one."""
    alike = {"mean_cosine": 0.9992, "feature_deviation": 0.018, "rank_me": 1.09}
    monitors = Monitors(1000)
    for step in range(1000):
        assert monitors.check_embeddings(step, alike, alike) == []


SAME = {"mean_cosine": 1.0, "feature_deviation": 0.0, "rank_me": 1.0}


def looked(monitors: Monitors, steps: Sequence[int]) -> list[str]:
    """What looks at embeddings that are all the same find, until the run is stopped."""
    found = []
    for step in steps:
        try:
            found += monitors.check_embeddings(step, SAME, HEALTHY)
        except Collapsed as stopped:
            return [*found, str(stopped)]
    return found


@given(st.integers(1, 400), st.integers(200, 3000))
def test_a_run_is_warned_before_it_is_stopped_and_never_stopped_at_its_end(
    every: int, steps: int
) -> None:
    """Looks may be much further apart than the patience."""
    looks = [*range(0, steps, every), steps]
    found = looked(Monitors(steps, patience=25, warm_up=50), looks)
    warned = [line for line in found if line.startswith("step ")]
    stopped = [line for line in found if line.startswith("stopped at step ")]
    assert len(stopped) <= 1
    assert found == [*warned, *stopped]
    assert stopped == [] or len(warned) == 1
    assert all(f"at step {look}:" not in line for line in stopped for look in looks[-1:])
    begun = [look for look in looks if look >= 50]
    if begun[-1] - begun[0] >= 25:
        assert warned


def test_looks_that_are_far_apart_warn_at_the_second_and_stop_at_the_third() -> None:
    found = looked(Monitors(2000, patience=25, warm_up=50), range(0, 2001, 250))
    assert [line.partition(":")[0] for line in found] == ["step 500", "stopped at step 750"]


def test_the_last_look_warns_of_what_would_have_stopped_the_run() -> None:
    monitors = Monitors(750, patience=25, warm_up=50)
    found = looked(monitors, [250, 500, 750])
    assert [line.partition(":")[0] for line in found] == ["step 500", "step 750"]
    assert looked(Monitors(500, patience=25, warm_up=50), [250, 500])[0].startswith("step 500")


def test_a_resumed_run_that_looks_again_is_judged_as_one_that_never_stopped() -> None:
    whole = looked(Monitors(2000, patience=25, warm_up=50), range(0, 2001, 250))
    for at in (250, 500):
        first, second = (Monitors(2000, patience=25, warm_up=50) for _ in range(2))
        found = looked(first, range(0, at + 1, 250))
        second.restore(json.loads(json.dumps(first.state())))
        assert found + looked(second, range(at, 2001, 250)) == whole


@given(
    st.lists(st.tuples(st.sampled_from(list(TEACHERS)), st.integers(1, 30)), max_size=9), st.data()
)
def test_a_resumed_run_is_judged_as_one_that_never_stopped(runs, data) -> None:
    teachers = ["healthy"] * 50 + [teacher for teacher, n in runs for _ in range(n)]
    cut = data.draw(st.integers(0, len(teachers)))
    whole, first, second = (Monitors(300, patience=10) for _ in range(3))
    expected = judged(whole, teachers)
    found = judged(first, teachers[:cut])
    if not (found and found[-1].startswith("stopped")):
        second.restore(json.loads(json.dumps(first.state())))
        found += judged(second, teachers[cut:], cut)
        assert second.state() == whole.state()
    assert found == expected
