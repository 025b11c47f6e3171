"""Points on this machine's disk while the database does not take them: the files, and the folder of an attempt."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import struct
import threading
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from arc_halo.codecs.digest import payload_checksum
from arc_halo.errors import FileNotWritten, SpoolError
from arc_halo.training.keys import Goal, SeriesKey
from arc_halo.training.points import POINT
from arc_halo.training.processes import ProcessIdentity

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from io import FileIO
    from pathlib import Path

# A file is the signature and records; a record is its length and checksum, then a byte that says its kind, and the
# rest. The length counts the kind. Numbers are little-endian.
SIGNATURE: Final = b"ARCSPOL\x01"
"""The last byte is the version."""
_RECORD: Final = struct.Struct("<Iq")
_HEADER, _KEYS, _POINTS, _OUTCOME = b"H", b"K", b"P", b"E"
_STORED: Final = POINT.newbyteorder("<")
SEGMENT_NBYTES: Final = 8 << 20
"""A segment that has grown so far is followed by another; each is replayed in one transaction."""
_SUFFIX: Final = ".points"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SpoolHeader:
    """Whose points a segment holds.

    Attributes
    ----------
    attempt_id
        The attempt that recorded them.
    owner
        Identity of its database, 16 hexadecimal digits.
    process
        Who wrote the segment.
    goals
        Which values of a metric are better, by its name.
    """

    attempt_id: uuid.UUID
    owner: str
    process: ProcessIdentity
    goals: Mapping[str, Goal] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended, where the database could not be told.

    Attributes
    ----------
    status
        completed, failed or stopped.
    error
        What it failed of.
    step, epoch
        The last that were logged.
    """

    status: str
    error: str | None = None
    step: int | None = None
    epoch: float | None = None


@dataclass(slots=True)
class Segment:
    """What one file holds, as far as it is whole.

    Attributes
    ----------
    points
        In the order they were logged; ``series_id`` is an index into ``keys``.
    torn_nbytes
        Bytes at the end that are no whole record: their writer was killed.
    """

    header: SpoolHeader
    keys: list[SeriesKey]
    points: np.ndarray
    outcome: Outcome | None
    torn_nbytes: int


def read_segment(path: Path) -> Segment:
    """Read a file up to the first record that is not whole.

    Raises
    ------
    SpoolError
        It does not begin as a spool file does, is of a newer version, or a whole record of it makes no sense.
    OSError
        It cannot be read.
    """
    raw = path.read_bytes()
    if raw[: len(SIGNATURE)] != SIGNATURE:
        raise SpoolError(f"{path} is no spool file of this version; move it away if nobody knows what it is")
    header, keys, parts, outcome = None, list[SeriesKey](), list[np.ndarray](), None
    end = len(SIGNATURE)
    try:
        for kind, body, end in _records(raw):  # noqa: B007  the last end is where the torn tail begins
            if kind == _HEADER:
                header = _header(json.loads(body))
            elif kind == _KEYS:
                keys += [SeriesKey(*key) for key in json.loads(body)]
            elif kind == _POINTS:
                parts.append(np.frombuffer(body, _STORED))
            elif kind == _OUTCOME:
                outcome = Outcome(**json.loads(body))
            else:
                raise SpoolError(f"{path} has a record of the unknown kind {kind!r}: it was written by a newer version")
    except (ValueError, TypeError, KeyError) as error:
        raise SpoolError(f"{path} holds a record that makes no sense ({error!r}); move it away") from error
    points = np.concatenate(parts, dtype=POINT) if parts else np.empty(0, POINT)
    if header is None or not ((points["series_id"] >= 0) & (points["series_id"] < len(keys))).all():
        raise SpoolError(f"{path} does not say whose points it holds; move it away")
    return Segment(header, keys, points, outcome, len(raw) - end)


def read_or_set_aside(path: Path) -> Segment | None:
    """Read a file; one that makes no sense is renamed, so that it holds up nothing, and None is returned."""
    try:
        return read_segment(path)
    except SpoolError:
        aside = path.with_name(f"{path.name}.damaged")
        _log.exception("points are lost: a file of them is damaged and is kept as %s", aside)
        path.rename(aside)
        return None


