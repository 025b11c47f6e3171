"""Chunks as differences from others: small where a model was trained on from the one it is a delta of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from arc_halo.codecs.abc import MAX_RAW_NBYTES, fitting
from arc_halo.codecs.numbers import Numbers
from arc_halo.codecs.pco import Pco
from arc_halo.codecs.zstd import BloscZstd
from arc_halo.dtypes import by_name
from arc_halo.errors import CodecError, TensorError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arc_halo.codecs.abc import BytesLike, Codec
    from arc_halo.codecs.ordering import Bits
    from arc_halo.dtypes import DType

# A cast in the ways that are exact arithmetic on bits. A conversion by the processor may flush subnormals or change
# NaNs, and a chunk that decodes on one machine only is lost on the others.
_CASTS = frozenset({("F32", "BF16"), ("BF16", "F32")})


class Base(NamedTuple):
    """Raw bytes that a chunk is a delta of, and the type of their elements."""

    raw: memoryview
    dtype: DType


def is_comparable(base: DType, dtype: DType) -> bool:
    """Whether elements of one type can be predicted from those of another."""
    return base.name == dtype.name or (base.name, dtype.name) in _CASTS


def is_grown(base: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether two shapes differ at most in the length of the first axis."""
    return len(base) == len(shape) and tuple(base[1:]) == tuple(shape[1:])


def comparable_types(dtype: DType) -> tuple[str, ...]:
    """Names of the types that elements of one can be predicted from, its own first."""
    return (dtype.name, *(base for base, target in sorted(_CASTS) if target == dtype.name))


