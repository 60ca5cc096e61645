from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cubeclf_core.config import AugmentConfig
from cubeclf_core.draws import Draws
from cubeclf_core.errors import InputError
from pretrain.simclr import SimclrSettings, info_nce

PLAIN = AugmentConfig(warp=0, gamma=0, blur=0, stripes=0, noise=0, rescale=0, drop_background=0)


def pairs(n: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 2, width, generator=torch.Generator().manual_seed(seed))


@given(st.integers(2, 7), st.integers(1, 5), st.floats(0.05, 2), st.integers(0, 99))
def test_the_loss_is_that_of_a_naive_loop(
    n: int, width: int, temperature: float, seed: int
) -> None:
    z = pairs(n, width, seed).double()
    loss, found = info_nce(z, temperature)
    for i in range(n):
        ways = []
        for here, there in ((0, 1), (1, 0)):
            cosines = [
                float(torch.cosine_similarity(z[i, here], z[j, there], dim=0)) for j in range(n)
            ]
            scaled = [math.exp(c / temperature) for c in cosines]
            ways.append(-math.log(scaled[i] / sum(scaled)))
        assert float(loss[i]) == pytest.approx(sum(ways) / 2, rel=1e-3, abs=1e-4)
    assert set(found.tolist()) <= {0.0, 0.5, 1.0}


def test_equal_views_are_found_and_one_point_is_chance() -> None:
    z = pairs(8, 16, 0)
    z[:, 1] = 3 * z[:, 0]  # the length is of no account
    loss, found = info_nce(z, 0.05)
    assert (loss < 0.1).all()
    assert (found == 1).all()
    loss, _ = info_nce(torch.ones(8, 2, 16), 0.2)
    torch.testing.assert_close(loss, torch.full((8,), math.log(8)))


def test_it_learns_to_find_the_other_view(objective, counts) -> None:
    augment = replace(PLAIN, surroundings=0)
    model = objective("simclr", augment=augment)
    cuboids = counts(8, model.canvas_shape)
    brighter = torch.linspace(0, 700, 8)[:, None, None, None, None]
    cuboids[:, :, 3:7, 8:16, 8:16] += brighter  # objects that differ
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    losses, shares = [], []
    for step in range(40):
        loss, told = model(cuboids, Draws(0, step, range(8)), step / 40)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_update(step / 40)
        losses.append(float(loss.detach()))
        shares.append(float(told["found"]))
        assert float(told["chance"]) == pytest.approx(math.log(8))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert sum(shares[-5:]) > sum(shares[:5])


def test_the_average_is_exported_and_trails_the_network(objective, counts) -> None:
    model = objective("simclr", momentum=0.75)
    assert model.exported is not model.backbone
    before = model.exported.projection[1].weight.clone()
    with torch.no_grad():
        model.backbone.projection[1].weight += 1.0
    model.after_update(0.0)
    torch.testing.assert_close(model.exported.projection[1].weight, before + 0.25)
    model.after_update(1.0)  # the momentum has risen to 1
    torch.testing.assert_close(model.exported.projection[1].weight, before + 0.25)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "simclr.temperature is 0.0, expected above 0"),
        ({"momentum": 1.0}, "simclr.momentum is 1.0, expected at least 0 and below 1"),
        ({"canvas_margin": (0, -1, 0)}, "simclr.canvas_margin is .*, expected 0 or more each"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SimclrSettings(**settings)
