from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.config import PretrainConfig
from pretrain.schedules import learning_rate, weight_decay


def settings(**changes) -> PretrainConfig:
    return PretrainConfig(("brain",), out=Path("run"), **{"steps": 200, **changes})


@given(st.integers(1, 1_000_000))
def test_a_run_is_looked_at_eight_times_and_at_least_every_250_steps(steps: int) -> None:
    every = settings(steps=steps).every(None)
    assert 1 <= every <= 250
    assert steps // every >= min(steps, 8)
    assert settings(steps=steps).every(7) == 7


def test_the_rate_rises_to_its_peak_and_falls_to_a_thousandth() -> None:
    config = settings(learning_rate=2e-3, warm_up=0.25)
    rates = np.array([learning_rate(config, step) for step in range(200)])
    assert 0 < rates[0] < 2e-3 / 20
    assert (np.diff(rates[:50]) > 0).all()
    assert (np.diff(rates[50:]) < 0).all()
    assert rates.max() == pytest.approx(2e-3)
    assert rates[-1] == pytest.approx(2e-6, rel=0.2)


def test_weight_decay_stays_or_goes_to_its_end() -> None:
    assert {weight_decay(settings(), step) for step in range(200)} == {0.05}
    config = settings(weight_decay=0.04, weight_decay_end=0.4)
    decays = np.array([weight_decay(config, step) for step in range(200)])
    assert decays[0] == pytest.approx(0.04)
    assert (np.diff(decays) > 0).all()
    assert decays[-1] == pytest.approx(0.4, rel=1e-3)
    assert decays[100] == pytest.approx(0.22, rel=0.02)  # half-way along a cosine
