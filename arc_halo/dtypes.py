"""Names of element types: the safetensors spelling on disk and in the database, numpy's in memory."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import ml_dtypes
import numpy as np

from arc_halo.errors import TensorError


@dataclass(frozen=True, slots=True)
class DType:
    """An element type.

    ``bits`` is the width of one element. ``numpy`` is None for types narrower than a byte, whose arrays are packed
    and therefore read and written as bytes.
    """

    name: str
    bits: int
    numpy: np.dtype | None
    is_float: bool

    @property
    def component_nbytes(self) -> int:
        """Bytes of one number: half of a complex element, 1 where elements are packed."""
        return 4 if self.name == "C64" else max(self.bits // 8, 1)

    def nbytes(self, element_count: int) -> int | None:
        """Bytes of that many elements; None if they do not fill whole bytes."""
        bits = element_count * self.bits
        return None if bits % 8 else bits // 8


def _dtype(name: str, numpy: object, *, is_float: bool) -> DType:
    dtype = np.dtype(numpy)  # type: ignore[call-overload]  # scalar types of ml_dtypes are not in numpy's stubs
    return DType(name, dtype.itemsize * 8, dtype, is_float)


# The names are those of the safetensors format, https://huggingface.co/docs/safetensors
DTYPES = MappingProxyType(
    {
        dtype.name: dtype
        for dtype in (
            _dtype("BOOL", np.bool_, is_float=False),
            _dtype("U8", "<u1", is_float=False),
            _dtype("I8", "<i1", is_float=False),
            _dtype("U16", "<u2", is_float=False),
            _dtype("I16", "<i2", is_float=False),
            _dtype("U32", "<u4", is_float=False),
            _dtype("I32", "<i4", is_float=False),
            _dtype("U64", "<u8", is_float=False),
            _dtype("I64", "<i8", is_float=False),
            _dtype("F16", "<f2", is_float=True),
            _dtype("BF16", ml_dtypes.bfloat16, is_float=True),
            _dtype("F32", "<f4", is_float=True),
            _dtype("F64", "<f8", is_float=True),
            _dtype("C64", "<c8", is_float=False),
            _dtype("F8_E4M3", ml_dtypes.float8_e4m3fn, is_float=True),
            _dtype("F8_E5M2", ml_dtypes.float8_e5m2, is_float=True),
            _dtype("F8_E4M3FNUZ", ml_dtypes.float8_e4m3fnuz, is_float=True),
            _dtype("F8_E5M2FNUZ", ml_dtypes.float8_e5m2fnuz, is_float=True),
            _dtype("F8_E8M0", ml_dtypes.float8_e8m0fnu, is_float=True),
            DType("F4", 4, None, is_float=True),
            DType("F6_E2M3", 6, None, is_float=True),
            DType("F6_E3M2", 6, None, is_float=True),
        )
    }
)

_BY_NUMPY = MappingProxyType({dtype.numpy: dtype for dtype in DTYPES.values() if dtype.numpy is not None})


def by_name(name: str) -> DType:
    """The element type of that name.

    Raises
    ------
    TensorError
        There is no such type.
    """
    try:
        return DTYPES[name]
    except KeyError:
        raise TensorError(f"unknown dtype {name!r}; known are {', '.join(DTYPES)}") from None


def of_array(array: np.ndarray) -> DType:
    """The element type of an array, whatever its byte order.

    Raises
    ------
    TensorError
        The array holds objects, records, strings or another type without a name in the safetensors format.
    """
    try:
        return _BY_NUMPY[array.dtype.newbyteorder("<")]
    except KeyError:
        raise TensorError(
            f"arrays of dtype {array.dtype} cannot be stored; convert to one of {', '.join(DTYPES)}"
        ) from None
