from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cubeclf_core.draws import Draws

seeds = st.integers(0, 2**40)
KINDS = ("uniform", "normal")


@given(seeds, seeds, st.integers(1, 9), st.data())
def test_a_part_of_the_batch_draws_what_the_whole_does(seed, step, n, data) -> None:
    first = data.draw(st.integers(0, n - 1))
    last = data.draw(st.integers(first + 1, n))
    whole, part = Draws(seed, step, range(n)), Draws(seed, step, range(first, last))
    assert torch.equal(whole.uniform(2, 3)[first:last], part.uniform(2, 3))
    assert torch.equal(whole.normal(5)[first:last], part.normal(5))
    assert torch.equal(whole.normal(5000)[first:last], part.normal(5000))
    assert torch.equal(whole.fork(3).coin(0.5, 7)[first:last], part.fork(3).coin(0.5, 7))
    index = torch.arange(first, last)
    assert torch.equal(whole.take(index).uniform(4), part.uniform(4))
    assert len(part) == last - first


@pytest.mark.parametrize("kind", KINDS)
@given(seed=seeds, short=st.integers(1, 100), more=st.integers(1, 100))
def test_the_first_numbers_do_not_depend_on_how_many_are_drawn(kind, seed, short, more) -> None:
    few = Draws(seed, 0, range(3)).uniform(short)
    assert torch.equal(few, Draws(seed, 0, range(3)).uniform(short + more)[:, :short])


@given(seeds, st.floats(-5, 5), st.floats(0.01, 5))
def test_uniform_numbers_stay_in_their_range(seed, low, width) -> None:
    drawn = Draws(seed, 1, range(4)).uniform(50, low=low, high=low + width)
    assert drawn.shape == (4, 50)
    assert drawn.dtype == torch.float32
    assert drawn.min() >= low - 1e-5
    assert drawn.max() <= low + width + 1e-5


@given(seeds)
def test_forks_do_not_shift_and_the_host_agrees(seed) -> None:
    draws, fresh = Draws(seed, 2, range(3)), Draws(seed, 2, range(3))
    draws.uniform(10)
    assert torch.equal(draws.fork(1).uniform(5), fresh.fork(1).uniform(5))
    assert torch.equal(draws.fork(1).uniform(5), draws.fork(1, host=True).uniform(5))
    taken = draws.take(torch.tensor([2, 0]))
    assert torch.equal(taken.uniform(4), draws.uniform(4)[[2, 0]])  # goes on where they stand


def test_moments_are_those_of_the_distributions() -> None:
    draws = Draws(5, 6, range(64))
    drawn = draws.uniform(2000).double()
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.004)
    assert float(drawn.var()) == pytest.approx(1 / 12, abs=0.001)
    counted = torch.histc(drawn, 16, 0, 1) / drawn.numel()
    assert (counted - 1 / 16).abs().max() < 0.004
    for n in (2000, 2001, 5000):  # drawn by Box and Muller, an odd number of them, or by torch
        normal = draws.normal(n).double()
        assert float(normal.mean()) == pytest.approx(0, abs=0.015)
        assert float(normal.var()) == pytest.approx(1, abs=0.02)
        assert float(normal.pow(4).mean()) == pytest.approx(3, abs=0.15)
        below = 0.5 * (1 + math.erf(-1 / math.sqrt(2)))
        assert float((normal < -1).double().mean()) == pytest.approx(below, abs=0.005)
    assert float(draws.coin(0.3, 2000).float().mean()) == pytest.approx(0.3, abs=0.008)


@pytest.mark.parametrize("kind", KINDS)
def test_calls_items_forks_steps_and_seeds_are_unrelated(kind: str) -> None:
    def rows(draws: Draws) -> torch.Tensor:
        return getattr(draws, kind)(3000)

    one = Draws(0, 0, range(4))
    drawn = [rows(one), rows(one)]
    drawn += [rows(one.fork(k)) for k in range(3)] + [rows(one.fork(0).fork(0))]
    drawn += [rows(Draws(0, step, range(4))) for step in (1, 2)]
    drawn += [rows(Draws(seed, 0, range(4))) for seed in (1, 2)]
    drawn += [rows(Draws(0, 0, range(4, 8)))]
    between = torch.corrcoef(torch.cat(drawn)) - torch.eye(4 * len(drawn))
    assert between.abs().max() < 0.1  # of 946 pairs; one deviation is 0.018


def test_neighbouring_numbers_are_unrelated() -> None:
    drawn = Draws(1, 1, range(8)).normal(4000)
    for lag in (1, 2, 2000):  # 2000: Box and Muller's pairs
        pairs = drawn[:, lag:] * drawn[:, :-lag]
        assert pairs.mean().abs() < 0.025
        assert (drawn[:, lag:].square() * drawn[:, :-lag].square()).mean() == pytest.approx(
            1, abs=0.1
        )
