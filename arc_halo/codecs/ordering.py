"""Bits of numbers as unsigned integers that sort as the numbers do, there and back, every bit kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from arc_halo.dtypes import DType

Bits: TypeAlias = np.ndarray[tuple[int], np.dtype[Any]]


def unsigned(dtype: DType) -> np.dtype[Any]:
    """The integer that holds one number of the type."""
    return np.dtype(f"<u{dtype.component_nbytes}")


def to_ordered(bits: Bits, dtype: DType) -> Bits:
    """Integers in the order of the numbers whose bits are given.

    Two's complement: the sign bit is turned over. Floats: the sign bit is, and in negative numbers all others, too.
    """
    if not _is_signed_magnitude(dtype):
        turned: Bits = bits ^ _sign(bits, dtype)
        return turned
    ordered = _all_or_none(bits)
    ordered |= top_bit(bits)
    ordered ^= bits
    return ordered


def from_ordered(ordered: Bits, dtype: DType, out: memoryview) -> None:
    """Write the bits of the numbers that `to_ordered` ordered."""
    target = np.frombuffer(out, ordered.dtype)
    if not _is_signed_magnitude(dtype):
        np.bitwise_xor(ordered, _sign(ordered, dtype), out=target)
        return
    flips = _all_or_none(ordered)
    flips |= top_bit(ordered)
    np.invert(flips, out=flips)
    flips |= top_bit(ordered)
    np.bitwise_xor(ordered, flips, out=target)


def _is_signed_magnitude(dtype: DType) -> bool:
    return dtype.is_float or dtype.name == "C64"


def top_bit(bits: Bits) -> Any:
    """The top bit of the integers, alone."""
    return bits.dtype.type(1 << (bits.dtype.itemsize * 8 - 1))


def _sign(bits: Bits, dtype: DType) -> Any:
    return top_bit(bits) if dtype.name.startswith("I") else bits.dtype.type(0)


def _all_or_none(bits: Bits) -> Bits:
    """Every bit set where the top bit is, and none elsewhere."""
    spread: Bits = bits.view(f"<i{bits.dtype.itemsize}") >> (bits.dtype.itemsize * 8 - 1)
    return spread.view(bits.dtype)
