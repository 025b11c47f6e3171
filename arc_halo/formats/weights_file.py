"""A file of weights, opened once and read piece by piece."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from arc_halo.errors import PickleRefused, SliceError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Any, Self

    from arc_halo.dtypes import DType
    from arc_halo.errors import FormatError

PICKLE_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib"})

_ZIP_MAGIC = b"PK"
_PICKLE_PROTOCOLS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_HEAD_NBYTES = 9


class TensorEntry(NamedTuple):
    """One tensor of a file; ``offset`` is the place of its first byte in the file, ``nbytes`` their number."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class WeightsFile(ABC):
    """A file of weights: its header checked, its tensors read on request into the caller's memory.

    A context manager. Its methods may be called by several threads at once.
    """

    error: ClassVar[type[FormatError]]
    """What is raised for a file that breaks its format."""
    suffix: ClassVar[str]

    path: Path
    size: int
    """Bytes of the whole file, at the time it was opened."""
    header_bytes: bytes
    """The header exactly as in the file: its bytes up to the first tensor's."""
    metadata: Mapping[str, Any]
    """What the header says beside the tensors."""
    tensors: Mapping[str, TensorEntry]
    """Every tensor by name, in the header's order."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._fd = self._open()
        try:
            self.size = os.fstat(self._fd).st_size
            refuse_pickle_bytes(self.path, self._pread_bytes(0, min(_HEAD_NBYTES, self.size)))
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
        return f"{type(self).__name__}({str(self.path)!r}, {len(self.tensors)} tensors, {self.size} bytes)"

    def close(self) -> None:
        """Close the file; reading from it is an error afterwards."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def in_data_order(self) -> list[TensorEntry]:
        """Every tensor, in the order of the file's bytes."""
        return in_data_order(self.tensors)

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
        FormatError
            The file has become shorter since it was opened, or cannot be read.
        """
        view = memoryview(buffer)
        if not 0 <= start <= start + view.nbytes <= entry.nbytes:
            raise SliceError(
                f"{self.path}: bytes {start}:{start + view.nbytes} of {entry.name!r}; ask within 0:{entry.nbytes}"
            )
        if view.nbytes:
            self._pread(view.cast("B"), entry.offset + start)

    @abstractmethod
    def _read_header(self) -> None:
        """Set ``header_bytes``, ``metadata`` and ``tensors``, or raise `error`."""

    def _pread(self, view: memoryview, offset: int) -> None:
        done = 0
        while done < view.nbytes:
            try:
                count = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as error:
                raise self.error(f"{self.path} cannot be read: {error.strerror}; fetch the file again") from error
            if not count:
                raise self.error(
                    f"{self.path} was truncated while being read: it ends at byte {offset + done} and had {self.size}; "
                    f"fetch the file again"
                )
            done += count

    def _pread_bytes(self, offset: int, nbytes: int) -> bytes:
        buffer = bytearray(nbytes)
        self._pread(memoryview(buffer), offset)
        return bytes(buffer)

    def _open(self) -> int:
        """Open a regular file; not to block on a named pipe, it is looked at before anything is read."""
        refuse_pickle_name(self.path)
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise self.error(
                f"{self.path} cannot be opened: {error.strerror}; check its path and permissions"
            ) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise self.error(f"{self.path} is no regular file; give the path of a {self.suffix} file")
        return fd


def in_data_order(tensors: Mapping[str, TensorEntry]) -> list[TensorEntry]:
    """Tensors in the order of their file's bytes, those without bytes before the one at the same place."""
    return sorted(tensors.values(), key=lambda entry: (entry.offset, entry.nbytes))


def refuse_pickle(path: Path) -> None:
    """Refuse a file that is a pickle by its name or by its first bytes; the file is not opened for its name.

    Raises
    ------
    PickleRefused
        It is one.
    """
    refuse_pickle_name(path)
    if path.is_file():
        with path.open("rb") as file:
            refuse_pickle_bytes(path, file.read(_HEAD_NBYTES))


def refuse_pickle_name(path: Path) -> None:
    """Refuse a file whose name is that of a pickle."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise PickleRefused(_pickle_advice(path, f"files named {path.suffix} are pickles"))


def refuse_pickle_bytes(path: Path, head: bytes) -> None:
    """Refuse a pickle, or the zip archive that torch puts one in.

    The length of a true safetensors header may begin like one, but only that is followed by ``{``.
    """
    if head[_HEAD_NBYTES - 1 :] != b"{" and head.startswith((_ZIP_MAGIC, *_PICKLE_PROTOCOLS)):
        raise PickleRefused(_pickle_advice(path, "its first bytes are a pickle's or a zip archive's"))


def _pickle_advice(path: Path, reason: str) -> str:
    return (
        f"{path} is refused: {reason}, and a pickle is a program that runs when it is read; where you trust it, "
        f"convert it: safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
    )
