"""Whole units of work, committed exactly once: run again where the database says that this is safe."""

from __future__ import annotations

import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from sqlalchemy import text

from arc_halo.database.backoff import delays
from arc_halo.database.unanswered import was_committed
from arc_halo.errors import CommitUnanswered, DatabaseUnavailable, LockTimeout, TransactionConflict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine.interfaces import IsolationLevel
    from sqlalchemy.orm import Session

DEFAULT_ATTEMPTS: Final = 6
Result = TypeVar("Result")
UNSTORED: Final = "nothing was stored"
"""The note of an interrupt that came before COMMIT."""

_NOTE: Final = text("SELECT arc_halo.note_operation(:operation)::text")
_RETRIED: Final = (TransactionConflict, LockTimeout, DatabaseUnavailable)


def run_transaction(
    open_session: Callable[[], Session],
    unit: Callable[[Session], Result],
    *,
    attempts: int = DEFAULT_ATTEMPTS,
    isolation_level: IsolationLevel | None = None,
) -> Result:
    """Run ``unit`` in a session of its own and commit, again from the start after a conflict or a lost connection.

    Parameters
    ----------
    open_session
        Makes a fresh session for each attempt.
    unit
        The work; it must not commit, and must bear being run again.
    attempts
        How often at most.
    isolation_level
        ``"REPEATABLE READ"`` or ``"SERIALIZABLE"`` where the unit reads before it writes.

    Raises
    ------
    TransactionConflict, LockTimeout, DatabaseUnavailable
        The last attempt failed, too.
    CommitUnanswered
        The connection was lost during COMMIT, and the database did not come back within a minute to tell whether the
        work is stored: the row of ``arc_halo.operations`` that the message names is there if it is.
    KeyboardInterrupt, SystemExit
        Also where the rollback that follows one fails: what was interrupted is not run again. It has the note
        `UNSTORED` if it came before COMMIT.
    """
    waits = delays(attempts)
    operation = uuid.uuid4()  # one for all attempts: the key lets no two of them be committed
    for attempt in range(1, attempts + 1):
        with open_session() as session:
            # Connecting has retries of its own: what still fails here is not worth a second round of them.
            session.connection(execution_options={"isolation_level": isolation_level} if isolation_level else None)
            try:
                return _attempt(session, unit, operation, open_session)
            except Exception as error:
                if (interruption := _interruption(error)) is not None:
                    session.invalidate()  # its command may still be running
                    raise interruption from error
                if not isinstance(error, _RETRIED):
                    raise
                if isinstance(error, DatabaseUnavailable):
                    session.invalidate()  # a ROLLBACK over a lost link would raise in its turn
                if attempt == attempts or isinstance(error, CommitUnanswered):
                    raise
        time.sleep(next(waits))
    raise AssertionError("attempts is positive")


def run_reading(
    open_session: Callable[[], Session], unit: Callable[[Session], Result], *, attempts: int = DEFAULT_ATTEMPTS
) -> Result:
    """Run ``unit``, which only reads, again where the connection was lost; see `Database.read`.

    The first attempts may meet connections of the pool that were cut while nobody used them: those are not waited for.

    Raises
    ------
    DatabaseUnavailable
        The last attempt failed, too.
    """
    waits = delays(attempts)
    for attempt in range(1, attempts + 1):
        with open_session() as session:
            engine = session.connection().engine  # connecting has retries of its own
            try:
                return unit(session)
            except DatabaseUnavailable:
                session.invalidate()
                engine.dispose()  # those that nobody uses are as old
                if attempt == attempts:
                    raise
        if attempt > 1:
            time.sleep(next(waits))
    raise AssertionError("attempts is positive")


def _interruption(error: BaseException) -> BaseException | None:
    """The interrupt behind an error: rolling back a statement that was interrupted fails, and hides it."""
    while (context := error.__context__) is not None:
        if isinstance(context, KeyboardInterrupt | SystemExit):
            return context
        error = context
    return None


@contextmanager
def _before_commit() -> Iterator[None]:
    """Note on an interrupt that nothing is stored; once COMMIT is on its way nobody knows."""
    try:
        yield
    except BaseException as error:
        interruption = error if isinstance(error, KeyboardInterrupt | SystemExit) else _interruption(error)
        if interruption is not None:
            interruption.add_note(UNSTORED)
        raise


def _attempt(
    session: Session, unit: Callable[[Session], Result], operation: uuid.UUID, open_session: Callable[[], Session]
) -> Result:
    with _before_commit():
        result = unit(session)
        session.flush()  # whatever flushing raises is raised here, so an error of commit() is COMMIT's own
        transaction_id = session.scalar(_NOTE, {"operation": operation})
        session.expunge_all()  # the session ends here; a commit that fails would wipe the objects of one that succeeded
    try:
        session.commit()
    except DatabaseUnavailable as error:
        session.invalidate()
        # What wrote nothing is run again: under SERIALIZABLE its reads count only when COMMIT has answered.
        if transaction_id is None or not was_committed(open_session, operation, transaction_id, error):
            raise
    return result
