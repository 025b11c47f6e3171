"""Payloads of chunks: codec and element type in a byte each, four bytes of raw size, then the payload."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.codecs import CODECS
from arc_halo.dtypes import DTYPES
from tests.fuzz.guarded import Guarded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKENS = (b"pco!",)
HEAD = struct.Struct("<BBI")
MAX_RAW_NBYTES = 256 << 10
BLOSC_HEADER_NBYTES = 32
FENCE = bytes(range(64))
MAX_PAYLOAD_NBYTES = 1 << 20
_SOURCE, _BUFFER = Guarded(MAX_PAYLOAD_NBYTES), Guarded(len(FENCE) + MAX_RAW_NBYTES)
_CODECS = tuple(CODECS.values())
_DTYPES = tuple(DTYPES.values())


def read(data: bytes, folder: Path) -> object:  # noqa: ARG001  # every target is given one
    if len(data) < HEAD.size:
        return None
    codec, dtype, raw_nbytes = HEAD.unpack_from(data)
    chosen = _CODECS[codec % len(_CODECS)]
    return fenced(
        data[HEAD.size :],
        raw_nbytes % (MAX_RAW_NBYTES + 1),
        lambda payload, size, out: chosen.decode(payload, _DTYPES[dtype % len(_DTYPES)], size, out),
    )


def fenced(payload, nbytes, decode):
    """What a decoder makes of a payload and a buffer that both end at a guarded page, whatever was in the buffer."""
    source = _SOURCE.holding(payload) if len(payload) <= MAX_PAYLOAD_NBYTES else payload
    whole = _BUFFER.last(len(FENCE) + nbytes)
    found = []
    for filling in (b"\x00", b"\xff"):
        whole[:] = FENCE + filling * nbytes
        try:
            found.append(bytes(decode(source, nbytes, whole[len(FENCE) :])))
        finally:
            assert whole[: len(FENCE)] == FENCE, "wrote before the buffer"
    assert found[0] == found[1], "left bytes of the buffer as they were"
    return found[0]


def mend(data: bytes) -> bytes:
    if len(data) < HEAD.size:
        return data
    codec, dtype, raw_nbytes = HEAD.unpack_from(data)
    component_nbytes = _DTYPES[dtype % len(_DTYPES)].component_nbytes
    size = raw_nbytes % (MAX_RAW_NBYTES + 1) // component_nbytes * component_nbytes
    payload = data[HEAD.size :]
    if _CODECS[codec % len(_CODECS)].id == "blosc2-zstd":
        payload = mend_blosc(payload, component_nbytes, size)
    return HEAD.pack(codec, dtype, size) + payload


def mend_blosc(payload: bytes, component_nbytes: int, raw_nbytes: int) -> bytes:
    """The sizes in the header of a blosc2 chunk as they are."""
    if len(payload) < BLOSC_HEADER_NBYTES:
        return payload
    header = bytearray(payload[:BLOSC_HEADER_NBYTES])
    header[3] = component_nbytes
    struct.pack_into("<i", header, 4, raw_nbytes)
    struct.pack_into("<i", header, 12, len(payload))
    return bytes(header) + payload[BLOSC_HEADER_NBYTES:]


def seeds() -> Iterator[bytes]:
    noise = np.random.default_rng(1).normal(scale=0.02, size=300)
    for codec_index, codec in enumerate(_CODECS):
        for name in ("F32", "BF16", "I64", "U8"):
            dtype = DTYPES[name]
            raw = (noise * 1000 if name == "I64" else noise).astype(dtype.numpy).tobytes()
            for content in (raw, bytes(len(raw))):
                payload = codec.encode(memoryview(content), dtype)
                assert payload is not None
                yield HEAD.pack(codec_index, _DTYPES.index(dtype), len(content)) + bytes(payload)
