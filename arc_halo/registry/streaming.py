"""Tensors as blocks of rows: out of the store, and what is computed from them on its way back."""

from __future__ import annotations

import os
from math import prod
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Self

import numpy as np

from arc_halo.errors import TensorError
from arc_halo.registry.writing import write_errors
from arc_halo.store.connections import Reading
from arc_halo.store.get import Part, iter_pieces, load_manifests

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from sqlalchemy.orm import Session

    from arc_halo.dtypes import DType
    from arc_halo.store import Wanted
    from arc_halo.store.get import Manifest, Piece

BLOCK_NBYTES = 1 << 20
_WHERE = "a temporary file (in TMPDIR)"


def read_blocks(session: Session, *wanted: Wanted) -> Iterator[tuple[np.ndarray, ...]]:
    """Matrices of consecutive rows of tensors, an equal number of rows of each, about a mebibyte of them at a time.

    A row is the last axis; the axes before it are flattened. It is never cut, so a row is the least that is held. Rows
    of types in blocks are bytes.

    Raises
    ------
    TensorError
        The tensors differ in their number of rows.
    CorruptionError
        Stored bytes are not those that were written.
    """
    connect = Reading(session)
    manifests = load_manifests(connect, wanted)
    counts = {prod(each.layout.shape[:-1]) for each in manifests}
    if len(counts) != 1:
        raise TensorError(f"{', '.join(repr(each.name) for each in wanted)} have not the same number of rows")
    (count,) = counts
    tensors = [_Rows(each, iter_pieces(connect, [Part(each, range(len(each.layout)))])) for each in manifests]
    step = max(1, BLOCK_NBYTES // max(1, *(each.row_nbytes for each in tensors)))
    for first in range(0, count, step):
        yield tuple(each.take(min(step, count - first)) for each in tensors)


def read_numbers(session: Session, *wanted: Wanted) -> Iterator[tuple[np.ndarray, ...]]:
    """Consecutive numbers of tensors of one size, equally many of each, at most about a mebibyte of them at a time.

    As `read_blocks`, but rows are cut: what is done to each number by itself needs no more memory for a long row.

    Raises
    ------
    TensorError
        The tensors differ in their number of elements, or are of types without numbers of their own.
    CorruptionError
        Stored bytes are not those that were written.
    """
    connect = Reading(session)
    manifests = load_manifests(connect, wanted)
    counts = {prod(each.layout.shape) for each in manifests}
    if len(counts) != 1 or any(each.layout.dtype.numpy is None for each in manifests):
        raise TensorError(f"{', '.join(repr(each.name) for each in wanted)} are not equally many numbers")
    (count,) = counts
    tensors = [_Rows(each, iter_pieces(connect, [Part(each, range(len(each.layout)))]), 1) for each in manifests]
    step = BLOCK_NBYTES // max(each.row_nbytes for each in tensors)
    for first in range(0, count, step):
        yield tuple(each.take(min(step, count - first)).reshape(-1) for each in tensors)


class _Rows:
    """The rows of a tensor whose pieces arrive in order, wherever those are cut; by default its last axis is one."""

    def __init__(self, manifest: Manifest, pieces: Iterator[Piece], columns: int | None = None) -> None:
        self._dtype = manifest.layout.dtype
        last = manifest.layout.shape[-1] if manifest.layout.shape else 1
        self._columns = last if columns is None else columns
        row_nbytes = self._dtype.nbytes(self._columns)
        assert row_nbytes is not None  # of whole elements, or blocks
        self.row_nbytes = row_nbytes
        self._pieces = pieces
        self._rest = memoryview(b"")

    def take(self, count: int) -> np.ndarray:
        buffer = np.empty(count * self.row_nbytes, np.uint8)
        done = 0
        while done < buffer.size:
            if not self._rest:
                self._rest = next(self._pieces).raw
            part = self._rest[: buffer.size - done]
            buffer[done : done + len(part)] = part
            self._rest = self._rest[len(part) :]
            done += len(part)
        return self._dtype.as_array(buffer, (count, self._columns))


class Spool:
    """A temporary file of new tensors, which the store reads twice and from several threads.

    It lies where Python puts temporary files (``TMPDIR``), has no name there, and is gone when it is closed, or when
    the process ends. It takes the place of the new tensors on that disk; in memory they are never.

    Raises
    ------
    FileNotWritten
        There is no space there.
    """

    def __init__(self) -> None:
        with write_errors(_WHERE):
            self._file = TemporaryFile(buffering=0)  # noqa: SIM115  # closed by close()
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the place back."""
        self._file.close()

    def tensor(self, name: str, dtype: DType, shape: tuple[int, ...]) -> SpooledTensor:
        """Make place for a tensor, to be filled from its first byte to its last."""
        made = SpooledTensor(self._file.fileno(), self._end, name, dtype, shape)
        self._end += made.nbytes
        return made


class SpooledTensor:
    """A tensor in a spool: a source for the store when all its blocks are there."""

    def __init__(self, fd: int, offset: int, name: str, dtype: DType, shape: tuple[int, ...]) -> None:
        assert dtype.numpy is not None
        self._fd = fd
        self._offset = offset
        self._written = 0
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.nbytes = prod(shape) * dtype.numpy.itemsize

    def append(self, block: np.ndarray) -> None:
        """Write the rows that follow those written before."""
        stored = np.ascontiguousarray(block, self.dtype.numpy).reshape(-1).view(np.uint8).data
        assert self._written + len(stored) <= self.nbytes
        while len(stored):
            with write_errors(_WHERE):
                count = os.pwrite(self._fd, stored, self._offset + self._written)
            self._written += count
            stored = stored[count:]

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Read from the file."""
        assert self._written == self.nbytes
        done = 0
        while done < len(buffer):
            done += os.preadv(self._fd, [buffer[done:]], self._offset + start + done)
