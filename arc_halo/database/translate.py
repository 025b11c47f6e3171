"""Driver errors become ours, by SQLSTATE and constraint name, never by message."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import psycopg

from arc_halo.errors import (
    ConstraintViolation,
    DatabaseError,
    DatabaseUnavailable,
    DiskFull,
    LockTimeout,
    PermissionDenied,
    ReadOnlyDatabase,
    StatementTimeout,
    TransactionConflict,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import ExceptionContext

# Mistakes in SQL (classes 22 and 42) stay SQLAlchemy's own errors: those show the statement.
_BY_SQLSTATE: Final[dict[str, tuple[type[DatabaseError], str]]] = {
    "25P03": (DatabaseUnavailable, "the transaction was idle for too long: run the unit again"),
    "25P04": (StatementTimeout, "the transaction took longer than transaction_timeout allows: do the work in parts"),
    "25006": (ReadOnlyDatabase, "this is a replica or a read-only transaction: write to the primary"),
    "40001": (TransactionConflict, "another transaction changed what this one read: run the whole unit again"),
    "40P01": (TransactionConflict, "two transactions waited for each other: run the whole unit again"),
    "42501": (PermissionDenied, "grant the privilege to the role, or connect as one that has it"),
    "53100": (DiskFull, "free space on the server, then run the unit again"),
    "53300": (DatabaseUnavailable, "the server takes no more connections: close some or raise max_connections"),
    "55P03": (LockTimeout, "somebody holds the lock: see pg_locks and pg_stat_activity for who, then try again"),
    "57014": (StatementTimeout, "it ran past statement_timeout or was cancelled: raise the timeout or ask for less"),
    "57P01": (DatabaseUnavailable, "the server ended the connection: run the unit again"),
    "57P02": (DatabaseUnavailable, "the server is recovering from a crash: run the unit again"),
    "57P03": (DatabaseUnavailable, "the server is starting or stopping: try again soon"),
    "57P05": (DatabaseUnavailable, "the session was idle for too long: run the unit again"),
}
_BY_CLASS: Final[dict[str, tuple[type[DatabaseError], str]]] = {
    "08": (DatabaseUnavailable, "the connection failed: run the unit again"),
    "23": (ConstraintViolation, "change the row to what the constraint allows"),
}
# Their detail is the key; that of other violations is the whole row, which is nobody's business in a log.
_KEY_VIOLATIONS: Final = {"23503", "23505", "23P01"}
_LOST: Final = (DatabaseUnavailable, "the connection to the server was lost: run the unit again")


def translate(error: psycopg.Error) -> DatabaseError | None:
    """Our error for one of the driver's, or None where the driver's own says it better."""
    kind, advice = _classify(error) or (None, "")
    if kind is None:
        return None
    said = error.diag.message_primary or str(error).partition("\n")[0]
    key = error.diag.message_detail if error.sqlstate in _KEY_VIOLATIONS else None
    detail = f" ({key})" if key else ""
    return kind(f"{said}{detail}; {advice}", sqlstate=error.sqlstate, constraint=error.diag.constraint_name)


@contextmanager
def driver_errors() -> Iterator[None]:
    """Translate around direct use of psycopg, such as COPY, which SQLAlchemy's events do not see."""
    try:
        yield
    except psycopg.Error as error:
        ours = translate(error)
        if ours is None:
            raise
        raise ours from error


def on_handle_error(context: ExceptionContext) -> DatabaseError | None:
    """SQLAlchemy's ``handle_error`` hook: what it returns is raised, with the driver's error as ``__cause__``."""
    error = context.original_exception
    # A failed ping is how the pool learns that a connection is stale; it must see the error untouched.
    if context.is_pre_ping or not isinstance(error, psycopg.Error):
        return None
    return translate(error)


def _classify(error: psycopg.Error) -> tuple[type[DatabaseError], str] | None:
    if error.sqlstate:
        return _BY_SQLSTATE.get(error.sqlstate) or _BY_CLASS.get(error.sqlstate[:2])
    # An operational error without a SQLSTATE never reached a server, or lost it.
    return _LOST if isinstance(error, psycopg.OperationalError) else None
