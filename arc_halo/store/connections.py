"""The two places the store writes to: the caller's transaction, or short transactions of its own."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from queue import Empty, LifoQueue
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from sqlalchemy import text

from arc_halo.database.engine import sibling_engine
from arc_halo.database.translate import driver_errors
from arc_halo.store.blobs import blob_store
from arc_halo.store.leases import Lease, announce_objects
from arc_halo.store.owners import owner_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine
    from sqlalchemy.orm import Session

    from arc_halo.store.blobs import BlobStore


def driver_connection(connection: Connection) -> psycopg.Connection[Any]:
    """The psycopg connection below a SQLAlchemy one: bytes move through it in PostgreSQL's binary protocol."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver


WORKERS = 2
"""Threads that encode or decode beside the one that talks to the server."""
WRITERS = 2
"""Connections that a big upload writes by."""


class Connect(Protocol):
    """Where bytes are read from: called, it lends a connection for as long as a block lasts."""

    def __call__(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        """The driver's connection, its errors translated."""

    @property
    def blobs(self) -> BlobStore | None:
        """The blob store that is configured."""


class Reading:
    """Lends the driver's connection inside the caller's transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @contextmanager
    def __call__(self) -> Iterator[psycopg.Connection[Any]]:
        """The connection of the caller's transaction as it is then."""
        with driver_errors():
            yield driver_connection(self._session.connection())

    @property
    def blobs(self) -> BlobStore | None:
        """That of the session."""
        return blob_store(self._session)


@dataclass(frozen=True, slots=True)
class Lent:
    """Lends a connection that somebody else has opened, in a block that translates its errors."""

    connection: psycopg.Connection[Any]
    blobs: BlobStore | None

    def __call__(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        """Always the same."""
        return nullcontext(self.connection)


class Destination(Protocol):
    """Where batches are written."""

    keeps_locks: bool
    """Whether locks taken in a batch last until the caller commits."""
    by_copy: bool
    """Whether rows may come by COPY, which row-level security forbids."""
    blobs: BlobStore | None
    """Where payloads go that are not to be in the database."""

    def batch(self, *, writes: bool = False) -> AbstractContextManager[psycopg.Connection[Any]]:
        """A unit that is written wholly or not at all; ``writes`` says that it is not only for looking."""

    def announce_objects(self) -> str:
        """Keep the sweeper from objects about to be put, until the rows that name them are seen by all.

        Returns the database whose objects they are.
        """


class CallerTransaction:
    """Batches as savepoints of the caller's transaction: nothing is seen before the caller commits."""

    keeps_locks = True

    def __init__(self, session: Session) -> None:
        self._session = session
        self.by_copy = may_copy(session.connection())
        self.blobs = blob_store(session)

    @contextmanager
    def batch(self, *, writes: bool = False) -> Iterator[psycopg.Connection[Any]]:
        """Within a savepoint."""
        connection = self._session.connection()
        with driver_errors(), connection.begin_nested():
            yield driver_connection(connection)
        if writes:
            self._session.info[_WROTE] = self._session.get_transaction()

    def announce_objects(self) -> str:
        """By a lock that the transaction holds to its end, and that nobody waits for."""
        with driver_errors():
            return announce_objects(driver_connection(self._session.connection()))


class ShortTransactions:
    """Batches as transactions of their own: content is there at once, harmless until a manifest names it."""

    keeps_locks = False

    def __init__(self, engine: Engine, blobs: BlobStore | None, nbytes: int) -> None:
        # Not from the caller's pool: importers that hold its last connections would wait for each other.
        self._engine = sibling_engine(engine)
        self._idle: LifoQueue[Connection] = LifoQueue()
        self.blobs = blobs
        try:
            with self._borrowed() as connection, connection.begin():
                self.by_copy = may_copy(connection)
                self._owner = owner_of(connection)
            self.lease = Lease(self._engine, nbytes)
        except BaseException:
            self._disconnect()
            raise

    @contextmanager
    def batch(self, *, writes: bool = False) -> Iterator[psycopg.Connection[Any]]:
        """Within a transaction that is committed at its end, on a connection that no other thread has.

        The commit does not wait for the disk: the caller's, which makes the content count, flushes all that was
        logged before it.
        """
        with driver_errors(), self._borrowed() as connection, connection.begin():
            if writes:
                connection.exec_driver_sql("SET LOCAL synchronous_commit TO off")
                self.lease.check(driver_connection(connection))
            yield driver_connection(connection)

    def announce_objects(self) -> str:
        """The lease does."""
        return self._owner

    @contextmanager
    def _borrowed(self) -> Iterator[Connection]:
        """A connection of our own, a new one where all are in use."""
        try:
            connection = self._idle.get_nowait()
        except Empty:
            connection = self._engine.connect()
        try:
            yield connection
        finally:
            self._idle.put(connection)

    def close(self) -> None:
        """Close the connections, which nobody may be using."""
        self.lease.close()
        self._disconnect()

    def _disconnect(self) -> None:
        while not self._idle.empty():
            self._idle.get_nowait().close()
        self._engine.dispose()


def may_copy(connection: Connection) -> bool:
    """Whether rows may come by COPY, which row-level security forbids."""
    return not connection.scalar(text(_ROW_SECURITY))


_ROW_SECURITY = """
SELECT bool_or(pg_catalog.row_security_active(name::pg_catalog.regclass))
  FROM unnest(ARRAY['arc_halo.tensor_data', 'arc_halo.tensor_chunks', 'arc_halo.embeddings',
                    'arc_halo.attention_patterns', 'arc_halo.kv_cache_payloads',
                    'arc_halo.kv_cache_unlogged_payloads']) AS name
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
    short = ShortTransactions(session.connection().engine, blob_store(session), nbytes)
    try:
        yield short
        short.lease.release(session)
    finally:
        short.close()
