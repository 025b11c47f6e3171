"""Where the bytes of a tensor come from: an array in memory or a span of a file of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from arc_halo.dtypes import of_array
from arc_halo.errors import TensorError

if TYPE_CHECKING:
    from arc_halo.dtypes import DType
    from arc_halo.formats.weights_file import TensorEntry, WeightsFile


class TensorSource(Protocol):
    """A named tensor whose bytes can be read more than once, any span of them, by several threads."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    nbytes: int

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill the buffer with the bytes from ``start``, little-endian and in C order."""


class FileSource:
    """A tensor in a file of weights."""

    def __init__(self, file: WeightsFile, entry: TensorEntry) -> None:
        self._file = file
        self._entry = entry
        self.name, self.dtype, self.shape, _, self.nbytes = entry

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Read from the file; see `WeightsFile.read_into` for what may be wrong with it."""
        self._file.read_into(self._entry, start, buffer)


class ArraySource:
    """An array in memory, of any strides and byte order.

    Raises
    ------
    TensorError
        It is no array, or its dtype has no name in the safetensors format.
    """

    def __init__(self, name: str, array: object) -> None:
        if not isinstance(array, np.ndarray | np.generic):
            kind = f"{type(array).__module__}.{type(array).__name__}"
            raise TensorError(f"tensor {name!r} is a {kind}; give a numpy array")
        values = np.asarray(array)
        self.name = name
        try:
            self.dtype = of_array(values)
        except TensorError as error:
            raise TensorError(f"tensor {name!r}: {error}") from None
        self.shape = values.shape
        self.nbytes = values.nbytes
        stored = np.ascontiguousarray(values, dtype=self.dtype.numpy)
        self._bytes = stored.reshape(-1).view(np.uint8).data if values.size else memoryview(b"")

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Copy from the array."""
        buffer[:] = self._bytes[start : start + len(buffer)]
