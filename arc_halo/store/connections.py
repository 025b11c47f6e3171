"""The two places the store writes to: the caller's transaction, or short transactions of its own."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from sqlalchemy import text

from arc_halo.database.engine import sibling_engine
from arc_halo.database.translate import driver_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine
    from sqlalchemy.orm import Session


def driver_connection(connection: Connection) -> psycopg.Connection[Any]:
    """The psycopg connection below a SQLAlchemy one: bytes move through it in PostgreSQL's binary protocol."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver


WORKERS = 2
"""Threads that encode or decode beside the one that talks to the server."""


@contextmanager
def reading(session: Session) -> Iterator[psycopg.Connection[Any]]:
    """The driver's connection inside the caller's transaction, its errors translated."""
    with driver_errors():
        yield driver_connection(session.connection())


class Destination(Protocol):
    """Where batches are written."""

    keeps_locks: bool
    """Whether locks taken in a batch last until the caller commits."""
    by_copy: bool
    """Whether rows may come by COPY, which row-level security forbids."""

    def batch(self, *, writes: bool = False) -> AbstractContextManager[psycopg.Connection[Any]]:
        """A unit that is written wholly or not at all; ``writes`` says that it is not only for looking."""


class CallerTransaction:
    """Batches as savepoints of the caller's transaction: nothing is seen before the caller commits."""

    keeps_locks = True

    def __init__(self, session: Session) -> None:
        self._session = session
        self.by_copy = _may_copy(session.connection())

    @contextmanager
    def batch(self, *, writes: bool = False) -> Iterator[psycopg.Connection[Any]]:
        """Within a savepoint."""
        connection = self._session.connection()
        with driver_errors(), connection.begin_nested():
            yield driver_connection(connection)
        if writes:
            self._session.info[_WROTE] = self._session.get_transaction()


class ShortTransactions:
    """Batches as transactions of their own: content is there at once, harmless until a manifest names it."""

    keeps_locks = False

    def __init__(self, engine: Engine) -> None:
        # Not from the caller's pool: importers that hold its last connections would wait for each other.
        self._engine = sibling_engine(engine)
        self._connection = self._engine.connect()
        with self._connection.begin():
            self.by_copy = _may_copy(self._connection)

    @contextmanager
    def batch(self, *, writes: bool = False) -> Iterator[psycopg.Connection[Any]]:
        """Within a transaction that is committed at its end.

        The commit does not wait for the disk: the caller's, which makes the content count, flushes all that was
        logged before it.
        """
        with driver_errors(), self._connection.begin():
            if writes:
                self._connection.exec_driver_sql("SET LOCAL synchronous_commit TO off")
            yield driver_connection(self._connection)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
        self._engine.dispose()


def _may_copy(connection: Connection) -> bool:
    return not connection.scalar(text(_ROW_SECURITY))


_ROW_SECURITY = """
SELECT bool_or(pg_catalog.row_security_active(name::pg_catalog.regclass))
  FROM unnest(ARRAY['arc_halo.tensor_data', 'arc_halo.tensor_chunks', 'arc_halo.embeddings']) AS name
"""
_WROTE = "arc_halo.content_written_in"


@contextmanager
def destination(session: Session, nbytes: int, *, small_nbytes: int) -> Iterator[Destination]:
    """Choose by size: what is small stays in the caller's transaction, what is big must not hold locks for long.

    A transaction that has stored content itself goes on so to its end, whatever the size: a second connection would
    wait for rows that only this caller can commit. Others then wait for it, and two such transactions may deadlock,
    which PostgreSQL ends and `Database.transaction` tries again: commit before a big import.
    """
    if nbytes <= small_nbytes or session.info.get(_WROTE) is session.get_transaction() is not None:
        yield CallerTransaction(session)
        return
    short = ShortTransactions(session.connection().engine)
    try:
        yield short
    finally:
        short.close()
