"""Zarr chunks of the usual kind, read from this machine's disk straight to where they belong.

Zarr-python hands each chunk through a dozen coroutines and several copies: as much CPU time again
as decoding takes. What nearly every brain is stored as (little-endian bytes, blosc, perhaps a
checksum, perhaps in shards) needs a file, a checksum and one call of blosc. Zarr-python reads
whatever else an array may be.
"""

from __future__ import annotations

import math
import os
import struct
import threading
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numcodecs.blosc
import numpy as np
import zarr
from numcodecs import Blosc
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec
from zarr.storage import LocalStore

_CRC_BYTES = 4
_BLOSC_HEADER = struct.Struct("<4xI4xI")  # bytes decoded, and encoded with the header
_ABSENT = np.uint64(2**64 - 1)  # in a shard's index: this chunk is the fill value

Box = tuple[slice, ...]


@dataclass(frozen=True)
class _Codecs:
    """How a chunk's bytes are to be read."""

    checksum: bool
    shard: tuple[int, ...] | None  # chunks in a shard, per axis


class DirectReader:
    """Reads boxes of one zarr array; for any number of threads.

    Parameters
    ----------
    array
        For which `supports` holds.
    """

    def __init__(self, array: zarr.Array[Any]) -> None:
        codecs = _codecs(array)
        assert codecs is not None
        store = array.store
        assert isinstance(store, LocalStore)
        self._codecs = codecs
        self._folder = Path(store.root) / array.path
        self._encode_key = array.metadata.encode_chunk_key
        self._chunks, self._dtype = array.chunks, np.dtype(array.dtype)
        fill = array.fill_value
        self._fill = 0 if fill is None else fill
        self._scratch = threading.local()

    @staticmethod
    def supports(array: zarr.Array[Any]) -> bool:
        """Tell whether an array is of the usual kind."""
        return _codecs(array) is not None

    def read_into(self, box: Box, out: np.ndarray) -> None:
        """Read a box, a slice for each of the array's axes, into an array of its shape.

        Raises
        ------
        OSError, RuntimeError, ValueError
            If a chunk cannot be read, decoded, or has another checksum than it should.
        """
        ranges = [
            range(s.start // c, -(-s.stop // c)) for s, c in zip(box, self._chunks, strict=True)
        ]
        for index in product(*ranges):
            self._read_chunk(index, box, out)

    def _read_chunk(self, index: tuple[int, ...], box: Box, out: np.ndarray) -> None:
        """Write that part of a chunk that lies in the box."""
        begin = [i * c for i, c in zip(index, self._chunks, strict=True)]
        low = [max(s.start, b) for s, b in zip(box, begin, strict=True)]
        high = [min(s.stop, b + c) for s, b, c in zip(box, begin, self._chunks, strict=True)]
        place = zip(low, high, box, strict=True)
        into = out[tuple(slice(a - s.start, b - s.start) for a, b, s in place)]
        encoded = self._encoded(index)
        if encoded is None:
            into[...] = self._fill
        else:  # through the cache: blosc is slow to write to memory that is not in it
            scratch = getattr(self._scratch, "voxels", None)
            if scratch is None:
                scratch = self._scratch.voxels = np.empty(self._chunks, self._dtype)
            self._decode(encoded, scratch)
            within = zip(low, high, begin, strict=True)
            into[...] = scratch[tuple(slice(a - c, b - c) for a, b, c in within)]

    def _decode(self, encoded: bytes, chunk: np.ndarray) -> None:
        """Decode a whole chunk."""
        if len(encoded) < _BLOSC_HEADER.size:
            raise ValueError(f"a chunk has but {len(encoded)} bytes")
        n_bytes, n_encoded = _BLOSC_HEADER.unpack_from(encoded)
        if (n_bytes, n_encoded) != (chunk.nbytes, len(encoded)):
            raise ValueError(
                f"a chunk says that {n_encoded} bytes hold {n_bytes}; there are {len(encoded)}, "
                f"and it should hold {chunk.nbytes}"
            )
        numcodecs.blosc.decompress(encoded, chunk)

    def _encoded(self, index: tuple[int, ...]) -> bytes | None:
        """Read a chunk's bytes from its file, or from a shard; None where there is none."""
        shard = self._codecs.shard
        which = index if shard is None else tuple(i // n for i, n in zip(index, shard, strict=True))
        try:
            with (self._folder / self._encode_key(which)).open("rb") as file:
                if shard is None:
                    return _read(file, os.fstat(file.fileno()).st_size, self._codecs.checksum)
                n_bytes = 16 * math.prod(shard) + _CRC_BYTES
                file.seek(-n_bytes, os.SEEK_END)
                table = np.frombuffer(_read(file, n_bytes, checksum=True), "<u8")
                table = table.reshape(*shard, 2)
                place = table[tuple(i % n for i, n in zip(index, shard, strict=True))]
                if (place == _ABSENT).all():
                    return None
                file.seek(int(place[0]))
                return _read(file, int(place[1]), self._codecs.checksum)
        except FileNotFoundError:
            return None


def _read(file: BinaryIO, n_bytes: int, checksum: bool) -> bytes:
    """Read some bytes from where the file stands, without their checksum, which has to be right."""
    if not checksum:
        content, stored = file.read(n_bytes), b""
    else:
        content, stored = file.read(n_bytes - _CRC_BYTES), file.read(_CRC_BYTES)
    if len(content) + len(stored) != n_bytes:
        raise ValueError("a file ends within a chunk")
    if checksum and google_crc32c.value(content) != int.from_bytes(stored, "little"):
        raise ValueError("stored and computed checksum do not match")
    return content


def _codecs(array: zarr.Array[Any]) -> _Codecs | None:
    """Find out how chunks are to be read; None if they are not of the usual kind."""
    dtype = np.dtype(array.dtype)
    if not isinstance(array.store, LocalStore) or not dtype.isnative or dtype.byteorder == ">":
        return None
    metadata = array.metadata
    if metadata.zarr_format == 2:
        plain = metadata.order == "C" and not metadata.filters
        blosc = isinstance(metadata.compressor, Blosc)
        return _Codecs(False, None) if plain and blosc else None
    codecs = metadata.codecs
    if len(codecs) == 1 and isinstance(codecs[0], ShardingCodec):
        sharding = codecs[0]
        checksum = _usual(sharding.codecs)
        at_end = _word(sharding.index_location) == "end"
        index = [type(codec) for codec in sharding.index_codecs]
        if checksum is None or not at_end or index != [BytesCodec, Crc32cCodec]:
            return None
        assert array.shards is not None
        return _Codecs(
            checksum, tuple(s // c for s, c in zip(array.shards, array.chunks, strict=True))
        )
    checksum = _usual(codecs)
    return None if checksum is None else _Codecs(checksum, None)


def _usual(codecs: tuple[Any, ...]) -> bool | None:
    """Whether there is a checksum; None if the codecs are not little-endian bytes and blosc."""
    kinds = [type(codec) for codec in codecs]
    if kinds not in ([BytesCodec, BloscCodec], [BytesCodec, BloscCodec, Crc32cCodec]):
        return None
    return len(codecs) == 3 if _word(codecs[0].endian) in (None, "little") else None


def _word(setting: Any) -> Any:
    """What a codec is set to: zarr has strings since 3.4, members of an enumeration before."""
    return getattr(setting, "value", setting)
