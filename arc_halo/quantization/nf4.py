"""nf4: 4 bits for each number, the sixteen quantiles of a normal distribution, scaled in blocks of 64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from arc_halo.dtypes import DTYPES
from arc_halo.quantization.abc import Quantized, Scheme, absolute_maximum, divisor

if TYPE_CHECKING:
    from typing import ClassVar

    from arc_halo.dtypes import DType

BLOCK = 64
# Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv:2305.14314, appendix E.
QUANTILES = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
_MIDPOINTS = (QUANTILES[1:] + QUANTILES[:-1]) / 2
_ZERO = 7


class NormalFloat4(Scheme):
    """NormalFloat4 of QLoRA: codes of 4 bits, two in a byte, and the largest magnitude of every 64 numbers.

    Blocks are cut along a row, the last one of a row may be shorter: a row can be read without its neighbours. Where
    the rows are multiples of 64 the blocks are those of the paper, which cuts the flattened tensor. The first of two
    codes is in the high bits. Magnitudes stay float32: they are not quantised once more.
    """

    id = "nf4"
    codes_dtype: ClassVar[DType] = DTYPES["U8"]

    def codes_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Two codes in a byte; the last byte of a row of odd length is half used."""
        columns = shape[-1] if shape else 1
        return (*shape[:-1], -(-columns // 2))

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """One for each block of a row."""
        columns = shape[-1] if shape else 1
        return (*shape[:-1], -(-columns // BLOCK))

    def _quantize(self, matrix: np.ndarray) -> Quantized:
        rows, columns = matrix.shape
        padded = columns + -columns % BLOCK
        blocks = np.pad(matrix, ((0, 0), (0, padded - columns))).reshape(rows, padded // BLOCK, BLOCK)
        scale = absolute_maximum(blocks)
        codes = _nearest(blocks / divisor(scale)[:, :, None]).reshape(rows, padded)
        codes = codes[:, : columns + columns % 2]  # the padding of an odd row is a zero's code
        return Quantized(codes[:, ::2] << 4 | codes[:, 1::2], scale)

    def _dequantize(self, quantized: Quantized, columns: int) -> np.ndarray:
        rows, pairs = quantized.codes.shape
        codes = np.stack([quantized.codes >> 4, quantized.codes & 15], axis=2).reshape(rows, 2 * pairs)[:, :columns]
        scale = np.repeat(quantized.scale, BLOCK, axis=1)[:, :columns]
        numbers: np.ndarray = QUANTILES[codes] * scale
        return numbers


def _nearest(numbers: np.ndarray) -> np.ndarray:
    """Codes of the nearest quantiles; of two as near the lower."""
    codes = np.zeros(numbers.shape, np.uint8)
    for midpoint in _MIDPOINTS:  # in whole vectors, ten times as fast as a binary search for each number
        codes += numbers > midpoint
    return codes
