from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cubeclf_core.copying import copy_box, gather_boxes


@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    before=st.tuples(*[st.integers(0, 3)] * 6),
    after=st.tuples(*[st.integers(0, 3)] * 6),
    channels=st.integers(1, 2),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32]),
)
def test_a_box_is_copied_and_nothing_else(shape, before, after, channels, dtype) -> None:
    starts = before[:3], before[3:]
    sizes = [
        tuple(a + n + b for a, n, b in zip(start, shape, end, strict=True))
        for start, end in zip(starts, (after[:3], after[3:]), strict=True)
    ]
    source = np.random.default_rng(0).integers(0, 200, (channels, *sizes[0])).astype(dtype)
    out = np.full((channels, *sizes[1]), 255, dtype)
    expected = out.copy()
    there, here = (
        (slice(None), *(slice(a, a + n) for a, n in zip(start, shape, strict=True)))
        for start in starts
    )
    expected[here] = source[there]
    copy_box(source, starts[0], out, starts[1], shape)
    np.testing.assert_array_equal(out, expected)


def test_a_box_beyond_the_array_is_refused() -> None:
    source, out = np.zeros((1, 4, 4, 4), np.uint8), np.zeros((1, 2, 2, 2), np.uint8)
    with pytest.raises((TypeError, ValueError)):
        copy_box(source, (3, 0, 0), out, (0, 0, 0), (2, 2, 2))


@given(
    sizes=st.lists(st.tuples(*[st.integers(3, 7)] * 3), min_size=1, max_size=4),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32]),
    seed=st.integers(0, 99),
)
def test_a_batch_is_gathered_from_many_arrays(sizes, dtype, seed) -> None:
    random = np.random.default_rng(seed)
    sources = [random.integers(0, 200, (2, *size)).astype(dtype) for size in sizes]
    starts = [[int(random.integers(0, n - 2)) for n in size] for size in sizes]
    out = np.zeros((len(sizes), 2, 3, 3, 3), dtype)
    gather_boxes(sources, starts, out)
    for source, (z, y, x), box in zip(sources, starts, out, strict=True):
        np.testing.assert_array_equal(box, source[:, z : z + 3, y : y + 3, x : x + 3])
