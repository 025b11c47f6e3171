"""A GGUF file, opened strictly and read piece by piece."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arc_halo.errors import GGUFError
from arc_halo.formats.gguf_config import config_of, token_texts
from arc_halo.formats.gguf_header import GGUFHeader, gaps, parse_header
from arc_halo.formats.weights_file import WeightsFile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from arc_halo.formats.gguf_values import Value

__all__ = ["SUFFIX", "GGUFFile"]

SUFFIX = ".gguf"


class GGUFFile(WeightsFile):
    """A GGUF file of version 2 or 3: its header checked, its tensors read on request into the caller's memory.

    A context manager. Its methods may be called by several threads at once.

    Parameters
    ----------
    path
        A regular file, or a link to one.

    Raises
    ------
    PickleRefused
        The file is a pickle, whatever its name.
    GGUFError
        The file cannot be opened, breaks the format, is big-endian, or has anything but zeros between its tensors;
        the message says where. Lengths and counts are refused before memory is taken for them.
    """

    error = GGUFError
    suffix = SUFFIX

    header: GGUFHeader
    metadata: Mapping[str, Value]
    """Values by key; arrays, such as vocabularies, stay in `header_bytes`."""

    def config(self) -> dict[str, Any]:
        """What config.json would say of the model, and the metadata under ``gguf``; see `config_of`."""
        return config_of(self.metadata, self.header_bytes)

    def token_texts(self) -> dict[int, str]:
        """Token id -> text; empty when the file has no vocabulary."""
        return token_texts(self.metadata, self.header_bytes)

    def shard_count(self) -> int:
        """Of how many files this is one."""
        count = self.metadata.get("split.count", 1)
        return count if isinstance(count, int) else 1

    def _read_header(self) -> None:
        self.header = parse_header(self._pread_bytes, self.size, str(self.path))
        self.header_bytes = self.header.content
        self.metadata = self.header.metadata
        self.tensors = self.header.tensors
        # Padding is not stored but written anew: what is not zero would be lost.
        for offset, nbytes in gaps(self.header, self.size):
            if self._pread_bytes(offset, nbytes).strip(b"\0"):
                raise GGUFError(
                    f"{self.path}: the {nbytes} bytes of padding from byte {offset} on are not zero; write the file "
                    f"again with the gguf package"
                )
