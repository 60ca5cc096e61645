from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finetune.classifying.parts import (
    Part,
    Scores,
    load_part,
    make_parts,
    part_file,
    save_part,
    unfinished,
)

CUBOID = (20, 50, 50)


def positions(n: int, seed: int, shape=(300, 3000, 2000)) -> np.ndarray:
    random = np.random.default_rng(seed)
    middle = random.uniform(0, shape, (3, 3))  # crowds, as cells of a brain are
    crowd = middle[random.integers(3, size=n)] + random.normal(0, 200, (n, 3))
    return np.clip(crowd, 0, np.array(shape) - 1)


def parts_of(where: np.ndarray, chunk, most: int) -> list[Part]:
    return make_parts(where, chunk, CUBOID, np.zeros(len(where), bool), most)


@given(
    st.integers(1, 2000),
    st.integers(0, 5),
    st.sampled_from([(64, 128, 128), (32, 64, 64), (1, 3000, 2000), (300, 64, 64)]),
    st.sampled_from([1, 20, 200]),
)
def test_parts_are_groups_of_whole_chunks_that_together_hold_all(n, seed, chunk, most) -> None:
    where = positions(n, seed)
    parts = parts_of(where, chunk, most)
    assert [part.number for part in parts] == list(range(len(parts)))
    together = np.concatenate([part.index for part in parts])
    assert sorted(together.tolist()) == list(range(n))
    chunk_of = np.floor(where / np.array(chunk)).astype(int)
    owner: dict[tuple[int, ...], int] = {}
    for part in parts:
        assert (np.diff(part.index) > 0).all()
        np.testing.assert_array_equal(part.positions, where[part.index])
        for key in map(tuple, chunk_of[part.index].tolist()):
            assert owner.setdefault(key, part.number) == part.number
        if len(part) > most:  # only where a smaller one would be too thin
            wide = np.ptp(chunk_of[part.index], axis=0) + 1
            assert (wide * chunk < 8 * np.array(CUBOID) + 2 * np.array(chunk)).all()


def test_a_part_is_the_same_whatever_the_order_of_the_candidates() -> None:
    where = positions(3000, 0)
    shuffled = np.random.default_rng(1).permutation(len(where))
    one, other = (parts_of(p, (64, 128, 128), 200) for p in (where, where[shuffled]))
    assert len(one) == len(other) > 8
    for a, b in zip(one, other, strict=True):
        assert set(map(tuple, a.positions)) == set(map(tuple, b.positions))


def make_scores(n: int, unread: int = 0) -> Scores:
    random = np.random.default_rng(n)
    lost = np.arange(n) < unread
    return Scores(
        np.where(lost[:, None], np.nan, random.random((n, 2))),
        random.random(n) < 0.5,
        lost,
        random.random((2, 5)).astype(np.float32),
        1.5,
        0.5,
        ("chunk 3 is broken",) if unread else (),
    )


def test_a_part_is_kept_whole_and_what_is_torn_counts_as_undone(tmp_path: Path) -> None:
    where = positions(30, 0)
    parts = make_parts(where, (64, 128, 128), CUBOID, np.arange(30) < 2, 30)
    (part,) = parts
    assert load_part(tmp_path, part, "a job") is None
    scores = make_scores(30)
    save_part(tmp_path, part, "a job", scores)
    found = load_part(tmp_path, part, "a job")
    np.testing.assert_array_equal(found.probability, scores.probability)
    np.testing.assert_array_equal(found.embedding, scores.embedding)
    np.testing.assert_array_equal(found.padded, scores.padded)
    assert (found.reading_s, found.waiting_s, found.faults) == (1.5, 0.5, ())
    assert unfinished(tmp_path, parts, "a job") == []
    file = part_file(tmp_path, 0)
    first = file.read_bytes()
    save_part(tmp_path, part, "a job", scores)
    assert file.read_bytes() == first
    file.write_bytes(first[:-9])
    assert unfinished(tmp_path, parts, "a job") == parts
    save_part(tmp_path, part, "a job", make_scores(30, unread=3))
    assert load_part(tmp_path, part, "a job").faults == ("chunk 3 is broken",)
    assert unfinished(tmp_path, parts, "a job") == parts  # what could not be read is tried again


def test_a_part_of_something_else_is_none_of_this_job(tmp_path: Path) -> None:
    """Though as many were scored: an old task of a cluster may have left it."""
    where = positions(30, 0)
    (part,) = make_parts(where, (64, 128, 128), CUBOID, np.arange(30) < 2, 30)
    save_part(tmp_path, part, "a job", make_scores(30))
    assert load_part(tmp_path, part, "a job") is not None
    assert load_part(tmp_path, part, "another job") is None
    moved = replace(part, positions=part.positions + np.array([0, 0, 1]))
    others = replace(part, index=part.index + 1)
    embedded = replace(part, embedded=part.embedded[::-1])
    for other in (moved, others, embedded):
        assert load_part(tmp_path, other, "a job") is None
