"""Whole units of work, run again where the database says that this is safe."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeVar

from arc_halo.database.backoff import delays
from arc_halo.errors import DatabaseUnavailable, LockTimeout, TransactionConflict

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine.interfaces import IsolationLevel
    from sqlalchemy.orm import Session

DEFAULT_ATTEMPTS: Final = 6
Result = TypeVar("Result")
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
    DatabaseUnavailable
        The connection was lost during COMMIT. Whether the work is stored is unknown, so it is not run again.
    KeyboardInterrupt, SystemExit
        Also where the rollback that follows one fails: what was interrupted is not run again.
    """
    waits = delays(attempts)
    for attempt in range(1, attempts + 1):
        with open_session() as session:
            # Connecting has retries of its own: what still fails here is not worth a second round of them.
            session.connection(execution_options={"isolation_level": isolation_level} if isolation_level else None)
            try:
                return _attempt(session, unit)
            except Exception as error:
                if (interruption := _interruption(error)) is not None:
                    session.invalidate()  # its command may still be running
                    raise interruption from error
                if not isinstance(error, _RETRIED):
                    raise
                if isinstance(error, DatabaseUnavailable):
                    session.invalidate()  # a ROLLBACK over a lost link would raise in its turn
                if attempt == attempts or isinstance(error, _CommitUnanswered):
                    raise
        time.sleep(next(waits))
    raise AssertionError("attempts is positive")


def _interruption(error: BaseException) -> BaseException | None:
    """The interrupt behind an error: rolling back a statement that was interrupted fails, and hides it."""
    while (context := error.__context__) is not None:
        if isinstance(context, KeyboardInterrupt | SystemExit):
            return context
        error = context
    return None


class _CommitUnanswered(DatabaseUnavailable):
    """Nobody knows whether the transaction was committed."""


def _attempt(session: Session, unit: Callable[[Session], Result]) -> Result:
    result = unit(session)
    session.flush()  # whatever flushing raises is raised here, so an error of commit() is COMMIT's own
    try:
        session.commit()
    except DatabaseUnavailable as error:
        raise _CommitUnanswered(
            f"the connection was lost during COMMIT ({error}); the work may or may not be stored: look before running "
            "it again",
            sqlstate=error.sqlstate,
        ) from error
    return result
