"""Names of element types: as safetensors and ggml spell them on disk and in the database, numpy's in memory."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from arc_halo.errors import TensorError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class DType:
    """An element type.

    ``bits`` is the width of one element or, where consecutive numbers of a row share their scales, of a block of
    ``block_elements``. ``numpy`` is None for types narrower than a byte, whose arrays are packed, and for blocks:
    both are read and written as bytes.
    """

    name: str
    bits: int
    numpy: np.dtype | None
    is_float: bool
    block_elements: int = 1

    @property
    def is_block(self) -> bool:
        """Whether numbers are stored in blocks that share their scales."""
        return self.block_elements > 1

    @property
    def is_trainable(self) -> bool:
        """Whether its numbers can be changed a little: not integers, nor numbers that share their scales."""
        return self.is_float and not self.is_block

    @property
    def component_nbytes(self) -> int:
        """Bytes of one number: half of a complex element, 1 where elements are packed or in blocks."""
        if self.is_block:
            return 1
        return 4 if self.name == "C64" else max(self.bits // 8, 1)

    def nbytes(self, element_count: int) -> int | None:
        """Bytes of that many elements; None if they do not fill whole bytes, or blocks."""
        blocks, rest = divmod(element_count, self.block_elements)
        bits = blocks * self.bits
        return None if rest or bits % 8 else bits // 8

    def elements(self, nbytes: int) -> int:
        """How many elements that many bytes hold."""
        return nbytes * 8 // self.bits * self.block_elements

    def as_array(self, raw: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Bytes as an array of that shape; of packed types the bytes, of blocks the bytes of each row."""
        if self.numpy is not None:
            return raw.view(self.numpy).reshape(shape)
        if not self.is_block:
            return raw
        return raw.reshape(*shape[:-1], shape[-1] // self.block_elements * self.bits // 8)


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

# Bytes of a block by its type's name, and how many numbers that is: https://github.com/ggml-org/ggml, docs/gguf.md.
BLOCK_DTYPES = MappingProxyType(
    {
        name: DType(name, nbytes * 8, None, is_float=True, block_elements=elements)
        for name, elements, nbytes in (
            ("Q4_0", 32, 18),
            ("Q4_1", 32, 20),
            ("Q5_0", 32, 22),
            ("Q5_1", 32, 24),
            ("Q8_0", 32, 34),
            ("Q8_1", 32, 40),
            ("Q2_K", 256, 84),
            ("Q3_K", 256, 110),
            ("Q4_K", 256, 144),
            ("Q5_K", 256, 176),
            ("Q6_K", 256, 210),
            ("Q8_K", 256, 292),
            ("IQ1_S", 256, 50),
            ("IQ1_M", 256, 56),
            ("IQ2_XXS", 256, 66),
            ("IQ2_XS", 256, 74),
            ("IQ2_S", 256, 82),
            ("IQ3_XXS", 256, 98),
            ("IQ3_S", 256, 110),
            ("IQ4_NL", 32, 18),
            ("IQ4_XS", 256, 136),
            ("TQ1_0", 256, 54),
            ("TQ2_0", 256, 66),
            ("MXFP4", 32, 17),
            ("NVFP4", 64, 36),
            ("Q1_0", 128, 18),
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
    found = DTYPES.get(name) or BLOCK_DTYPES.get(name)
    if found is None:
        raise TensorError(f"unknown dtype {name!r}; known are {', '.join((*DTYPES, *BLOCK_DTYPES))}")
    return found


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
