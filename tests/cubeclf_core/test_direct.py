"""What is read past zarr-python is what zarr-python reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec

from cubeclf_core.direct import DirectReader

BLOSC = BloscCodec(cname="zstd", clevel=3, shuffle="shuffle")
USUAL = {
    "blosc": {"compressors": BLOSC},
    "checksum": {"compressors": [BLOSC, Crc32cCodec()]},
    "lz4": {"compressors": BloscCodec(cname="lz4", shuffle="bitshuffle")},
    "shards": {"compressors": BLOSC, "sharded": True},
    "shards with checksums": {"compressors": [BLOSC, Crc32cCodec()], "sharded": True},
    "version 2": {"zarr_format": 2, "compressors": "numcodecs"},
}


def write(folder: Path, how: str, array: np.ndarray, chunks: tuple[int, ...]) -> zarr.Array:
    options = dict(USUAL[how])
    if options.pop("sharded", False):
        options["shards"] = tuple(2 * c for c in chunks)
    if options["compressors"] == "numcodecs":
        from numcodecs import Blosc

        options["compressors"] = Blosc("zstd")
    written = zarr.create_array(
        folder / "a.zarr",
        shape=array.shape,
        chunks=chunks,
        dtype=array.dtype,
        fill_value=7,
        config={"write_empty_chunks": True},
        **options,
    )
    written[...] = array
    return written


@given(
    how=st.sampled_from(sorted(USUAL)),
    shape=st.tuples(st.integers(1, 2), *[st.integers(1, 12)] * 3),
    chunks=st.tuples(st.integers(1, 2), *[st.integers(1, 7)] * 3),
    dtype=st.sampled_from(["u1", "u2", "f4"]),
    seed=st.integers(0, 99),
    missing=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_box_is_what_zarr_reads(
    tmp_path_factory, how, shape, chunks, dtype, seed, missing
) -> None:
    random = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("direct")
    array = write(folder, how, random.integers(0, 200, shape).astype(dtype), chunks)
    assert DirectReader.supports(array)
    if missing:
        files = [f for f in (folder / "a.zarr").rglob("*") if f.is_file() and f.name[:1] in "0123"]
        files[0].unlink()
    ends = [sorted(random.integers(0, n + 1, 2)) for n in shape]
    box = tuple(slice(int(a), int(max(b, a + 1))) for a, b in ends)
    box = tuple(slice(min(s.start, n - 1), min(s.stop, n)) for s, n in zip(box, shape, strict=True))
    box = tuple(slice(s.start, max(s.stop, s.start + 1)) for s in box)
    out = np.zeros([s.stop - s.start for s in box], dtype)
    DirectReader(array).read_into(box, out)
    np.testing.assert_array_equal(out, array[box])


@pytest.mark.parametrize(
    "options",
    [
        {"compressors": None},
        {"compressors": ZstdCodec()},
        {"compressors": BLOSC, "serializer": BytesCodec(endian="big")},
        {"zarr_format": 2, "compressors": None},
        {"zarr_format": 2, "compressors": "auto", "order": "F"},
    ],
)
def test_other_kinds_are_left_to_zarr(tmp_path: Path, options) -> None:
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(8, 8), chunks=(4, 4), dtype="u2", **options
    )
    assert not DirectReader.supports(array)


@pytest.mark.parametrize("how", ["blosc", "shards"])
def test_settings_of_codecs_may_be_words(tmp_path: Path, how: str) -> None:
    """As they are since zarr 3.4, which not every Python here can have."""
    array = write(tmp_path, how, np.zeros((4, 4), "u2"), (2, 2))
    codecs = array.metadata.codecs
    if how == "shards":
        object.__setattr__(codecs[0], "index_location", "end")
        codecs = codecs[0].codecs
    for word, supported in (("little", True), ("big", False)):
        object.__setattr__(codecs[0], "endian", word)
        assert DirectReader.supports(array) == supported


def test_other_stores_are_left_to_zarr() -> None:
    array = zarr.create_array({}, shape=(8, 8), chunks=(4, 4), dtype="u2", compressors=BLOSC)
    assert not DirectReader.supports(array)


@pytest.mark.parametrize("how", sorted(USUAL))
@pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
def test_damage_is_noticed(tmp_path: Path, how: str, damage: str) -> None:
    random = np.random.default_rng(0)
    array = write(tmp_path, how, random.integers(0, 60000, (8, 8, 8)).astype("u2"), (8, 8, 8))
    (file,) = (
        (f for f in (tmp_path / "a.zarr").rglob("0") if f.is_file())
        if (how != "version 2")
        else [tmp_path / "a.zarr/0.0.0"]
    )
    whole = file.read_bytes()
    if damage == "flipped" and "checksum" not in how:
        pytest.skip("without a checksum a flipped byte may go unseen")
    broken = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "flipped": whole[:40] + bytes([whole[40] ^ 1]) + whole[41:],
    }[damage]
    file.write_bytes(broken)
    with pytest.raises((OSError, ValueError, RuntimeError)):
        DirectReader(array).read_into((slice(0, 8),) * 3, np.zeros((8, 8, 8), "u2"))
