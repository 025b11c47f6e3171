"""Blocks of ggml's types as the float32 numbers that they stand for.

Layouts are those of ``block_q4_0`` and its kin in https://github.com/ggml-org/ggml, ``src/ggml-common.h``. Each number
is computed by the operations of the reference in their order, so results are equal to the bit. A scale that is NaN or
infinite makes NaN or infinite numbers: infinity times a code of 0 is NaN, as it is in the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.errors import QuantizationError

if TYPE_CHECKING:
    from arc_halo.dtypes import DType

_NIBBLES = np.array([0, 4], np.uint8)
_PAIRS = np.array([0, 2, 4, 6], np.uint8)
_BITS = np.arange(8, dtype=np.uint8)


def dequantize_blocks(raw: bytes | memoryview | np.ndarray, dtype: DType) -> np.ndarray:
    """The numbers of whole blocks, one after the other.

    Raises
    ------
    QuantizationError
        The type is none of `DEQUANTIZABLE`.
    """
    if dtype.name not in DEQUANTIZABLE:
        raise QuantizationError(
            f"{dtype.name} cannot be dequantised, only {', '.join(DEQUANTIZABLE)} can; read the blocks as they are"
        )
    blocks = np.frombuffer(raw, np.uint8).reshape(-1, dtype.bits // 8)
    if not blocks.size:
        return np.empty(0, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return DEQUANTIZABLE[dtype.name](blocks).reshape(-1)


def _half(columns: np.ndarray) -> np.ndarray:
    """Numbers of 16 bits, two bytes each."""
    return np.ascontiguousarray(columns).view("<f2").astype(np.float32)


def _parts(packed: np.ndarray, shifts: np.ndarray, group: int) -> np.ndarray:
    """The low bits of each group of bytes, then those above them, and so on."""
    spread = packed.reshape(len(packed), -1, 1, group) >> shifts.reshape(1, 1, -1, 1)
    numbers: np.ndarray = (spread & np.uint8((1 << (8 // shifts.size)) - 1)).reshape(len(packed), -1)
    return numbers


def _fifth_bits(columns: np.ndarray) -> np.ndarray:
    """The bit that each of 32 codes has beside its nibble, in its place."""
    return np.unpackbits(columns, axis=1, bitorder="little") << np.uint8(4)


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    codes = _parts(blocks[:, 2:], _NIBBLES, 16).view(np.int8) - np.int8(8)
    return _half(blocks[:, :2]) * codes.astype(np.float32)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    codes = _parts(blocks[:, 4:], _NIBBLES, 16)
    numbers: np.ndarray = _half(blocks[:, :2]) * codes.astype(np.float32) + _half(blocks[:, 2:4])
    return numbers


def _q5_0(blocks: np.ndarray) -> np.ndarray:
    codes = (_parts(blocks[:, 6:], _NIBBLES, 16) | _fifth_bits(blocks[:, 2:6])).view(np.int8) - np.int8(16)
    numbers: np.ndarray = _half(blocks[:, :2]) * codes.astype(np.float32)
    return numbers


def _q5_1(blocks: np.ndarray) -> np.ndarray:
    codes = _parts(blocks[:, 8:], _NIBBLES, 16) | _fifth_bits(blocks[:, 4:8])
    numbers: np.ndarray = _half(blocks[:, :2]) * codes.astype(np.float32) + _half(blocks[:, 2:4])
    return numbers


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    codes = blocks[:, 2:].view(np.int8)
    numbers: np.ndarray = codes.astype(np.float32) * _half(blocks[:, :2])
    return numbers


def _q2_k(blocks: np.ndarray) -> np.ndarray:
    scales = blocks[:, :16]
    codes = _parts(blocks[:, 16:80], _PAIRS, 32).reshape(-1, 16, 16).astype(np.float32)
    scale = _half(blocks[:, 80:82]) * (scales & 0xF).astype(np.float32)
    lowest = _half(blocks[:, 82:84]) * (scales >> 4).astype(np.float32)
    numbers: np.ndarray = scale[..., None] * codes - lowest[..., None]
    return numbers


def _q3_k(blocks: np.ndarray) -> np.ndarray:
    low, high = _parts(blocks[:, 96:104], _NIBBLES, 8), _parts(blocks[:, 104:108], _PAIRS, 4)
    scales = (low | (high << np.uint8(4))).view(np.int8) - np.int8(32)
    scale = _half(blocks[:, 108:110]) * scales.astype(np.float32)
    # A bit that is not set takes 4 from the code.
    absent = _single_bits(blocks[:, :32]) ^ np.uint8(1)
    codes = _parts(blocks[:, 32:96], _PAIRS, 32).view(np.int8) - (absent << np.uint8(2)).view(np.int8)
    numbers: np.ndarray = scale[..., None] * codes.reshape(-1, 16, 16).astype(np.float32)
    return numbers


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    return _scaled(blocks, _parts(blocks[:, 16:], _NIBBLES, 32))


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    codes = _parts(blocks[:, 48:], _NIBBLES, 32) | (_single_bits(blocks[:, 16:48]) << np.uint8(4))
    return _scaled(blocks, codes)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    low, high = _parts(blocks[:, :128], _NIBBLES, 64), _parts(blocks[:, 128:192], _PAIRS, 32)
    codes = (low | (high << np.uint8(4))).view(np.int8) - np.int8(32)
    scale = _half(blocks[:, 208:210]) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    numbers: np.ndarray = scale[..., None] * codes.reshape(-1, 16, 16).astype(np.float32)
    return numbers


def _single_bits(columns: np.ndarray) -> np.ndarray:
    """The lowest bit of each of 32 bytes, then the next, up to the eighth."""
    spread = (columns[:, None, :] >> _BITS[None, :, None]) & np.uint8(1)
    return spread.reshape(len(columns), -1)


def _scaled(blocks: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Eight groups of 32 codes, each with a scale and a lowest number of 6 bits, packed into 12 bytes."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([first & 0x3F, (third & 0xF) | ((first >> 2) & 0x30)], axis=1)
    minima = np.concatenate([second & 0x3F, (third >> 4) | ((second >> 2) & 0x30)], axis=1)
    scale = _half(blocks[:, :2]) * scales.astype(np.float32)
    lowest = _half(blocks[:, 2:4]) * minima.astype(np.float32)
    numbers: np.ndarray = scale[..., None] * codes.reshape(-1, 8, 32).astype(np.float32) - lowest[..., None]
    return numbers


DEQUANTIZABLE = MappingProxyType[str, Callable[[np.ndarray], np.ndarray]](
    {
        "Q4_0": _q4_0,
        "Q4_1": _q4_1,
        "Q5_0": _q5_0,
        "Q5_1": _q5_1,
        "Q8_0": _q8_0,
        "Q2_K": _q2_k,
        "Q3_K": _q3_k,
        "Q4_K": _q4_k,
        "Q5_K": _q5_k,
        "Q6_K": _q6_k,
    }
)
"""How the blocks of a type, a row each, become numbers."""
