"""Which codecs a chunk is offered to: from nothing at all to the smallest of everything."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np

from arc_halo.codecs.abc import MAX_RAW_NBYTES
from arc_halo.codecs.delta import PcoDelta, XorDelta
from arc_halo.codecs.grouped import GroupedDelta
from arc_halo.codecs.packed import PackedDelta
from arc_halo.codecs.pco import Pco
from arc_halo.codecs.raw import Raw
from arc_halo.codecs.zstd import BloscZstd
from arc_halo.errors import CodecError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from arc_halo.codecs.abc import BytesLike, Codec
    from arc_halo.codecs.delta import Base, Delta
    from arc_halo.dtypes import DType

PolicyName = Literal["none", "fast", "balanced", "dense"]
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)

MAX_DEPTH = MappingProxyType[PolicyName, int]({"none": 0, "fast": 1, "balanced": 2, "dense": 8})
"""How many deltas may lean on one another; each is one more payload to fetch and decode."""

_RAW = Raw()
_ZSTD = BloscZstd()
_PCO = Pco(level=8)
_PCO_PLAIN = Pco(level=8, search=False)
_PCO_DENSE = Pco(level=9)
_DELTA = PcoDelta(level=8)
_XOR_DELTA = XorDelta()
_PACKED_DELTA = PackedDelta()
_DENSE_DELTAS: tuple[Delta, ...] = (GroupedDelta(level=9), _XOR_DELTA)

_INTEGERS = frozenset({"U16", "I16", "U32", "I32", "U64", "I64"})

_PROBE_PIECES, _PROBE_PIECE_NBYTES = 8, 4096
_PROBE_NBYTES = _PROBE_PIECES * _PROBE_PIECE_NBYTES
_INCOMPRESSIBLE = 0.98
_REPETITIVE = 0.6
# A delta this much smaller than byte planes of a sample is smaller than anything the bytes alone compress to.
_CLEARLY = 0.7
# Differences of wider numbers seldom fit into four bits.
_PACKED_NBYTES = 2


def check_policy(policy: str) -> None:
    """Raise `ConfigurationError` if there is no such policy."""
    if policy not in POLICIES:
        raise ConfigurationError(f"unknown compression policy {policy!r}; choose one of {', '.join(POLICIES)}")


class Encoded(NamedTuple):
    """A payload, the id of its codec, and whether it is a delta of the base that was offered."""

    codec: str
    payload: BytesLike
    is_delta: bool


def encode_chunk(raw: memoryview, dtype: DType, policy: PolicyName, base: Base | None = None) -> Encoded:
    """The smallest payload under a policy; ``raw`` itself where nothing is smaller.

    Parameters
    ----------
    raw
        Contiguous bytes of the chunk.
    dtype
        Type of its elements.
    policy
        - ``none``: bytes as they are.
        - ``fast``: byte planes through zstd, of the bits that differ where that is smaller.
        - ``balanced``: what reads and writes at least as fast as the database does.
        - ``dense``: the smallest of all, patiently.
    base
        A chunk that this one may be a delta of, under all policies but ``none``.

    Raises
    ------
    ConfigurationError
        No such policy.
    CodecError
        The chunk is larger than any reader would take back.
    """
    check_policy(policy)
    if raw.nbytes > MAX_RAW_NBYTES:
        raise CodecError(f"a chunk of {raw.nbytes} bytes is above {MAX_RAW_NBYTES}; cut the tensor into smaller ones")
    best = Encoded(_RAW.id, raw, is_delta=False)
    probed = _probe(raw, dtype) if policy in ("balanced", "dense") or base is not None else 0.0
    for delta in _deltas(raw, dtype, policy, base, probed):
        assert base is not None
        best = _smaller(best, delta.id, delta.encode(raw, dtype, base), is_delta=True)
    if policy != "dense" and best.is_delta and len(best.payload) < _CLEARLY * probed * raw.nbytes:
        return best
    for codec in _candidates(raw, dtype, policy, probed):
        best = _smaller(best, codec.id, codec.encode(raw, dtype), is_delta=False)
    return best


def _smaller(best: Encoded, codec_id: str, payload: BytesLike | None, *, is_delta: bool) -> Encoded:
    """The smaller of two; of equals the one that leans on nothing."""
    if payload is None or len(payload) > len(best.payload):
        return best
    if len(payload) == len(best.payload) and (is_delta or not best.is_delta):
        return best
    return Encoded(codec_id, payload, is_delta)


def _deltas(raw: memoryview, dtype: DType, policy: PolicyName, base: Base | None, probed: float) -> Sequence[Delta]:
    """The delta codecs worth trying; none but under ``dense`` where a sample of differences is no smaller."""
    if base is None or not MAX_DEPTH[policy] or not raw.nbytes:
        return ()
    if policy == "dense":
        return _DENSE_DELTAS
    is_alike = not probed or base.dtype != dtype or _probe_difference(raw, dtype, base) < _INCOMPRESSIBLE * probed
    if not is_alike:
        return ()
    if policy == "fast":
        return (_XOR_DELTA,)
    return (_PACKED_DELTA,) if dtype.component_nbytes <= _PACKED_NBYTES else (_DELTA,)


def _candidates(raw: memoryview, dtype: DType, policy: PolicyName, probed: float) -> Sequence[Codec]:
    """The codecs worth trying.

    Measured on MiniLM in chunks of 1 MiB, one thread, as ratio, MB/s in, MB/s out::

                     byte planes         pcodec 8, plain     pcodec 8, searching
        BF16         0.688   475  1200   0.662   110   850   0.662    88   850
        F32          0.838   673  1975   0.831   221  1090   0.823   176  1055
        F16          0.848  1150  1780   0.849   107   850   0.849    84   840
        F8_E4M3      0.760   261   600   0.756    76   520
        I8           0.618   524   730   0.609    81   500
    """
    if policy == "none" or not raw.nbytes:
        return ()
    if policy == "fast":  # noise goes through at 1 to 2 GB/s: a probe would cost more than it saves
        return (_ZSTD,)
    if probed > _INCOMPRESSIBLE:
        return ()
    return (_ZSTD, _PCO_DENSE) if policy == "dense" else _balanced(dtype, probed)


def _balanced(dtype: DType, probed: float) -> Sequence[Codec]:
    """Pcodec where it saves three per cent or more: integers, whose ramps its search finds, and plainly BF16."""
    if dtype.name in _INTEGERS:
        return (_ZSTD, _PCO)
    if dtype.name != "BF16":
        return (_ZSTD,)
    # Repeated rows are for zstd alone to find; trying it on every chunk would cost a fifth of the speed.
    return (_ZSTD, _PCO_PLAIN) if probed < _REPETITIVE else (_PCO_PLAIN,)


def _probe(raw: memoryview, dtype: DType) -> float:
    """The ratio to which byte planes compress a few pieces from all over the chunk; 0 if it is small enough to try all.

    Noise, such as packed quantised weights, is told in 0.1 ms from what is worth 10 ms of a dense codec.
    """
    if raw.nbytes <= 2 * _PROBE_NBYTES:
        return 0.0
    return _sampled_ratio(b"".join(_pieces(raw, raw.nbytes, dtype)), dtype)


def _probe_difference(raw: memoryview, dtype: DType, base: Base) -> float:
    """As `_probe`, of the bits in which the chunk differs from a base of its own type."""
    common = min(raw.nbytes, base.raw.nbytes)
    if common <= 2 * _PROBE_NBYTES:
        return 0.0
    left, right = (np.frombuffer(b"".join(_pieces(each, common, dtype)), np.uint8) for each in (raw, base.raw))
    return _sampled_ratio((left ^ right).tobytes(), dtype)


def _pieces(raw: memoryview, nbytes: int, dtype: DType) -> Iterator[memoryview]:
    width = dtype.component_nbytes
    stride = (nbytes - _PROBE_PIECE_NBYTES) // (_PROBE_PIECES - 1) // width * width
    return (raw[i * stride : i * stride + _PROBE_PIECE_NBYTES] for i in range(_PROBE_PIECES))


def _sampled_ratio(sample: bytes, dtype: DType) -> float:
    payload = _ZSTD.encode(memoryview(sample), dtype)
    assert payload is not None
    return len(payload) / _PROBE_NBYTES
