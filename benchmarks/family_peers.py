"""Other ways to store a family of models small, each re-implemented from what is published of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import blosc2
import numpy as np
import zstandard

from arc_halo.codecs.delta import Base, PcoDelta, XorDelta
from arc_halo.codecs.grouped import GroupedDelta
from arc_halo.codecs.packed import PackedDelta

if TYPE_CHECKING:
    from collections.abc import Iterator

    from family import Checkpoint

    from arc_halo.codecs.delta import Delta
    from arc_halo.dtypes import DType

CHUNK_NBYTES, MIN_NBYTES = 1 << 20, 4096
CDC_MEAN_BITS, CDC_MIN, CDC_MAX = 16, 8 << 10, 128 << 10
_GEAR = np.random.default_rng(20).integers(0, 1 << 64, 256, dtype=np.uint64)
_WINDOW_DOUBLINGS = 6
_DELTAS: dict[str, Delta] = {
    "differences by pcodec (`balanced`, 32 bits and more)": PcoDelta(),
    "differences packed in pairs (`balanced`, up to 16 bits)": PackedDelta(),
    "differences by exponent, pcodec (`dense`)": GroupedDelta(),
    "XOR, byte planes, zstd -1 (`fast`)": XorDelta(),
}


class Pair(NamedTuple):
    """A chunk, and the one at its place in the checkpoint before."""

    raw: bytes
    base: bytes
    dtype: DType


class CodecSpeed(NamedTuple):
    """One codec on the changed chunks of a checkpoint: payload over raw bytes, MB/s of one thread in and out."""

    name: str
    ratio: float
    encode: float
    decode: float


Encode: TypeAlias = Callable[[Pair], list[bytes]]
Decode: TypeAlias = Callable[[Sequence[bytes], Pair], bytes | memoryview]


def files(checkpoints: Sequence[Checkpoint]) -> int:
    """The safetensors files as they are."""
    return sum(each.path.stat().st_size for each in checkpoints)


def zstd_files(checkpoints: Sequence[Checkpoint]) -> int:
    """Each file through zstd at its default level, 3; level 19 saves 0.3 to 1.4 % more, at 1 to 3 MB/s."""
    return sum(len(zstandard.ZstdCompressor(3).compress(each.path.read_bytes())) for each in checkpoints)


def bitx(checkpoints: Sequence[Checkpoint]) -> int:
    """BitX of ZipLLM (https://arxiv.org/abs/2505.06252): XOR with the base, byte planes, zstd at level 3 for each.

    Kinder to it than its own code in three ways. Its base is the model that all were tuned from; the checkpoint before
    is nearer. It takes every type for 16-bit words and parts exponents from signs and mantissas, which measures 2 %
    larger on bf16 and 14 % on fp32 than the bytes of each type's own width. A tensor without a base goes through zstd
    as it is; here it has its planes, too. Tensors that are equal to the base's are stored once.
    """
    nbytes = 0
    before: dict[str, bytes] = {}
    for each in checkpoints:
        tensors = {name: raw for name, _, raw in each.tensors()}
        for name, dtype, raw in each.tensors():
            base = before.get(name)
            if base != raw:
                nbytes += sum(map(len, bitx_encode(raw, base or bytes(len(raw)), dtype.component_nbytes)))
        before = tensors
    return nbytes


def bitx_encode(raw: bytes, base: bytes, width: int) -> list[bytes]:
    """Planes of the bits that differ, each compressed."""
    differing = np.frombuffer(raw, np.uint8) ^ np.frombuffer(base, np.uint8)
    compressor = zstandard.ZstdCompressor(3)
    return [compressor.compress(plane.tobytes()) for plane in differing.reshape(-1, width).T]


def bitx_decode(payloads: Sequence[bytes], base: bytes) -> bytes:
    """The bytes again."""
    decompressor = zstandard.ZstdDecompressor()
    planes = [np.frombuffer(decompressor.decompress(each), np.uint8) for each in payloads]
    return (np.stack(planes, 1).reshape(-1) ^ np.frombuffer(base, np.uint8)).tobytes()


def content_defined_chunks(checkpoints: Sequence[Checkpoint]) -> int:
    """Chunks of 64 KiB on average, cut where a gear hash of the last 64 bytes says, stored once each.

    As Hugging Face's Xet does it (https://huggingface.co/docs/xet/chunking): 8 to 128 KiB, a cut where the upper
    sixteen bits are zero, each chunk through LZ4 as it is or with every fourth byte together, whichever is smaller.
    The table of the hash is another than Xet's, the names of chunks and the lists of them are not counted.
    """
    nbytes, seen = 0, set()
    for each in checkpoints:
        for chunk in cut(each.path.read_bytes()):
            digest = hashlib.blake2b(chunk, digest_size=32).digest()
            if digest not in seen:
                seen.add(digest)
                grouped = b"".join(chunk[first::4] for first in range(4))
                nbytes += min(len(chunk), _lz4_nbytes(chunk), _lz4_nbytes(grouped))
    return nbytes


def cut(content: bytes) -> Iterator[bytes]:
    """Cut where the hash has sixteen zeros, neither too early nor too late."""
    hashes = _GEAR[np.frombuffer(content, np.uint8)]
    for doubling in range(_WINDOW_DOUBLINGS):  # a sum over 2, 4, ... 64 bytes, each shifted by its age
        age = 1 << doubling
        hashes[age:] += hashes[:-age] << np.uint64(age)
    places = np.flatnonzero(hashes >> np.uint64(64 - CDC_MEAN_BITS) == 0) + 1
    start = 0
    while start < len(content):
        after = places[np.searchsorted(places, start + CDC_MIN) :][:1]
        stop = min(int(after[0]) if after.size else len(content), start + CDC_MAX, len(content))
        yield content[start:stop]
        start = stop


def _lz4_nbytes(content: bytes) -> int:
    """At level 9 blosc2 gives LZ4 its own default speed; filters and blocks are not Xet's."""
    return len(
        blosc2.compress2(
            content, typesize=1, codec=blosc2.Codec.LZ4, clevel=9, filters=[blosc2.Filter.NOFILTER], nthreads=1
        )
    )


def codec_speeds(before: Checkpoint, after: Checkpoint) -> list[CodecSpeed]:
    """What codecs of deltas do in one thread with the chunks of a checkpoint against those of the one before."""
    bases = {name: raw for name, _, raw in before.tensors()}
    pairs = [
        Pair(raw[at : at + CHUNK_NBYTES], bases[name][at : at + CHUNK_NBYTES], dtype)
        for name, dtype, raw in after.tensors()
        for at in range(0, len(raw), CHUNK_NBYTES)
    ]
    changed = [pair for pair in pairs if pair.raw != pair.base and len(pair.raw) >= MIN_NBYTES]
    speeds = [_measure(name, changed, *_of_delta(delta)) for name, delta in _DELTAS.items()]
    return [*speeds, _measure("BitX", changed, _encode_bitx, lambda planes, pair: bitx_decode(planes, pair.base))]


def _of_delta(delta: Delta) -> tuple[Encode, Decode]:
    def encode(pair: Pair) -> list[bytes]:
        payload = delta.encode(memoryview(pair.raw), pair.dtype, Base(memoryview(pair.base), pair.dtype))
        assert payload is not None
        return [payload]

    def decode(payloads: Sequence[bytes], pair: Pair) -> memoryview:
        return delta.decode(payloads[0], pair.dtype, len(pair.raw), memoryview(pair.base))

    return encode, decode


def _encode_bitx(pair: Pair) -> list[bytes]:
    return bitx_encode(pair.raw, pair.base, pair.dtype.component_nbytes)


def _measure(name: str, pairs: Sequence[Pair], encode: Encode, decode: Decode) -> CodecSpeed:
    nbytes = sum(len(pair.raw) for pair in pairs)
    began = time.process_time()
    encoded = [encode(pair) for pair in pairs]
    between = time.process_time()
    decoded = [decode(payloads, pair) for payloads, pair in zip(encoded, pairs, strict=True)]
    ended = time.process_time()
    assert all(raw == pair.raw for raw, pair in zip(decoded, pairs, strict=True))
    stored = sum(len(payload) for payloads in encoded for payload in payloads)
    return CodecSpeed(name, stored / nbytes, nbytes / (between - began) / 1e6, nbytes / (ended - between) / 1e6)
