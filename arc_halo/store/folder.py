"""A folder as an object store: in plain system calls, so that it works in forked processes, too."""

from __future__ import annotations

import datetime as dt
import os
import secrets
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from arc_halo.codecs.abc import BytesLike

UNFINISHED: Final = "#"
"""Stands between a key and a number in the name of a file that has not all its bytes yet."""


class Blob(NamedTuple):
    """An object in the store."""

    location: str
    nbytes: int
    modified_at: dt.datetime


class Folder:
    """Objects as files, flushed to the disk with their names; the errors are those of the system.

    Parameters
    ----------
    root
        Made by the first `put`: a reader of a folder that is not mounted, or of another than was meant, makes none.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._durable: set[Path] = set()

    @property
    def is_there(self) -> bool:
        """Whether there is such a folder now."""
        return self._root.is_dir()

    def put(self, location: str, payload: BytesLike) -> None:
        """Write a new object, whole under its name or not at all."""
        path = self._root / location
        building = path.with_name(f"{path.name}{UNFINISHED}{secrets.randbits(32)}")
        _make(path.parent)
        if path.parent not in self._durable:
            _sync(self._root)  # another process may have made it a moment ago
            self._durable.add(path.parent)
        try:
            with building.open("xb", buffering=0) as file:
                rest = memoryview(payload).cast("B")
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            building.rename(path)
        except BaseException:
            building.unlink(missing_ok=True)
            raise
        _sync(path.parent)

    def get(self, location: str, nbytes: int) -> bytes:
        """The first bytes of an object, fewer if it has no more."""
        with (self._root / location).open("rb") as file:
            return file.read(nbytes)

    def delete(self, location: str) -> None:
        """Remove an object."""
        (self._root / location).unlink()

    def blobs(self, prefix: str | None) -> Iterator[Blob]:
        """All files below the folder, or those below one in it, unfinished ones among them."""
        for folder, _, names in os.walk(self._root / (prefix or ""), onerror=_raise):
            for name in names:
                path = self._root / folder / name
                try:
                    found = path.stat()
                except FileNotFoundError:
                    continue  # deleted meanwhile, or a link to nowhere
                modified_at = dt.datetime.fromtimestamp(found.st_mtime, dt.UTC)
                yield Blob(path.relative_to(self._root).as_posix(), found.st_size, modified_at)


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # no object begins so
        raise error


def _make(folder: Path) -> None:
    """Make a folder whose name survives a power cut."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
