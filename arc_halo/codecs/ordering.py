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
    ordered: Bits = bits ^ _flips(bits, dtype, negative=1)
    return ordered


def from_ordered(ordered: Bits, dtype: DType, out: memoryview) -> None:
    """Write the bits of the numbers that `to_ordered` ordered."""
    np.bitwise_xor(ordered, _flips(ordered, dtype, negative=0), out=np.frombuffer(out, ordered.dtype))


def _flips(bits: Bits, dtype: DType, *, negative: int) -> Any:
    """The bits to turn over; negative numbers are those whose top bit is ``negative``, which the way there turns."""
    shift = bits.dtype.itemsize * 8 - 1
    sign = bits.dtype.type(1 << shift)
    if not (dtype.is_float or dtype.name == "C64"):
        return sign if dtype.name.startswith("I") else bits.dtype.type(0)
    flips = bits >> shift
    if negative:
        np.negative(flips, out=flips)
    else:
        flips -= 1
    flips |= sign
    return flips
