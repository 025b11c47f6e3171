"""Bits of numbers as integers that sort as the numbers do, there and back, every bit kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from arc_halo.dtypes import DType

Bits: TypeAlias = np.ndarray[tuple[int], np.dtype[Any]]
"""Unsigned integers that hold the bits of one number each."""
Ordered: TypeAlias = np.ndarray[tuple[int], np.dtype[Any]]
"""Signed integers, as wide, in the order of the numbers."""


def unsigned(dtype: DType) -> np.dtype[Any]:
    """The integer that holds one number of the type."""
    return np.dtype(f"<u{dtype.component_nbytes}")


def to_ordered(bits: Bits, dtype: DType) -> Ordered:
    """Integers in the order of the numbers whose bits are given; an array that may be that of the bits.

    Two's complement is in its own order. Of unsigned numbers the top bit is turned over; of negative floats all bits
    but that of the sign.
    """
    width = dtype.component_nbytes
    if _is_signed_magnitude(dtype):
        return _turned(bits, np.empty(bits.size, f"<i{width}"))
    return (bits if dtype.name.startswith("I") else bits ^ top_bit(bits)).view(f"<i{width}")


def from_ordered(ordered: Ordered, dtype: DType, out: memoryview) -> None:
    """Write the bits of the numbers that `to_ordered` ordered."""
    target = np.frombuffer(out, ordered.dtype)
    if _is_signed_magnitude(dtype):
        _turned(ordered, target)
    elif dtype.name.startswith("I"):
        target[:] = ordered
    else:
        np.bitwise_xor(ordered, np.iinfo(ordered.dtype).min, out=target)


def top_bit(bits: Bits) -> Any:
    """The top bit of the integers, alone."""
    return bits.dtype.type(1 << (bits.dtype.itemsize * 8 - 1))


def _turned(numbers: Bits | Ordered, out: Ordered) -> Ordered:
    """All bits but the top one turned over where that is set; done twice, nothing is changed."""
    signed = numbers.view(out.dtype)
    flips = signed >> (out.dtype.itemsize * 8 - 1)
    flips &= np.iinfo(out.dtype).max
    np.bitwise_xor(signed, flips, out=out)
    return out


def _is_signed_magnitude(dtype: DType) -> bool:
    return dtype.is_float or dtype.name == "C64"
