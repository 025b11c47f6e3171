"""Points that earlier runs on this machine left on disk: handed to the database by the next one."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from arc_halo.errors import ArcHaloError, SpoolError
from arc_halo.schema import TrainingAttempt
from arc_halo.store.owners import owner_of
from arc_halo.training.attempts import end_attempt
from arc_halo.training.spool import read_segment, segment_files, spool_folders
from arc_halo.training.storing import PointStore

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection
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
    for attempt_id, attempt_folder in spool_folders(folder):
        if attempt_id in alive:
            continue
        try:
            count += _replay(database, attempt_folder)
        except (ArcHaloError, SQLAlchemyError, OSError) as error:
            _log.warning("points of an earlier run stay in %s: %s", attempt_folder, error)
    return count


def _replay(database: Database, folder: Path) -> int:
    count = 0
    paths = segment_files(folder)
    # The last of them says whether the attempt has ended, though its process may live on.
    last = _read(paths[-1]) if paths else None
    is_over = last is not None and (last.outcome is not None or last.header.process.is_this())
    for path in paths:
        if (segment := _read(path)) is None:
            continue
        unit = partial(_store, segment=segment, is_over=is_over or segment.header.process.is_gone())
        if not database.transaction(unit):
            return count
        count += len(segment.points)
        if segment.torn_nbytes:
            _log.warning("%s ends in %d bytes that are no whole record", path, segment.torn_nbytes)
        path.unlink(missing_ok=True)  # another process may have been as quick
    with suppress(OSError):
        folder.rmdir()
    return count


def _read(path: Path) -> Segment | None:
    """A file, which stays where it is if it makes no sense: it may be of a newer version, and is not ours."""
    try:
        return read_segment(path)
    except FileNotFoundError:  # its own process, or another one, was as quick
        return None
    except SpoolError as error:
        _log.warning("points of an earlier run are left where they are: %s", error)
        return None


def _store(session: Session, segment: Segment, *, is_over: bool) -> bool:
    """Write a segment in the caller's transaction; False if it is not ours to write."""
    header = segment.header
    if header.owner != owner_of(session.connection()):
        return False
    status = session.scalar(select(TrainingAttempt.status).where(TrainingAttempt.id == header.attempt_id))
    if status is None:
        _log.warning("%d points of a run that was deleted are dropped", len(segment.points))
        return True
    if status == "running" and not is_over:
        return False
    store = PointStore(header.attempt_id, header.goals)
    store.store(session, segment.keys, segment.points)
    if segment.outcome is not None and status == "running":
        end_attempt(session, header.attempt_id, segment.outcome)
    return True
