"""Ranks of an attempt: who trains, and who is still alive."""

from __future__ import annotations

import logging
import os
import socket
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, null, select, update
from sqlalchemy.dialects.postgresql import insert

from arc_halo.errors import AttemptLost, CheckpointError, DatabaseError
from arc_halo.schema import TrainingAttempt, TrainingRank

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

    from arc_halo.database import Database

HEARTBEAT_SECONDS: Final = 10.0
_log = logging.getLogger(__name__)


class Membership:
    """A rank that has joined an attempt, and what it knows of that."""

    def __init__(self, db: Database, attempt_id: uuid.UUID, rank: int, world_size: int) -> None:
        self.attempt_id = attempt_id
        self.rank = rank
        self.world_size = world_size
        self._db = db
        self._is_lost = threading.Event()
        self._row = (TrainingRank.attempt_id == attempt_id, TrainingRank.rank == rank, TrainingRank.status == "running")

    @property
    def is_lost(self) -> bool:
        """Whether the attempt was seen to have ended."""
        return self._is_lost.is_set()

    def check(self) -> None:
        """Raise `AttemptLost` if the last heartbeat found the attempt ended."""
        if self.is_lost:
            raise AttemptLost(f"attempt {self.attempt_id} does not run any more: rank {self.rank} trains for nobody")

    def beat(self, session: Session) -> None:
        """Say that the rank is alive, by the database's clock, and learn whether the attempt is."""
        # Rank 0 may have ended the attempt before this one is done: only who took it over says that nothing counts.
        running = select(TrainingAttempt.id).where(
            TrainingAttempt.id == self.attempt_id, TrainingAttempt.status != "lost"
        )
        alive = update(TrainingRank).where(*self._row, running.exists())
        if not session.execute(alive.values(heartbeat_at=func.clock_timestamp()).returning(TrainingRank.rank)).all():
            self._is_lost.set()

    def join(self, session: Session) -> None:
        """Take the rank's row, a new one or that of a process before this."""
        running = select(TrainingAttempt.id).where(
            TrainingAttempt.id == self.attempt_id, TrainingAttempt.status == "running"
        )
        if session.scalar(running.with_for_update(read=True)) is None:
            raise AttemptLost(f"attempt {self.attempt_id} does not run: rank {self.rank} cannot join it")
        row = {"world_size": self.world_size, "host": socket.gethostname(), "pid": os.getpid(), "status": "running"}
        joined = insert(TrainingRank).values(attempt_id=self.attempt_id, rank=self.rank, **row)
        now = {
            "started_at": func.clock_timestamp(),
            "heartbeat_at": func.clock_timestamp(),
            "ended_at": null(),
            "error": null(),
        }
        session.execute(joined.on_conflict_do_update(index_elements=["attempt_id", "rank"], set_=row | now))

    def keep_beating(self, stopped: threading.Event, seconds: float) -> None:
        """Beat until it is stopped, or nobody listens any more."""
        while not stopped.wait(seconds) and not self.is_lost:
            try:
                with self._db.session() as session:
                    self.beat(session)
                    session.commit()
            except DatabaseError as error:
                _log.warning("rank %d could not say that it is alive (%s); it tries again", self.rank, error)

    def leave(self, session: Session, error: BaseException | None) -> None:
        """Say how it ended."""
        values: dict[str, Any] = {"status": "completed", "ended_at": func.clock_timestamp()}
        if error is not None:
            values |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        session.execute(update(TrainingRank).where(*self._row).values(values))


@contextmanager
def join_attempt(
    db: Database, attempt_id: uuid.UUID, rank: int, world_size: int, *, heartbeat_seconds: float = HEARTBEAT_SECONDS
) -> Iterator[Membership]:
    """Be a rank of an attempt for as long as a block lasts, alive by a heartbeat from a thread.

    A rank that joins again, because its process was restarted, takes its place.

    Raises
    ------
    AttemptLost
        The attempt does not run.
    CheckpointError
        There is no such rank in a world of that size.
    """
    if not 0 <= rank < world_size:
        raise CheckpointError(f"rank {rank} is none of {world_size}; count from 0")
    membership = Membership(db, attempt_id, rank, world_size)
    db.transaction(membership.join)
    stopped = threading.Event()
    beating = threading.Thread(target=membership.keep_beating, args=(stopped, heartbeat_seconds), daemon=True)
    beating.start()
    try:
        yield membership
    except BaseException as error:
        try:
            db.transaction(partial(membership.leave, error=error))
        except DatabaseError:
            _log.warning("rank %d could not say that it failed; its heartbeat ends", rank)
        raise
    else:
        db.transaction(partial(membership.leave, error=None))
    finally:
        stopped.set()
        beating.join()
