"""A safetensors file, opened strictly and read piece by piece."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from arc_halo.errors import PickleRefused, SafetensorsError, SliceError
from arc_halo.formats.safetensors_header import (
    LENGTH,
    MAX_HEADER_NBYTES,
    TensorEntry,
    aligned_order,
    build_header,
    parse_header,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

__all__ = ["PICKLE_SUFFIXES", "SafetensorsFile", "TensorEntry", "aligned_order", "build_header", "refuse_pickle"]

PICKLE_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib"})

_ZIP_MAGIC = b"PK"
_PICKLE_PROTOCOLS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_HEAD_NBYTES = LENGTH.size + 1


def refuse_pickle(path: Path) -> None:
    """Refuse a file that is a pickle by its name or by its first bytes; the file is not opened for its name.

    Raises
    ------
    PickleRefused
        It is one.
    """
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise PickleRefused(_pickle_advice(path, f"files named {path.suffix} are pickles"))
    if path.is_file():
        with path.open("rb") as file:
            _refuse_pickle_bytes(path, file.read(_HEAD_NBYTES))


class SafetensorsFile:
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

    path: Path
    size: int
    """Bytes of the whole file, at the time it was opened."""
    header_bytes: bytes
    """The length and the JSON exactly as in the file: its bytes up to the first tensor's."""
    metadata: Mapping[str, str]
    """The free-form strings of ``__metadata__``."""
    tensors: Mapping[str, TensorEntry]
    """Every tensor by name, in the header's order."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._fd = _open(self.path)
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SafetensorsFile({str(self.path)!r}, {len(self.tensors)} tensors, {self.size} bytes)"

    def close(self) -> None:
        """Close the file; reading from it is an error afterwards."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def in_data_order(self) -> list[TensorEntry]:
        """Every tensor, in the order of the file's bytes."""
        return sorted(self.tensors.values(), key=lambda entry: (entry.offset, entry.nbytes))

    def read_into(self, entry: TensorEntry, start: int, buffer: bytearray | memoryview) -> None:
        """Fill a buffer with a tensor's bytes.

        Parameters
        ----------
        entry
            One of `tensors`.
        start
            The first byte to read, counted from the tensor's own start.
        buffer
            Writable and contiguous; all of it is filled.

        Raises
        ------
        SliceError
            The bytes are not all inside the tensor.
        SafetensorsError
            The file has become shorter since it was opened, or cannot be read.
        """
        view = memoryview(buffer)
        if not 0 <= start <= start + view.nbytes <= entry.nbytes:
            raise SliceError(
                f"{self.path}: bytes {start}:{start + view.nbytes} of {entry.name!r}; ask within 0:{entry.nbytes}"
            )
        if view.nbytes:
            self._pread(view.cast("B"), entry.offset + start)

    def _pread(self, view: memoryview, offset: int) -> None:
        done = 0
        while done < view.nbytes:
            try:
                count = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as error:
                raise SafetensorsError(f"{self.path} cannot be read: {error.strerror}; fetch the file again") from error
            if not count:
                raise SafetensorsError(
                    f"{self.path} was truncated while being read: it ends at byte {offset + done} and had {self.size}; "
                    f"fetch the file again"
                )
            done += count

    def _pread_bytes(self, nbytes: int) -> bytes:
        buffer = bytearray(nbytes)
        self._pread(memoryview(buffer), 0)
        return bytes(buffer)

    def _read_header(self) -> None:
        self.size = os.fstat(self._fd).st_size
        head = self._pread_bytes(min(_HEAD_NBYTES, self.size))
        _refuse_pickle_bytes(self.path, head)
        if self.size < LENGTH.size:
            raise SafetensorsError(
                f"{self.path} has {self.size} bytes, too few for the header's length (8); fetch the file again"
            )
        (length,) = LENGTH.unpack_from(head)
        data_start = LENGTH.size + length
        if not 0 < length <= MAX_HEADER_NBYTES or data_start > self.size:
            raise SafetensorsError(
                f"{self.path}: the first eight bytes announce a header of {length} bytes, in a file of {self.size} and "
                f"a format that allows 1 to {MAX_HEADER_NBYTES}; it is cut short or no safetensors file: fetch it again"
            )
        self.header_bytes = self._pread_bytes(data_start)
        metadata, tensors = parse_header(self.header_bytes, self.size - data_start, str(self.path))
        self.metadata = MappingProxyType(metadata)
        self.tensors = MappingProxyType(tensors)


def _open(path: Path) -> int:
    """Open a regular file; not to block on a named pipe, it is looked at before anything is read."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise PickleRefused(_pickle_advice(path, f"files named {path.suffix} are pickles"))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SafetensorsError(f"{path} cannot be opened: {error.strerror}; check its path and permissions") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SafetensorsError(f"{path} is no regular file; give the path of a .safetensors file")
    return fd


def _refuse_pickle_bytes(path: Path, head: bytes) -> None:
    """Refuse a pickle, or the zip archive that torch puts one in.

    The length of a true header may begin like one, but only that is followed by ``{``.
    """
    if head[LENGTH.size :] != b"{" and head.startswith((_ZIP_MAGIC, *_PICKLE_PROTOCOLS)):
        raise PickleRefused(_pickle_advice(path, "its first bytes are a pickle's or a zip archive's"))


def _pickle_advice(path: Path, reason: str) -> str:
    return (
        f"{path} is refused: {reason}, and a pickle is a program that runs when it is read; where you trust it, "
        f"convert it: safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
    )
