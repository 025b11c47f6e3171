"""Points that earlier runs on this machine left on disk: handed to the database by the next one."""

from __future__ import annotations

import logging
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from arc_halo.errors import ArcHaloError
from arc_halo.schema import TrainingAttempt
from arc_halo.store.owners import owner_of
from arc_halo.training.attempts import end_attempt
from arc_halo.training.spool import read_or_set_aside, segment_files
from arc_halo.training.storing import PointStore

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from sqlalchemy.orm import Session

    from arc_halo.database import Database
    from arc_halo.training.spool import Segment

_log = logging.getLogger(__name__)


def replay_spools(database: Database, folder: Path, *, alive: Collection[uuid.UUID] = ()) -> int:
    """Write what attempts that are over left in a folder, and remove it; returns how many points there were.

    An attempt is over when its process is gone, or when its row does not say that it runs. Left alone are those of
    other databases. What cannot be read or written stays, and is said in the log: it keeps nobody from training.

    Parameters
    ----------
    alive
        Attempts that this process keeps.
    """
    count = 0
    for attempt_folder in _folders(folder):
        if uuid.UUID(attempt_folder.name) in alive:
            continue
        try:
            count += _replay(database, attempt_folder)
        except (ArcHaloError, SQLAlchemyError, OSError) as error:
            _log.warning("points of an earlier run stay in %s: %s", attempt_folder, error)
    return count


def _folders(folder: Path) -> Iterator[Path]:
    """Those of attempts, the oldest first: their ids are in the order of time."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            with suppress(ValueError):
                uuid.UUID(path.name)
                yield path


def _replay(database: Database, folder: Path) -> int:
    count = 0
    for path in segment_files(folder):
        segment = read_or_set_aside(path)
        if segment is None:
            continue
        if not database.transaction(lambda session, segment=segment: _store(session, segment)):  # type: ignore[misc]
            return count
        count += len(segment.points)
        if segment.torn_nbytes:
            _log.warning("%s ends in %d bytes that are no whole record", path, segment.torn_nbytes)
        path.unlink(missing_ok=True)  # another process may have been as quick
    with suppress(OSError):
        folder.rmdir()
    return count


def _store(session: Session, segment: Segment) -> bool:
    """Write a segment in the caller's transaction; False if it is not ours to write."""
    header = segment.header
    if header.owner != owner_of(session.connection()):
        return False
    attempt = select(TrainingAttempt.status).where(TrainingAttempt.id == header.attempt_id)
    status = session.scalar(attempt)
    if status is None:
        _log.warning("%d points of a run that was deleted are dropped", len(segment.points))
        return True
    if status == "running" and not header.process.is_gone():
        return False
    store = PointStore(header.attempt_id, header.goals)
    store.store(session, segment.keys, segment.points)
    if segment.outcome is not None and status == "running":
        end_attempt(session, header.attempt_id, segment.outcome)
    return True
