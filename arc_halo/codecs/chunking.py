"""Where a tensor's bytes are cut: whole rows, about a mebibyte each, so that a slice reads only the chunks it needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import lcm, prod
from typing import TYPE_CHECKING

from arc_halo.errors import SliceError, TensorError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from arc_halo.dtypes import DType

TARGET_NBYTES = 1 << 20

_MAX_NBYTES = (1 << 63) - 1  # sizes are bigint in the database


def chunk_nbytes(shape: Sequence[int], dtype: DType) -> int:
    """Raw size of each chunk of a tensor but the last.

    A row is the last axis; the axes before it are flattened. A chunk is as many whole rows as fit in `TARGET_NBYTES`,
    or, where a row is larger than that, as many whole elements or blocks. Rows of types narrower than a byte are
    counted in groups that fill whole bytes. Chunks start with the tensor, so a tensor that grows by rows keeps its full
    chunks.
    """
    row_bits = _row_bits(shape, dtype)
    rows_nbytes = lcm(row_bits, 8) // 8
    if not 0 < rows_nbytes <= TARGET_NBYTES:
        rows_nbytes = lcm(dtype.bits, 8) // 8
    return TARGET_NBYTES // rows_nbytes * rows_nbytes


@dataclass(frozen=True, slots=True)
class ChunkSpan:
    """One chunk's place in its tensor.

    ``offset`` and ``nbytes`` are raw bytes from the tensor's start; ``first_row`` is the row, of the flattened
    leading axes, in which the chunk begins.
    """

    index: int
    offset: int
    nbytes: int
    first_row: int

    @property
    def stop(self) -> int:
        """The raw byte after the last."""
        return self.offset + self.nbytes


@dataclass(frozen=True)
class ChunkLayout:
    """All chunks of a tensor, computed, not stored.

    Parameters
    ----------
    dtype, shape
        The tensor's; ``()`` is a scalar of one element.
    chunk_nbytes
        Size of each chunk but the last, as stored with the tensor. A new tensor takes it from `of`.

    Raises
    ------
    TensorError
        The elements do not fill whole bytes, the tensor is larger than 2**63 - 1 bytes, or chunks have no size.
    """

    dtype: DType
    shape: tuple[int, ...]
    chunk_nbytes: int

    def __post_init__(self) -> None:
        if self.chunk_nbytes <= 0:
            raise TensorError(f"chunk size {self.chunk_nbytes} cannot cut {self.nbytes} bytes; it must be positive")
        if (self.shape[-1] if self.shape else 1) % self.dtype.block_elements:
            raise TensorError(
                f"rows of shape {list(self.shape)} are no whole blocks: {self.dtype.name} has "
                f"{self.dtype.block_elements} elements in each; pad the last axis"
            )
        if not 0 <= self._bits <= _MAX_NBYTES * 8 or self._bits % 8:
            raise TensorError(
                f"shape {list(self.shape)} of {self.dtype.name} is no whole number of bytes from 0 to 2**63 - 1; "
                f"pack or pad the last axis"
            )

    @classmethod
    def of(cls, dtype: DType, shape: Sequence[int]) -> ChunkLayout:
        """The layout that a tensor stored today gets."""
        return cls(dtype, tuple(shape), chunk_nbytes(shape, dtype))

    @property
    def nbytes(self) -> int:
        """Raw bytes of the tensor."""
        return self._bits // 8

    def __len__(self) -> int:
        return (self.nbytes + self.chunk_nbytes - 1) // self.chunk_nbytes

    def __getitem__(self, index: int) -> ChunkSpan:
        if not 0 <= index < len(self):
            raise IndexError(f"chunk {index} of {len(self)}")
        offset = index * self.chunk_nbytes
        return ChunkSpan(index, offset, min(self.chunk_nbytes, self.nbytes - offset), offset * 8 // self._row_bits)

    def __iter__(self) -> Iterator[ChunkSpan]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def _bits(self) -> int:
        return prod(self.shape[:-1]) * self._row_bits

    @property
    def _row_bits(self) -> int:
        return _row_bits(self.shape, self.dtype)

    def chunks_for(self, byte_start: int, byte_stop: int) -> range:
        """Indexes of the chunks that hold the raw bytes from ``byte_start`` up to ``byte_stop``.

        Raises
        ------
        SliceError
            The bytes are not inside the tensor.
        """
        if not 0 <= byte_start <= byte_stop <= self.nbytes:
            raise SliceError(f"bytes {byte_start}:{byte_stop} of a tensor of {self.nbytes}; ask within 0:{self.nbytes}")
        if byte_start == byte_stop:
            return range(0)
        return range(byte_start // self.chunk_nbytes, (byte_stop - 1) // self.chunk_nbytes + 1)

    def row_bytes(self, start: int, stop: int) -> tuple[int, int]:
        """First raw byte, and the one after the last, of rows ``start`` up to ``stop`` of the **first** axis.

        Raises
        ------
        SliceError
            The tensor is a scalar, the rows are outside it, or elements narrower than a byte, or in blocks, make them
            begin or end inside one.
        """
        if not self.shape:
            raise SliceError("a scalar has no rows; read it whole")
        if not 0 <= start <= stop <= self.shape[0]:
            raise SliceError(f"rows {start}:{stop} of {self.shape[0]}; ask within 0:{self.shape[0]}")
        row_elements = prod(self.shape[1:])
        first, last = self.dtype.nbytes(start * row_elements), self.dtype.nbytes(stop * row_elements)
        if first is None or last is None:
            raise SliceError(
                f"rows {start}:{stop} of {self.dtype.name} with shape {list(self.shape)} share a byte or block with "
                f"their neighbours; read the tensor whole"
            )
        return first, last


def _row_bits(shape: Sequence[int], dtype: DType) -> int:
    """Bits of one element of the flattened leading axes."""
    return (shape[-1] if shape else 1) // dtype.block_elements * dtype.bits
