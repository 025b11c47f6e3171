"""The contract of a quantisation scheme: an array of floats to codes with scales, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from arc_halo.dtypes import DTYPES, of_array
from arc_halo.errors import TensorError

if TYPE_CHECKING:
    from arc_halo.dtypes import DType

SCALE_DTYPE = DTYPES["F32"]
SUITABLE = frozenset({"F16", "BF16", "F32", "F64"})
"""The element types that are worth quantising."""


class Quantized(NamedTuple):
    """The two arrays that stand for one."""

    codes: np.ndarray
    scale: np.ndarray


class Scheme(ABC):
    """Turns floats into codes and scales, each row of the last axis by itself.

    Any whole rows of a tensor can so be quantised, and read back, without the others: memory is bounded by a block of
    rows, however large the tensor. What is dequantised is float32, and quantised again it gives the same float32
    numbers. What `quantize` of any released version made, `dequantize` of every later one reads.
    """

    id: ClassVar[str]
    """The name stored beside the codes, for ever."""
    codes_dtype: ClassVar[DType]
    """The element type that codes are stored as."""

    def codes_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the codes of an array of that shape; those of a scalar are a row of one."""
        return (*shape[:-1], shape[-1]) if shape else (1,)

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales of an array of that shape."""
        return (*shape[:-1], 1)

    def quantize(self, array: np.ndarray) -> Quantized:
        """Codes and scales of an array of floats, any shape.

        Raises
        ------
        TensorError
            The array is of no float type, is of 8 bits already, or holds what is not finite as float32.
        """
        dtype = of_array(array)
        if dtype.name not in SUITABLE:
            raise TensorError(f"{self.id}: {dtype.name} cannot be quantised; give one of {', '.join(sorted(SUITABLE))}")
        with np.errstate(over="ignore"):
            matrix = _as_matrix(array).astype(np.float32, copy=False)
        if not np.isfinite(matrix).all():
            raise TensorError(f"{self.id}: NaN and infinity have no code; leave this tensor as it is, or repair it")
        codes, scale = self._quantize(matrix)
        shapes = self.codes_shape(array.shape), self.scale_shape(array.shape)
        return Quantized(codes.reshape(shapes[0]), scale.reshape(shapes[1]))

    def dequantize(self, quantized: Quantized, shape: tuple[int, ...]) -> np.ndarray:
        """The float32 numbers that codes and scales stand for.

        Parameters
        ----------
        shape
            Of the array that was quantised.

        Raises
        ------
        TensorError
            The arrays are not what this scheme makes of an array of that shape.
        """
        given = [(of_array(each).name, each.shape) for each in quantized]
        wanted = [(self.codes_dtype.name, self.codes_shape(shape)), (SCALE_DTYPE.name, self.scale_shape(shape))]
        if given != wanted:
            raise TensorError(f"{self.id}: {given} is not what stands for {list(shape)}; that is {wanted}")
        with np.errstate(over="ignore", invalid="ignore"):  # scales that `quantize` never made: NaN and infinity stay
            numbers = self._dequantize(Quantized(*map(_as_matrix, quantized)), shape[-1] if shape else 1)
        return numbers.reshape(shape)

    @abstractmethod
    def _quantize(self, matrix: np.ndarray) -> Quantized:
        """Codes and scales, a row for each row, of a matrix of finite float32."""

    @abstractmethod
    def _dequantize(self, quantized: Quantized, columns: int) -> np.ndarray:
        """The matrix of float32, with that many columns."""


def _as_matrix(array: np.ndarray) -> np.ndarray:
    columns = array.shape[-1] if array.shape else 1
    return array.reshape(prod(array.shape[:-1]), columns)


def absolute_maximum(array: np.ndarray) -> np.ndarray:
    """The largest magnitude along the last axis, 0 where that is empty."""
    largest: np.ndarray = np.abs(np.maximum(array.max(axis=-1, initial=0), -array.min(axis=-1, initial=0)))
    return largest


def exact_scale(absmax: np.ndarray, largest_code: int) -> np.ndarray:
    """Scales that take the largest magnitudes to the largest code, and whose products with codes are exact.

    A scale has 16 significant bits, one where it is so small that a float32 has no more than that to spare. So the
    largest number of what is dequantised divided by the largest code is the very scale, and quantising again changes
    nothing. It costs 2**-15 of the precision of a code.

    Parameters
    ----------
    absmax
        float32.
    largest_code
        Codes have at most 8 significant bits.
    """
    wanted = absmax.astype(np.float64) / largest_code
    exponent = np.frexp(wanted)[1]
    unit = np.ldexp(1.0, np.where(exponent < _FEW_BITS, np.maximum(exponent - 1, _MIN_EXPONENT), exponent - 16))
    scale = np.ceil(wanted / unit) * unit
    overflows = scale * largest_code > np.finfo(np.float32).max
    return np.where(overflows, np.floor(wanted / unit) * unit, scale).astype(np.float32)


_MIN_EXPONENT = -149  # of the smallest float32
_FEW_BITS = _MIN_EXPONENT + 16


def divisor(scale: np.ndarray) -> np.ndarray:
    """The scales to divide by: rows of zeros have none, and stay zeros whatever they are divided by."""
    return np.where(scale == 0, np.float32(1), scale)
