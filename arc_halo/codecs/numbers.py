"""The numbers of a chunk between two codecs: as bits, or as integers in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from arc_halo.codecs.ordering import from_ordered, to_ordered, unsigned
from arc_halo.errors import CodecError

if TYPE_CHECKING:
    from arc_halo.codecs.abc import BytesLike
    from arc_halo.codecs.ordering import Bits, Ordered
    from arc_halo.dtypes import DType


class Numbers:
    """Numbers known by their bits or by their order; the other form is made when somebody asks for it.

    A chain of deltas is decoded in the order of the numbers from its root to its end, rather than turned into bits by
    each link and into the order again by the next. Arrays that are handed out are not to be changed.
    """

    def __init__(self, dtype: DType, *, bits: Bits | None = None, ordered: Ordered | None = None) -> None:
        assert bits is not None or ordered is not None
        self.dtype = dtype
        self._bits = bits
        self._ordered = ordered

    @classmethod
    def of(cls, raw: BytesLike, dtype: DType) -> Numbers:
        """Those that a chunk's raw bytes hold.

        Raises
        ------
        CodecError
            They are not whole numbers of the type.
        """
        if len(raw) % dtype.component_nbytes:
            raise CodecError(f"{len(raw)} bytes are no whole numbers of {dtype.name}")
        return cls(dtype, bits=np.frombuffer(raw, unsigned(dtype)))

    @property
    def bits(self) -> Bits:
        """The bits of each number."""
        if self._bits is None:
            assert self._ordered is not None
            self._bits = np.empty(self._ordered.size, unsigned(self.dtype))
            from_ordered(self._ordered, self.dtype, self._bits.data.cast("B"))
        return self._bits

    @property
    def ordered(self) -> Ordered:
        """Integers that sort as the numbers do; differences of them are what deltas store."""
        if self._ordered is None:
            self._ordered = to_ordered(self.bits, self.dtype)
        return self._ordered

    def __len__(self) -> int:
        return len(self.ordered if self._bits is None else self._bits)

    def first(self, count: int) -> Numbers:
        """So many from the start, zeros behind the last."""
        size = len(self)
        if count == size:
            return self
        if count < size:
            bits, ordered = (None if form is None else form[:count] for form in (self._bits, self._ordered))
            return Numbers(self.dtype, bits=bits, ordered=ordered)
        padded = np.zeros(count, unsigned(self.dtype))
        padded[:size] = self.bits
        return Numbers(self.dtype, bits=padded)

    def read_as(self, dtype: DType) -> Numbers:
        """The same bytes as numbers of a type: content is shared by bytes, whatever type it was stored as first."""
        return self if dtype == self.dtype else Numbers.of(self.bits.data.cast("B"), dtype)

    def write(self, out: memoryview) -> None:
        """Write their bits to a buffer of their size."""
        if self._bits is None:
            from_ordered(self.ordered, self.dtype, out)
        else:
            out[:] = self._bits.data.cast("B")
