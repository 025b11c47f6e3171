"""Payloads of deltas: codec and element type in a byte each, raw size and base's size in four, then the payload."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.codecs import DELTAS
from arc_halo.codecs.delta import Base
from arc_halo.codecs.ordering import unsigned
from arc_halo.dtypes import DTYPES
from tests.fuzz.targets.codec_payload import fenced, mend_blosc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKENS = (b"pco!", b"\x03F32", b"\x04BF16")
HEAD = struct.Struct("<BBII")
GROUP = struct.Struct("<II")
MAX_RAW_NBYTES = 128 << 10
BASE = memoryview(np.random.default_rng(2).normal(scale=0.02, size=MAX_RAW_NBYTES // 4).astype("<f4").tobytes())
_DELTAS = tuple(DELTAS.values())
_DTYPES = tuple(DTYPES.values())


def read(data: bytes, folder: Path) -> object:  # noqa: ARG001  # every target is given one
    if len(data) < HEAD.size:
        return None
    delta, dtype, raw_nbytes, base_nbytes = HEAD.unpack_from(data)
    chosen, base = _DELTAS[delta % len(_DELTAS)], BASE[: base_nbytes % (MAX_RAW_NBYTES + 1)]
    return fenced(
        data[HEAD.size :],
        raw_nbytes % (MAX_RAW_NBYTES + 1),
        lambda payload, size, out: chosen.decode(payload, _DTYPES[dtype % len(_DTYPES)], size, base, out),
    )


def mend(data: bytes) -> bytes:
    if len(data) <= HEAD.size:
        return data
    delta, dtype, raw_nbytes, base_nbytes = HEAD.unpack_from(data)
    component_nbytes = _DTYPES[dtype % len(_DTYPES)].component_nbytes
    size = raw_nbytes % (MAX_RAW_NBYTES + 1) // component_nbytes * component_nbytes
    start = HEAD.size + 1 + data[HEAD.size]
    head, inner = data[HEAD.size : start], data[start:]
    codec_id = _DELTAS[delta % len(_DELTAS)].id
    if codec_id == "xor-zstd":
        inner = mend_blosc(inner, component_nbytes, size)
    elif codec_id == "pco-grouped":
        inner = _mend_groups(inner, size // component_nbytes)
    return HEAD.pack(delta, dtype, size, base_nbytes // 8 * 8) + head + inner


def _mend_groups(inner: bytes, count: int) -> bytes:
    """The last group takes what the others leave, if they leave anything."""
    groups = inner[0] if inner else 0
    start = 1 + groups * GROUP.size
    if not groups or len(inner) < start:
        return inner
    sizes = list(GROUP.iter_unpack(inner[1:start]))[:-1]
    rest = (count - sum(size for size, _ in sizes), len(inner) - start - sum(nbytes for _, nbytes in sizes))
    return inner if min(rest) < 0 else inner[: start - GROUP.size] + GROUP.pack(*rest) + inner[start:]


def seeds() -> Iterator[bytes]:
    few, enough_for_groups = 300, 9000
    for index, delta in enumerate(_DELTAS):
        for name, count in (("BF16", few), ("F32", few), ("U8", few), ("BF16", enough_for_groups)):
            dtype = DTYPES[name]
            base = BASE[: count * dtype.component_nbytes]
            raw = (
                np.frombuffer(base, unsigned(dtype)) + (np.arange(count) % 64 == 0).astype(unsigned(dtype))
            ).tobytes()
            payload = delta.encode(memoryview(raw), dtype, Base(base, dtype))
            assert payload is not None
            yield HEAD.pack(index, _DTYPES.index(dtype), len(raw), len(base)) + payload
        payload = delta.encode(BASE[:600], DTYPES["BF16"], Base(BASE[:1200], DTYPES["F32"]))
        assert payload is not None
        yield HEAD.pack(index, _DTYPES.index(DTYPES["BF16"]), 600, 1200) + payload
