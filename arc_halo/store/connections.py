"""The two places the store writes to: the caller's transaction, or short transactions of its own."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import psycopg

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

    def batch(self, *, writes: bool = False) -> AbstractContextManager[psycopg.Connection[Any]]:
        """A unit that is written wholly or not at all; ``writes`` says that it is not only for looking."""


class CallerTransaction:
    """Batches as savepoints of the caller's transaction: nothing is seen before the caller commits."""

    keeps_locks = True

    def __init__(self, session: Session) -> None:
        self._session = session

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

    @contextmanager
    def batch(self, *, writes: bool = False) -> Iterator[psycopg.Connection[Any]]:  # noqa: ARG002  # the protocol's
        """Within a transaction that is committed at its end."""
        with driver_errors(), self._connection.begin():
            yield driver_connection(self._connection)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
        self._engine.dispose()


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
