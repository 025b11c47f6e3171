"""Statistics of a tensor, computed chunk by chunk while it streams by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from arc_halo.quantization.ggml import DEQUANTIZABLE, dequantize_blocks

if TYPE_CHECKING:
    from arc_halo.dtypes import DType

SKETCH_DIMENSION = 64
_PERIOD = 4096
_BLOCK = 1 << 16  # elements that stay in the processor's cache from one pass to the next
# Fixed for ever: sketches of two databases must be comparable.
_SIGNS = np.where(np.random.Generator(np.random.PCG64(20)).integers(0, 2, _PERIOD), 1.0, -1.0)


@dataclass(slots=True)
class Statistics:
    """What is known of the elements seen so far; ``mean`` and ``squares`` are over finite elements.

    ``squares`` is the sum of squared deviations from the mean; those of elements below 1e-160 are subnormal and lose
    digits. Two parts merge without loss of precision by the pairwise formulas of Chan, Golub and LeVeque (1979).
    ``sketch`` is a count sketch (Charikar, Chen and Farach-Colton, 2002): tensors that differ little have sketches with
    a cosine near 1.
    """

    count: int = 0
    finite_count: int = 0
    nan_count: int = 0
    zero_count: int = 0
    min_value: float | None = None
    max_value: float | None = None
    mean: float = 0.0
    squares: float = 0.0
    sketch: np.ndarray = field(default_factory=lambda: np.zeros(SKETCH_DIMENSION))

    def merge(self, other: Statistics) -> None:
        """Take in what another part of the same tensor holds."""
        total = self.finite_count + other.finite_count
        if other.finite_count:
            with np.errstate(over="ignore", invalid="ignore"):
                delta = np.float64(other.mean) - self.mean
                self.squares += float(other.squares + delta * delta * self.finite_count * other.finite_count / total)
                self.mean += float(delta * other.finite_count / total)
                self.sketch += other.sketch
            self.min_value = min(v for v in (self.min_value, other.min_value) if v is not None)
            self.max_value = max(v for v in (self.max_value, other.max_value) if v is not None)
        self.finite_count = total
        for name in ("count", "nan_count", "zero_count"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def inf_count(self) -> int:
        """Infinite elements of either sign."""
        return self.count - self.finite_count - self.nan_count

    def columns(self) -> tuple[object, ...]:
        """Values for ``tensor_metadata``, from ``min_value`` to ``sketch``; None for what cannot be told."""
        if not self.count:
            return (None,) * 9
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            variance = self.squares / np.float64(self.finite_count)
            norm = np.sqrt(self.squares + np.float64(self.mean) ** 2 * self.finite_count)
        known = [self.mean, np.sqrt(variance), norm] if self.finite_count else [np.nan] * 3
        return (
            self.min_value,
            self.max_value,
            *(float(value) if np.isfinite(value) else None for value in known),
            self.zero_count / self.count,
            self.nan_count,
            self.inf_count,
            self.sketch_of_unit_length(),
        )

    def sketch_of_unit_length(self) -> np.ndarray | None:
        """The sketch as it is stored, 64 of float32; None where it is zero or overflowed."""
        largest = np.abs(self.sketch).max()
        if not 0 < largest < np.inf:
            return None
        scaled = self.sketch / largest  # so that no square overflows or vanishes
        unit: np.ndarray = (scaled / np.linalg.norm(scaled)).astype(np.float32)
        return unit


def measure(raw: memoryview, dtype: DType, first_element: int) -> Statistics:
    """Statistics of one chunk; ``first_element`` is its place in the tensor, which the sketch depends on.

    Those of quantised blocks are of the numbers that they stand for. Complex and packed element types have none, nor
    have blocks that cannot be dequantised: the result counts no elements.
    """
    measured = Statistics()
    if not is_numeric(dtype) or dtype.name == "C64":
        return measured
    step = _BLOCK // dtype.block_elements * dtype.bits // 8
    for start in range(0, raw.nbytes, step):
        values = as_float(raw[start : start + step], dtype)
        measured.merge(_measure_block(values, first_element))
        first_element += values.size
    return measured


def is_numeric(dtype: DType) -> bool:
    """Whether bytes of the type can be read as numbers."""
    return dtype.numpy is not None or dtype.name in DEQUANTIZABLE


def _measure_block(values: np.ndarray, first_element: int) -> Statistics:
    measured = Statistics(count=values.size, zero_count=int(np.count_nonzero(np.equal(values, 0))))
    low, high = float(values.min()), float(values.max())  # a NaN anywhere makes both NaN
    if not (np.isfinite(low) and np.isfinite(high)):
        measured.nan_count = int(np.isnan(values).sum())
        finite = np.isfinite(values)
        if not finite.any():
            return measured
        low, high = float(values[finite].min()), float(values[finite].max())
        measured.finite_count = int(finite.sum())
        values = np.where(finite, values, values.dtype.type(0))
    else:
        measured.finite_count = values.size
    measured.min_value, measured.max_value = low, high
    with np.errstate(over="ignore", invalid="ignore"):
        deviations = values.astype(np.float64)
        columns = _columns(deviations, first_element)
        measured.sketch = (columns * _SIGNS).reshape(-1, SKETCH_DIMENSION).sum(axis=0)
        measured.mean = float(columns.sum() / measured.finite_count)
        deviations -= measured.mean
        # Elements that are not finite stand as zero above; their share of the sum is taken out again.
        absent = measured.count - measured.finite_count
        squares = np.square(deviations, out=deviations).sum() - absent * np.float64(measured.mean) ** 2
        measured.squares = float(np.maximum(squares, 0.0))  # keeps the NaN that an overflow leaves
    return measured


def as_float(raw: memoryview, dtype: DType) -> np.ndarray:
    """The numbers in bytes of a numeric type, as floats that hold them exactly, or nearly where none does."""
    if dtype.is_block:
        return dequantize_blocks(raw, dtype)
    if dtype.name == "BF16":  # the upper half of a float32
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    values = np.frombuffer(raw, dtype.numpy)
    if dtype.name in _F8_TABLES:
        return _F8_TABLES[dtype.name][np.frombuffer(raw, np.uint8)]
    if dtype.name in ("F32", "F64"):
        return values
    return values.astype(np.float64 if dtype.bits > np.finfo(np.float32).nmant else np.float32)


def _f8_table(dtype: type) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)


_F8_TABLES = {
    "F8_E4M3": _f8_table(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": _f8_table(ml_dtypes.float8_e5m2),
    "F8_E8M0": _f8_table(ml_dtypes.float8_e8m0fnu),
}


def _columns(values: np.ndarray, first_element: int) -> np.ndarray:
    """Sums of the elements by their place in the period; ``values`` is float64."""
    phase = first_element % _PERIOD
    columns = np.zeros(_PERIOD)
    head = min((-phase) % _PERIOD, values.size)
    columns[phase : phase + head] += values[:head]
    whole = head + (values.size - head) // _PERIOD * _PERIOD
    columns += values[head:whole].reshape(-1, _PERIOD).sum(axis=0)
    columns[: values.size - whole] += values[whole:]
    return columns
