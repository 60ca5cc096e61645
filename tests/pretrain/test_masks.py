from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from cubeclf_core.draws import Draws
from pretrain.masks import MOST_BLOCKS, draw_mask, visible_tokens

kinds = st.sampled_from(["random", "block"])
grids = st.tuples(*[st.integers(1, 6)] * 3).filter(lambda grid: grid != (1, 1, 1))


@given(kinds, grids, st.integers(1, 5), st.floats(0, 1), st.integers(0, 9))
def test_exactly_as_many_are_hidden_as_asked_for(kind, grid, batch: int, share, step: int) -> None:
    tokens = grid[0] * grid[1] * grid[2]
    count = round(share * tokens)
    hidden = draw_mask(kind, grid, count, Draws(0, step, range(batch)))
    assert hidden.shape == (batch, tokens)
    assert (hidden.sum(1) == count).all()
    keep = visible_tokens(hidden, tokens - count)
    assert keep.shape == (batch, tokens - count)
    assert not hidden.gather(1, keep).any()
    assert (keep.diff(dim=1) > 0).all()


@given(kinds, grids)
def test_each_cuboid_has_its_own_number_and_draws(kind, grid) -> None:
    tokens = grid[0] * grid[1] * grid[2]
    count = torch.arange(6) * tokens // 6
    hidden = draw_mask(kind, grid, count, Draws(0, 0, range(6)))
    assert torch.equal(hidden.sum(1), count)
    assert torch.equal(hidden[2:4], draw_mask(kind, grid, count[2:4], Draws(0, 0, range(2, 4))))


def test_single_patches_are_hidden_alike() -> None:
    share = draw_mask("random", (2, 2, 5), 15, Draws(0, 0, range(4000))).float().mean(0)
    assert (share - 0.75).abs().max() < 0.03


def test_blocks_hide_all_patches_now_and_then() -> None:
    share = draw_mask("block", (5, 5, 5), 40, Draws(0, 0, range(4000))).float().mean(0)
    assert share.min() > 0.1
    assert share.max() < 0.6


@given(grids, st.floats(0.1, 0.9), st.integers(0, 9))
def test_blocks_are_contiguous(grid, share: float, step: int) -> None:
    count = max(1, round(share * grid[0] * grid[1] * grid[2]))
    for hidden in draw_mask("block", grid, count, Draws(0, step, range(20))):
        _, n_parts = ndimage.label(hidden.view(grid).numpy())
        assert n_parts <= MOST_BLOCKS
