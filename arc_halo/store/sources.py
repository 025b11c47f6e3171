"""Where the bytes of a tensor come from: an array in memory or a span of a safetensors file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from arc_halo.dtypes import DType, by_name, of_array
from arc_halo.formats.safetensors import SafetensorsFile, TensorEntry


class TensorSource(Protocol):
    """A named tensor whose bytes can be read more than once, any span of them."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> DType: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill the buffer with the bytes from ``start``, little-endian and in C order."""


@dataclass(frozen=True)
class FileSource:
    """A tensor in a safetensors file."""

    file: SafetensorsFile
    entry: TensorEntry
    name: str = field(init=False)
    dtype: DType = field(init=False)
    shape: tuple[int, ...] = field(init=False)
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        for attribute in ("name", "shape", "nbytes"):
            object.__setattr__(self, attribute, getattr(self.entry, attribute))
        object.__setattr__(self, "dtype", by_name(self.entry.dtype))

    def read_into(self, start: int, buffer: memoryview) -> None:
        self.file.read_into(self.entry, start, buffer)


class ArraySource:
    """An array in memory, of any strides and byte order.

    Raises
    ------
    TensorError
        The array's dtype has no name in the safetensors format.
    """

    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name = name
        self.dtype = of_array(array)
        self.shape = tuple(array.shape)
        self.nbytes = array.nbytes
        stored = np.ascontiguousarray(array, dtype=self.dtype.numpy)
        self._bytes = memoryview(stored.reshape(-1).view(np.uint8)) if array.size else memoryview(b"")

    def read_into(self, start: int, buffer: memoryview) -> None:
        buffer[:] = self._bytes[start : start + len(buffer)]
