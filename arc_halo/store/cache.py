"""Decoded tensors on this machine's disk, by their digests: what was loaded once is mapped the next time."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import fasteners  # type: ignore[import-untyped]  # ships no types
import numpy as np

from arc_halo.codecs.digest import TensorHasher
from arc_halo.formats.safetensors_header import build_header

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from arc_halo.codecs.abc import BytesLike
    from arc_halo.dtypes import DType

NAME: Final = "tensor"
"""The one tensor of each file, which is a safetensors file that any tool opens."""
_USED_SECONDS: Final = 3600
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
    they are. What is read by map later is trusted to the file system, as any file of weights is; `get` can be asked to
    compare the digest once more.

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

    def get(self, digest: bytes, dtype: DType, shape: tuple[int, ...], *, verify: bool = False) -> np.ndarray | None:
        """A read-only map of a tensor; None if it is not there. What is damaged is removed.

        Parameters
        ----------
        verify
            Read all of it and compare the digest: the speed of a hash in the place of that of a map.
        """
        path = self.path(digest)
        header = _header(digest, dtype, shape)
        nbytes = dtype.nbytes(int(np.prod(shape, dtype=object)))
        try:
            status = path.stat()
            with path.open("rb") as file:
                is_whole = file.read(len(header)) == header and status.st_size == len(header) + (nbytes or 0)
            if not is_whole:
                path.unlink(missing_ok=True)
                return None
            raw = np.memmap(path, np.uint8, "r", len(header)) if nbytes else np.empty(0, np.uint8)
        except OSError:  # not there, or not for us to read: as good as none
            return None
        if verify and _digest(raw, dtype, shape) != digest:
            path.unlink(missing_ok=True)
            return None
        if time.time() - status.st_mtime > _USED_SECONDS:
            with suppress(OSError):  # somebody else's folder may be read-only
                os.utime(path)
        return raw if dtype.numpy is None else raw.view(dtype.numpy).reshape(shape)

    def put(self, digest: bytes, dtype: DType, shape: tuple[int, ...], pieces: Iterable[BytesLike]) -> None:
        """Write a tensor from its bytes in order, which were compared with their digests.

        Raises
        ------
        OSError
            The folder cannot be written to; nothing is left behind.
        """
        path = self.path(digest)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_name(f"{uuid4().hex}.partial")
        try:
            with partial.open("xb") as file:
                partial.chmod(0o600)
                file.write(_header(digest, dtype, shape))
                for piece in pieces:
                    file.write(piece)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def evict(self) -> int:
        """Remove what was not used for longest until the rest fits; returns the bytes removed."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with fasteners.InterProcessLock(self.folder / _LOCK):
            files = sorted(self._files(), key=lambda each: each[1].st_mtime)
            over = sum(status.st_size for _, status in files) - self.max_nbytes
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
        for path, _ in list(self._files()):
            path.unlink(missing_ok=True)
        return use

    def use(self) -> CacheUse:
        """Count files and bytes."""
        sizes = [status.st_size for _, status in self._files()]
        return CacheUse(len(sizes), sum(sizes), self.max_nbytes)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*.safetensors"):
            with suppress(FileNotFoundError):  # another process removed it
                yield path, path.stat()


def _header(digest: bytes, dtype: DType, shape: tuple[int, ...]) -> bytes:
    return build_header([(NAME, dtype, shape)], {"digest": digest.hex()})


def _digest(raw: np.ndarray, dtype: DType, shape: tuple[int, ...]) -> bytes:
    hasher = TensorHasher(dtype, shape)
    hasher.update(raw.data)
    return hasher.digest()
