"""Files on this machine: written whole or not at all, and errors that say which and what to do."""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from arc_halo.errors import ArcHaloError, FileNotWritten

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name when it is complete, and leaves nothing behind when it is not.

    Raises
    ------
    FileNotWritten
        There is no space, or no right to write there.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("xb") as file:
                yield file
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def write_errors(place: Path | str) -> Iterator[None]:
    """Translate the system's errors; ours, of which some are the system's, too, are none of a file's."""
    try:
        yield
    except ArcHaloError:
        raise
    except OSError as error:
        raise FileNotWritten(
            f"{place} cannot be written: {error.strerror}; make space or get the right to write there, or choose "
            "another place, then try again",
            error.errno,
        ) from error