class Delta(ABC):
    """Turns a chunk into a payload and back, given the base chunk; the other contract is that of `Codec`.

    Element by element the base, cast if need be, is the prediction; what is stored is how the chunk differs from it.
    Where the base is shorter, the prediction is zero. A payload begins with the name of the base's element type and
    its length in one byte; no name means the chunk's own.
    """

    id: ClassVar[str]
    """The name stored beside each payload, for ever."""

    def encode(self, raw: memoryview, dtype: DType, base: Base) -> bytes | None:
        """The payload of a chunk; None if its type and the base's are not comparable, or it has no whole elements."""
        if not 0 < raw.nbytes <= MAX_RAW_NBYTES or raw.nbytes % dtype.component_nbytes:
            return None
        if not is_comparable(base.dtype, dtype):
            return None
        numbers = Numbers.of(raw, dtype)
        payload = self._encode(numbers, predict(Numbers.of(base.raw, base.dtype), dtype, len(numbers)))
        return None if payload is None else _header(base.dtype, dtype) + bytes(payload)

    def decode(
        self, payload: BytesLike, dtype: DType, raw_nbytes: int, base: memoryview, out: memoryview | None = None
    ) -> memoryview:
        """The raw bytes of a payload, in ``out`` if given; parameters and errors are those of `Codec.decode`.

        ``base`` is what the chunk leans on, whole: with other bytes than those it was encoded against, others come
        back. Compare their digest.
        """
        base_dtype, _ = _parse(memoryview(payload).cast("B"), dtype, self.id)
        numbers = self.apply(payload, dtype, raw_nbytes, Numbers.of(base, base_dtype))
        target = np.empty(raw_nbytes, np.uint8).data if out is None else fitting(out, raw_nbytes, self.id)
        numbers.write(target)
        return target

    def apply(self, payload: BytesLike, dtype: DType, raw_nbytes: int, base: Numbers) -> Numbers:
        """The numbers of a payload, given those of the base; errors are those of `Codec.decode`."""
        base_dtype, inner = _parse(memoryview(payload).cast("B"), dtype, self.id)
        if not 0 < raw_nbytes <= MAX_RAW_NBYTES or raw_nbytes % dtype.component_nbytes:
            raise CodecError(
                f"{self.id}: a chunk of {raw_nbytes} bytes is not 1 to {MAX_RAW_NBYTES}, or no whole {dtype.name}"
            )
        predicted = predict(base.read_as(base_dtype), dtype, raw_nbytes // dtype.component_nbytes)
        return self._decode(inner, predicted)

    @abstractmethod
    def _encode(self, numbers: Numbers, predicted: Numbers) -> BytesLike | None:
        """The payload of numbers against as many predicted ones of their type."""

    @abstractmethod
    def _decode(self, payload: memoryview, predicted: Numbers) -> Numbers:
        """As many numbers as are predicted, in an array of their own, or raise `CodecError`."""


class PcoDelta(Delta):
    """Differences of the integers that sort as the numbers do, through pcodec.

    A step of training moves a number to one nearby: the difference is small whatever its exponent, where bits compared
    by XOR differ in many places as soon as a power of two is crossed.
    """

    id = "pco-delta"

    def __init__(self, level: int = 8) -> None:
        self._codec = Pco(level, search=False)  # differences have no order for a search to find

    def _encode(self, numbers: Numbers, predicted: Numbers) -> BytesLike | None:
        return self._codec.encode_ordered(numbers.ordered - predicted.ordered)

    def _decode(self, payload: memoryview, predicted: Numbers) -> Numbers:
        ordered = self._codec.decode_ordered(payload, predicted.dtype, len(predicted))
        ordered += predicted.ordered
        return Numbers(predicted.dtype, ordered=ordered)


class XorDelta(Delta):
    """Bits that differ, in byte planes through zstd: fast, and best where most elements stayed as they were."""

    id = "xor-zstd"

    def __init__(self) -> None:
        self._codec: Codec = BloscZstd()

    def _encode(self, numbers: Numbers, predicted: Numbers) -> BytesLike | None:
        return self._codec.encode((numbers.bits ^ predicted.bits).data.cast("B"), numbers.dtype)

    def _decode(self, payload: memoryview, predicted: Numbers) -> Numbers:
        bits = np.empty(len(predicted), predicted.bits.dtype)
        self._codec.decode(payload, predicted.dtype, bits.nbytes, bits.data.cast("B"))
        bits ^= predicted.bits
        return Numbers(predicted.dtype, bits=bits)


def predict(base: Numbers, dtype: DType, count: int) -> Numbers:
    """``count`` numbers of the type, from the first ones of the base; zeros where it ends before."""
    known = base.first(min(count, len(base)))
    if base.dtype.name != dtype.name:
        cast = _truncate(known.bits) if dtype.name == "BF16" else known.bits.astype("<u4") << 16
        known = Numbers(dtype, bits=cast)
    return known.first(count)


def _truncate(bits: Bits) -> Bits:
    """Float32 to bfloat16, to the nearest and in doubt to the even one; a NaN keeps its upper half."""
    rounded: Bits = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype("<u2")
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    if is_nan.any():
        rounded[is_nan] = bits[is_nan] >> 16
    return rounded


def _header(base: DType, dtype: DType) -> bytes:
    name = b"" if base.name == dtype.name else base.name.encode("ascii")
    return bytes([len(name)]) + name


def _parse(payload: memoryview, dtype: DType, codec_id: str) -> tuple[DType, memoryview]:
    if not payload.nbytes or payload.nbytes <= payload[0]:
        raise CodecError(f"{codec_id}: payload of {payload.nbytes} bytes ends within its header")
    name, inner = bytes(payload[1 : 1 + payload[0]]), payload[1 + payload[0] :]
    if not name:
        return dtype, inner
    try:
        base = by_name(name.decode("ascii"))
    except (TensorError, UnicodeDecodeError) as error:
        raise CodecError(f"{codec_id}: payload names a base of an unknown type {name!r}") from error
    if not is_comparable(base, dtype):
        raise CodecError(f"{codec_id}: {dtype.name} cannot be a delta of {base.name}")
    return base, inner
