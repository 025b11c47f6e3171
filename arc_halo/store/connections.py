"""The two places the store writes to: the caller's transaction, or short transactions of its own."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import psycopg

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


@contextmanager
def reading(session: Session) -> Iterator[psycopg.Connection[Any]]:
    """The driver's connection inside the caller's transaction, its errors translated."""
    with driver_errors():
        yield driver_connection(session.connection())


class Destination(Protocol):
    """Where batches are written."""

    keeps_locks: bool
    """Whether locks taken in a batch last until the caller commits."""

    def batch(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        """A unit that is written wholly or not at all."""


class CallerTransaction:
    """Batches as savepoints of the caller's transaction: nothing is seen before the caller commits."""

    keeps_locks = True

    def __init__(self, session: Session) -> None:
        self._session = session

    @contextmanager
    def batch(self) -> Iterator[psycopg.Connection[Any]]:
        """Within a savepoint."""
        connection = self._session.connection()
        with driver_errors(), connection.begin_nested():
            yield driver_connection(connection)


class ShortTransactions:
    """Batches as transactions of their own: content is there at once, harmless until a manifest names it."""

    keeps_locks = False

    def __init__(self, engine: Engine) -> None:
        self._connection = engine.connect()

    @contextmanager
    def batch(self) -> Iterator[psycopg.Connection[Any]]:
        """Within a transaction that is committed at its end."""
        with driver_errors(), self._connection.begin():
            yield driver_connection(self._connection)

    def close(self) -> None:
        """Give the connection back to the pool."""
        self._connection.close()


_WROTE = "arc_halo.content_written_in"


@contextmanager
def destination(session: Session, nbytes: int, *, small_nbytes: int) -> Iterator[Destination]:
    """Choose by size: what is small stays in the caller's transaction, what is big must not hold locks for long.

    A transaction that has stored content itself goes on so to its end, whatever the size: a second connection would
    wait for rows that only this caller can commit.
    """
    if nbytes <= small_nbytes or session.info.get(_WROTE) is session.get_transaction() is not None:
        yield CallerTransaction(session)
        session.info[_WROTE] = session.get_transaction()
        return
    short = ShortTransactions(session.connection().engine)
    try:
        yield short
    finally:
        short.close()