def _records(raw: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """Kind, rest and end of each whole record."""
    at = len(SIGNATURE)
    while at + _RECORD.size < len(raw):
        nbytes, checksum = _RECORD.unpack_from(raw, at)
        content = raw[at + _RECORD.size : at + _RECORD.size + nbytes]
        if not nbytes or len(content) < nbytes or payload_checksum(content) != checksum:
            return
        at += _RECORD.size + nbytes
        yield content[:1], content[1:], at


def _header(content: dict[str, Any]) -> SpoolHeader:
    host, boot_id, pid, started_at = content["process"]
    process = ProcessIdentity(str(host), str(boot_id), int(pid), dt.datetime.fromisoformat(started_at))
    return SpoolHeader(uuid.UUID(content["attempt_id"]), str(content["owner"]), process, dict(content["goals"]))


def _json(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


class SegmentWriter:
    """One file that records are appended to; each reaches the operating system before the call returns."""

    def __init__(self, path: Path, header: SpoolHeader) -> None:
        self.path = path
        self.nbytes = 0
        self._keys_written = 0
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # It takes its name when it says whose it is: another process may look through the folder at any time.
        unnamed = path.with_suffix(".begun")
        # Unbuffered: a forked child that ends would write what is buffered here once more.
        self._file: FileIO = open(unnamed, "wb", buffering=0, opener=_open_private)  # noqa: SIM115  closed by close()
        process = header.process
        identity = [process.host, process.boot_id, process.pid, process.started_at.isoformat()]
        content = {"attempt_id": str(header.attempt_id), "owner": header.owner, "process": identity}
        try:
            self._append(SIGNATURE + _record(_HEADER, _json(content | {"goals": dict(header.goals)})))
            unnamed.rename(path)
        except OSError:
            self.close()
            unnamed.unlink(missing_ok=True)
            raise

    def append_points(self, keys: Sequence[SeriesKey], points: np.ndarray) -> None:
        """Append points whose ``series_id`` is the index of their key, and keys that came since the last ones."""
        data = _record(_POINTS, points.astype(_STORED, copy=False).tobytes())
        count = len(keys)
        if count > self._keys_written:
            data = _record(_KEYS, _json(keys[self._keys_written : count])) + data
        self._append(data)
        self._keys_written = max(count, self._keys_written)

    def append_outcome(self, outcome: Outcome) -> None:
        """Append how the attempt ended."""
        content = {"status": outcome.status, "error": outcome.error, "step": outcome.step, "epoch": outcome.epoch}
        self._append(_record(_OUTCOME, _json(content)))

    def close(self) -> None:
        """Append no more."""
        self._file.close()

    def _append(self, data: bytes) -> None:
        """Append all of it or, where the disk is full, nothing: what came behind half a record would not be found."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError:
            with suppress(OSError):
                self._file.truncate(self.nbytes)
                self._file.seek(self.nbytes)
            raise
        self.nbytes += len(data)


def _record(kind: bytes, body: bytes) -> bytes:
    content = kind + body
    return _RECORD.pack(len(content), payload_checksum(content)) + content


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class Spool:
    """What one attempt has on disk: numbered segments, in the order in which their points were logged.

    Nothing is made before the first point has to go there. May be used by several threads, but by one process: each
    rank of an attempt has its own.
    """

    def __init__(self, folder: Path, header: SpoolHeader, rank: int = 0) -> None:
        self.folder = folder / (f"{header.attempt_id}-{rank}" if rank else str(header.attempt_id))
        self._header = header
        self._lock = threading.Lock()
        self._number = 0
        self._current: SegmentWriter | None = None

    def reserve(self) -> int:
        """A number for points that are on their way elsewhere: what is appended from now on comes after them."""
        with self._lock:
            self._close_current()
            self._number += 1
            return self._number

    def append(self, keys: Sequence[SeriesKey], points: np.ndarray, number: int | None = None) -> None:
        """Append points, at the end or under a number that was reserved for them.

        Raises
        ------
        FileNotWritten
            The disk is full, or the folder is not ours to write to; of these points nothing is there.
        """
        with self._lock, _written_to(self.folder):
            if number is None:
                self._segment().append_points(keys, points)
                return
            path = self._path(number)
            writer = SegmentWriter(path, self._header)
            try:
                writer.append_points(keys, points)
            except OSError:
                path.unlink(missing_ok=True)  # else the number could not be used once there is space again
                raise
            finally:
                writer.close()

    def append_outcome(self, outcome: Outcome) -> None:
        """Append how the attempt ended.

        Raises
        ------
        FileNotWritten
            As `append`.
        """
        with self._lock, _written_to(self.folder):
            self._segment().append_outcome(outcome)

    def segments(self, before: int | None = None) -> list[Path]:
        """The files with smaller numbers, oldest first; what is appended from now on goes into another one."""
        with self._lock:
            self._close_current()
            found = segment_files(self.folder)
        return [path for path in found if before is None or int(path.stem) < before]

    def remove(self, segments: Sequence[Path]) -> None:
        """Remove files whose points are stored, and the folder when it is empty."""
        with self._lock:
            for path in segments:
                path.unlink(missing_ok=True)
            with suppress(OSError):  # something is left in it, or it was never made
                self.folder.rmdir()

    def discard(self) -> None:
        """Remove everything."""
        self.remove(self.segments())

    def close(self) -> None:
        """Append no more."""
        with self._lock:
            self._close_current()

    def _segment(self) -> SegmentWriter:
        if self._current is not None and self._current.nbytes >= SEGMENT_NBYTES:
            self._close_current()
        if self._current is None:
            self._number += 1
            self._current = SegmentWriter(self._path(self._number), self._header)
        return self._current

    def _close_current(self) -> None:
        if self._current is not None:
            self._current.close()
            self._current = None

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:012}{_SUFFIX}"


@contextmanager
def _written_to(folder: Path) -> Iterator[None]:
    """Turn what the operating system says into an error of ours."""
    try:
        yield
    except OSError as error:
        raise FileNotWritten(
            f"points that the database did not take cannot be written to {folder}: {error.strerror}; free space there, "
            "or name another folder by ARC_HALO_SPOOL_FOLDER",
            error.errno,
        ) from error


def spool_folders(folder: Path) -> Iterator[tuple[uuid.UUID, Path]]:
    """Attempts that left something here, and where; the oldest first, as their ids are in the order of time."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        with suppress(ValueError):
            yield uuid.UUID(path.name[:36]), path


def segment_files(folder: Path) -> list[Path]:
    """The segments in the folder of an attempt, oldest first."""
    return sorted(folder.glob(f"*{_SUFFIX}"))
