"""fp8: numbers of 8 bits with an exponent, E4M3, scaled by the row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from arc_halo.dtypes import DTYPES
from arc_halo.quantization.abc import Quantized, Scheme, absolute_maximum, divisor, exact_scale

if TYPE_CHECKING:
    from typing import ClassVar

    from arc_halo.dtypes import DType

_LARGEST = 448


class Fp8(Scheme):
    """Float8 E4M3FN (4 bits of exponent, 3 of mantissa, no infinity) with a scale for each row.

    The scale takes the largest magnitude of a row to 448, the largest number there is. Numbers keep about 4 bits of
    precision down to 2**-15 of it. Reference: Micikevicius et al., "FP8 Formats for Deep Learning", arXiv:2209.05433.
    """

    id = "fp8"
    codes_dtype: ClassVar[DType] = DTYPES["F8_E4M3"]

    def _quantize(self, matrix: np.ndarray) -> Quantized:
        scale = exact_scale(absolute_maximum(matrix), _LARGEST)
        return Quantized((matrix / divisor(scale)[:, None]).astype(ml_dtypes.float8_e4m3fn), scale)

    def _dequantize(self, quantized: Quantized, columns: int) -> np.ndarray:  # noqa: ARG002  # a code each
        numbers: np.ndarray = quantized.codes.astype(np.float32) * quantized.scale
        return numbers
