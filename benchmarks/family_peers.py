"""Other ways to store a family of models small, each re-implemented from what is published of it."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

import blosc2
import numpy as np
import zstandard

from arc_halo.codecs.delta import Base, PcoDelta

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from family import Checkpoint

CDC_MEAN_BITS, CDC_MIN, CDC_MAX = 16, 8 << 10, 128 << 10
_GEAR = np.random.default_rng(20).integers(0, 1 << 64, 256, dtype=np.uint64)
_WINDOW_DOUBLINGS = 6


def files(checkpoints: Sequence[Checkpoint]) -> int:
    """The safetensors files as they are."""
    return sum(each.path.stat().st_size for each in checkpoints)


def zstd_files(checkpoints: Sequence[Checkpoint]) -> int:
    """Each file through zstd at its default level, 3."""
    return sum(len(zstandard.ZstdCompressor(3).compress(each.path.read_bytes())) for each in checkpoints)


def bitx(checkpoints: Sequence[Checkpoint]) -> int:
    """BitX of ZipLLM (https://arxiv.org/abs/2505.06252): XOR with the base, byte planes, zstd at level 3 for each.

    The paper's base is the model that all were tuned from; the checkpoint before, given here, is nearer and serves it
    better. The first checkpoint has no base: its own planes. Tensors that are equal to the base's are stored once.
    """
    nbytes = 0
    before: dict[str, bytes] = {}
    for each in checkpoints:
        tensors = {name: raw for name, _, raw in each.tensors()}
        for name, dtype, raw in each.tensors():
            base = before.get(name)
            if base != raw:
                nbytes += len(bitx_encode(raw, base or bytes(len(raw)), dtype.component_nbytes))
        before = tensors
    return nbytes


def bitx_encode(raw: bytes, base: bytes, width: int) -> bytes:
    """Planes of the bits that differ."""
    differing = np.frombuffer(raw, np.uint8) ^ np.frombuffer(base, np.uint8)
    compressor = zstandard.ZstdCompressor(3)
    return b"".join(compressor.compress(plane.tobytes()) for plane in differing.reshape(-1, width).T)


def bitx_decode(payloads: list[bytes], base: bytes) -> bytes:
    """The bytes again, from one compressed plane after another."""
    planes = [np.frombuffer(zstandard.ZstdDecompressor().decompress(each), np.uint8) for each in payloads]
    return (np.stack(planes, 1).reshape(-1) ^ np.frombuffer(base, np.uint8)).tobytes()


def content_defined_chunks(checkpoints: Sequence[Checkpoint]) -> int:
    """Chunks of 64 KiB on average, cut where a gear hash of the last 64 bytes says, stored once each.

    As Hugging Face's Xet does it: 8 to 128 KiB, each through LZ4, with or without bytes grouped by four, whichever is
    smaller (https://github.com/huggingface/xet-core).
    """
    nbytes, seen = 0, set()
    for each in checkpoints:
        for chunk in cut(each.path.read_bytes()):
            digest = hashlib.blake2b(chunk, digest_size=32).digest()
            if digest not in seen:
                seen.add(digest)
                nbytes += min(len(_lz4(chunk, grouped)) for grouped in (False, True))
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


def _lz4(chunk: bytes, grouped: bool) -> bytes:
    compressed: bytes = blosc2.compress2(
        chunk,
        typesize=4 if grouped else 1,
        codec=blosc2.Codec.LZ4,
        clevel=5,
        filters=[blosc2.Filter.SHUFFLE if grouped else blosc2.Filter.NOFILTER],
        nthreads=1,
    )
    return compressed if len(compressed) < len(chunk) else chunk


def codec_speeds(before: Checkpoint, after: Checkpoint) -> dict[str, tuple[float, float]]:
    """MB/s in and out of one thread, for the chunks of a checkpoint against those of the one before."""
    bases = {name: raw for name, _, raw in before.tensors()}
    pairs = [(raw, dtype, bases[name]) for name, dtype, raw in after.tensors() if len(raw) >= 1 << 16]
    nbytes = sum(len(raw) for raw, _, _ in pairs)
    pieces = [
        (raw[i : i + (1 << 20)], dtype, base[i : i + (1 << 20)])
        for raw, dtype, base in pairs
        for i in range(0, len(raw), 1 << 20)
    ]
    ours = PcoDelta()
    speeds = {}
    began = time.process_time()
    encoded = [ours.encode(memoryview(raw), dtype, Base(memoryview(base), dtype)) for raw, dtype, base in pieces]
    between = time.process_time()
    for payload, (raw, dtype, base) in zip(encoded, pieces, strict=True):
        assert payload is not None
        assert ours.decode(payload, dtype, len(raw), memoryview(base)) == raw
    speeds["integer difference, pcodec"] = _rates(nbytes, began, between, time.process_time())
    began = time.process_time()
    planes = [
        [zstandard.ZstdCompressor(3).compress(plane.tobytes()) for plane in _planes(raw, base, dtype.component_nbytes)]
        for raw, dtype, base in pieces
    ]
    between = time.process_time()
    for payloads, (raw, _, base) in zip(planes, pieces, strict=True):
        assert bitx_decode(payloads, base) == raw
    speeds["BitX"] = _rates(nbytes, began, between, time.process_time())
    return speeds


def _planes(raw: bytes, base: bytes, width: int) -> np.ndarray:
    return (np.frombuffer(raw, np.uint8) ^ np.frombuffer(base, np.uint8)).reshape(-1, width).T


def _rates(nbytes: int, began: float, between: float, ended: float) -> tuple[float, float]:
    return nbytes / max(between - began, 1e-9) / 1e6, nbytes / max(ended - between, 1e-9) / 1e6
