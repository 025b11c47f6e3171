"""Decoded tensors on this machine's disk, by their digests: what was loaded once is mapped the next time."""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import fasteners  # type: ignore[import-untyped]  # ships no types
import psutil  # type: ignore[import-untyped]  # ships no types

from arc_halo.codecs.digest import TensorHasher
from arc_halo.dtypes import DTYPES
from arc_halo.formats.safetensors_header import build_header
from arc_halo.store.mapping import map_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy as np

    from arc_halo.codecs.abc import BytesLike
    from arc_halo.dtypes import DType

NAME: Final = "tensor"
"""The one tensor of each file, which is a safetensors file that any tool opens."""
_USED_SECONDS: Final = 3600
_ABANDONED_SECONDS: Final = 3600
_LOCK: Final = "eviction.lock"


@dataclass(frozen=True, slots=True)
class CacheUse:
    """What is in the cache, and what may be."""

    files: int
    nbytes: int
    max_nbytes: int


class ReadCache:
    """A folder of decoded tensors, each a file named by its digest, bounded in size; several processes may share it.

    A file is complete under its name: it is written under another one, from bytes whose chunks were compared with
    their digests, and renamed. It is never changed, so a map of it cannot lose its end; removing it leaves maps as
    they are.

    A map is trusted as any file of weights is, as long as nobody but its owner could write it and the machine has not
    stopped since. Nothing is flushed, so a machine that stops may leave files of the right size and other bytes: the
    first use after a start compares the digest, and notes it in the file's time. A file of another user, or that
    others may write to, is compared at each use.

    Parameters
    ----------
    folder
        Made if it is not there, for its owner alone.
    max_nbytes
        Beyond it the files that were not used for longest go.
    """

    def __init__(self, folder: Path, max_nbytes: int) -> None:
        self.folder = folder
        self.max_nbytes = max_nbytes

    def __repr__(self) -> str:
        return f"ReadCache({str(self.folder)!r}, {self.max_nbytes})"

    def path(self, digest: bytes) -> Path:
        """Where the tensor of a digest is, or would be."""
        return self.folder / digest[:1].hex() / f"{digest.hex()}.safetensors"

    def file_nbytes(self, digest: bytes, dtype: DType, shape: tuple[int, ...]) -> int:
        """Bytes of the file of a tensor."""
        return len(_header(digest, dtype, shape)) + (dtype.nbytes(prod(shape)) or 0)

    def get(self, digest: bytes, dtype: DType, shape: tuple[int, ...], *, verify: bool = False) -> np.ndarray | None:
        """A read-only map of a tensor; None if it is not there. What is damaged is removed.

        Parameters
        ----------
        verify
            Read all of it and compare the digest, whoever wrote it: the speed of a hash in the place of that of a map.
        """
        path = self.path(digest)
        header = _header(digest, dtype, shape)
        nbytes = len(header) + (dtype.nbytes(prod(shape)) or 0)
        try:
            with path.open("rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                is_whole = status.st_size == nbytes and file.read(len(header)) == header
                raw = map_file(file.fileno(), nbytes)[len(header) :] if is_whole else None
        except OSError:  # not there, or not for us to read: as good as none
            return None
        is_compared = verify or not _is_trusted(status)
        if raw is None or (is_compared and _digest(raw, dtype, shape) != digest):
            with suppress(OSError):  # somebody else's folder may be read-only
                path.unlink()
            return None
        if is_compared or time.time() - status.st_mtime > _USED_SECONDS:
            with suppress(OSError):
                os.utime(path)
        return dtype.as_array(raw, shape)

    def put(self, digest: bytes, dtype: DType, shape: tuple[int, ...], pieces: Iterable[BytesLike]) -> None:
        """Write a tensor from its bytes in order, which were compared with their digests.

        Written, not mapped: a disk that is full is an error of this process, not its end.

        Raises
        ------
        OSError
            The folder cannot be written to; nothing is left behind.
        """
        path = self.path(digest)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        partial = path.with_name(f"{uuid4().hex}.partial")
        try:
            with open(partial, "xb", opener=_open_private) as file:  # Path.open takes no opener
                file.write(_header(digest, dtype, shape))
                file.writelines(pieces)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def evict(self, room: int = 0) -> int:
        """Remove what was not used for longest until the rest fits, and what writers that were killed left behind.

        Parameters
        ----------
        room
            Bytes that are about to be added.

        Returns
        -------
        int
            Bytes of tensors that were removed.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with fasteners.InterProcessLock(self.folder / _LOCK):
            self._remove_abandoned()
            files = sorted(self._files("safetensors"), key=lambda each: each[1].st_mtime)
            over = sum(status.st_size for _, status in files) + room - self.max_nbytes
            removed = 0
            for path, status in files:
                if removed >= over:
                    break
                path.unlink(missing_ok=True)
                removed += status.st_size
        return removed

    def clear(self) -> CacheUse:
        """Remove everything; returns what was there. Maps in use stay readable."""
        use = self.use()
        for path, _ in list(self._files("safetensors")):
            path.unlink(missing_ok=True)
        self._remove_abandoned()
        return use

    def use(self) -> CacheUse:
        """Count files and bytes."""
        sizes = [status.st_size for _, status in self._files("safetensors")]
        return CacheUse(len(sizes), sum(sizes), self.max_nbytes)

    def _remove_abandoned(self) -> None:
        for path, status in list(self._files("partial")):
            if time.time() - status.st_mtime > _ABANDONED_SECONDS:  # who writes touches it every few seconds
                path.unlink(missing_ok=True)

    def _files(self, suffix: str) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob(f"[0-9a-f][0-9a-f]/*.{suffix}"):
            with suppress(FileNotFoundError):  # another process removed it
                yield path, path.stat()


def _is_trusted(status: os.stat_result) -> bool:
    """Whether it was written, or compared, since this machine started, and by nobody else."""
    is_private = status.st_uid in (os.geteuid(), 0) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return is_private and status.st_mtime > _started_at()


@cache
def _started_at() -> float:
    return float(psutil.boot_time())


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _header(digest: bytes, dtype: DType, shape: tuple[int, ...]) -> bytes:
    if not dtype.is_block:
        return build_header([(NAME, dtype, shape)], {"digest": digest.hex()})
    row_nbytes = dtype.nbytes(shape[-1])
    assert row_nbytes is not None  # the store takes whole blocks only
    return build_header(
        [(NAME, DTYPES["U8"], (*shape[:-1], row_nbytes))], {"digest": digest.hex(), "dtype": dtype.name}
    )


def _digest(raw: np.ndarray, dtype: DType, shape: tuple[int, ...]) -> bytes:
    hasher = TensorHasher(dtype, shape)
    hasher.update(raw.data)
    return hasher.digest()
