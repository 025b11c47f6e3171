"""A safetensors file, opened strictly and read piece by piece."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from arc_halo.errors import SafetensorsError
from arc_halo.formats.safetensors_header import (
    LENGTH,
    MAX_HEADER_NBYTES,
    aligned_order,
    build_header,
    parse_header,
)
from arc_halo.formats.weights_file import PICKLE_SUFFIXES, TensorEntry, WeightsFile, refuse_pickle

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PICKLE_SUFFIXES", "SafetensorsFile", "TensorEntry", "aligned_order", "build_header", "refuse_pickle"]


class SafetensorsFile(WeightsFile):
    """A safetensors file: its header checked, its tensors read on request into the caller's memory.

    A context manager. Its methods may be called by several threads at once.

    Parameters
    ----------
    path
        A regular file, or a link to one.

    Raises
    ------
    PickleRefused
        The file is a pickle, whatever its name.
    SafetensorsError
        The file cannot be opened, or breaks the format; the message says where. The header is refused by its length
        before memory is taken for it.
    """

    error = SafetensorsError
    suffix = ".safetensors"

    header_bytes: bytes
    """The length and the JSON exactly as in the file: its bytes up to the first tensor's."""
    metadata: Mapping[str, str]
    """The free-form strings of ``__metadata__``."""

    def _read_header(self) -> None:
        if self.size < LENGTH.size:
            raise SafetensorsError(
                f"{self.path} has {self.size} bytes, too few for the header's length (8); fetch the file again"
            )
        (length,) = LENGTH.unpack(self._pread_bytes(0, LENGTH.size))
        data_start = LENGTH.size + length
        if not 0 < length <= MAX_HEADER_NBYTES or data_start > self.size:
            raise SafetensorsError(
                f"{self.path}: the first eight bytes announce a header of {length} bytes, in a file of {self.size} and "
                f"a format that allows 1 to {MAX_HEADER_NBYTES}; it is cut short or no safetensors file: fetch it again"
            )
        self.header_bytes = self._pread_bytes(0, data_start)
        metadata, tensors = parse_header(self.header_bytes, self.size - data_start, str(self.path))
        self.metadata = MappingProxyType(metadata)
        self.tensors = MappingProxyType(tensors)
