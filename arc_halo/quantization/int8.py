"""int8: each row by its largest magnitude, symmetric, codes from -127 to 127."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from arc_halo.dtypes import DTYPES
from arc_halo.quantization.abc import Quantized, Scheme, absolute_maximum, divisor, exact_scale

if TYPE_CHECKING:
    from typing import ClassVar

    from arc_halo.dtypes import DType

_LARGEST = 127


class Int8(Scheme):
    """Symmetric integers of 8 bits with a scale for each row: an output channel of a linear map.

    No number moves by more than half the scale of its row. -128 is not used, so that codes can be negated. Reference:
    Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
    arXiv:1712.05877, with a zero point of 0.
    """

    id = "int8"
    codes_dtype: ClassVar[DType] = DTYPES["I8"]

    def _quantize(self, matrix: np.ndarray) -> Quantized:
        scale = exact_scale(absolute_maximum(matrix), _LARGEST)
        codes = matrix / divisor(scale)[:, None]
        np.rint(codes, out=codes)
        return Quantized(codes.astype(np.int8), scale)

    def _dequantize(self, quantized: Quantized, columns: int) -> np.ndarray:  # noqa: ARG002  # a code each
        numbers: np.ndarray = quantized.codes.astype(np.float32) * quantized.scale
        return numbers
