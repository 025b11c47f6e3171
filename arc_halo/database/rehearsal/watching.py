"""What work does to a database, seen from beside it: locks, write-ahead log, growth, tables written anew."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import SQLAlchemyError

from arc_halo.database.migrate import SCHEMA, VERSION_TABLE, migration_engine
from arc_halo.database.url import split_secrets
from arc_halo.errors import DatabaseError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import URL, Connection
    from sqlalchemy.engine import ExceptionContext

PERIOD_SECONDS: Final = 0.01
MODES: Final = (
    "AccessShareLock", "RowShareLock", "RowExclusiveLock", "ShareUpdateExclusiveLock", "ShareLock",
    "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock",
)  # fmt: skip
"""From the weakest to the strongest."""
_SAMPLE: Final = text("""
SELECT l.relation, l.mode
  FROM pg_catalog.pg_locks AS l JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
 WHERE l.locktype = 'relation' AND l.granted AND a.datname = pg_catalog.current_database()
   AND a.backend_type = 'client backend' AND l.pid <> pg_catalog.pg_backend_pid()""")
_OWN: Final = text("""
SELECT relation, mode FROM pg_catalog.pg_locks
 WHERE locktype = 'relation' AND granted AND pid = pg_catalog.pg_backend_pid()""")
_TABLES: Final = text("""
SELECT c.oid, pg_catalog.concat(n.nspname, '.', c.relname), pg_catalog.pg_relation_filenode(c.oid),
       CAST(coalesce(pg_catalog.pg_partition_root(c.oid), c.oid) AS oid)
  FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'm') AND c.relpersistence <> 't'
   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
   AND NOT (n.nspname = :schema AND c.relname = :version_table)""")
_FIGURES: Final = text("""
SELECT pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), '0/0'),
       pg_catalog.pg_database_size(pg_catalog.current_database())""")


class Lock(NamedTuple):
    """The strongest lock on a table, partitions being their parent, and how long it was seen held."""

    table: str
    mode: str
    seconds: float

    @property
    def words(self) -> str:
        """The mode as SQL writes it: ``ACCESS EXCLUSIVE``."""
        name = self.mode.removesuffix("Lock")
        return "".join(f" {each}" if each.isupper() else each for each in name).strip().upper()


@dataclass(slots=True)
class Watched:
    """What was seen; figures are there when the block is over.

    Attributes
    ----------
    wal_nbytes
        Write-ahead log of the whole server meanwhile.
    rewritten
        Tables of before that have other files now.
    statement
        The one that failed, if one did; ``message`` is PostgreSQL's.
    """

    seconds: float = 0.0
    locks: list[Lock] = field(default_factory=list)
    wal_nbytes: int = 0
    growth_nbytes: int = 0
    rewritten: list[str] = field(default_factory=list)
    statement: str | None = None
    message: str | None = None


@contextmanager
def watching(url: URL) -> Iterator[Watched]:
    """Watch what this process does to the database at ``url`` in the block, by connections of other engines."""
    watched = Watched()
    engine = migration_engine(url).execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        before = _Standing.of(connection)
        sampler = _Sampler(connection, before, url, watched)
        began = time.monotonic()
        try:
            with sampler.listening(), sampler.sampling():
                yield watched
        finally:
            watched.seconds = time.monotonic() - began
            with suppress(DatabaseError, SQLAlchemyError):  # the server went away: that is told by what failed
                after = _Standing.of(connection)
                watched.locks = sampler.locks()
                watched.wal_nbytes = after.lsn - before.lsn
                watched.growth_nbytes = after.nbytes - before.nbytes
                watched.rewritten = before.rewritten(after)


@dataclass(frozen=True, slots=True)
class _Standing:
    """A database at one moment: tables by oid, with name and file."""

    lsn: int
    nbytes: int
    names: dict[int, str]
    files: dict[int, int]
    roots: dict[int, int]

    @classmethod
    def of(cls, connection: Connection) -> _Standing:
        rows = connection.execute(_TABLES, {"schema": SCHEMA, "version_table": VERSION_TABLE}).all()
        lsn, nbytes = connection.execute(_FIGURES).one()
        return cls(
            int(lsn),
            int(nbytes),
            {oid: name for oid, name, _, _ in rows},
            {oid: file for oid, _, file, _ in rows if file is not None},
            {oid: root for oid, _, _, root in rows},
        )

    def rewritten(self, after: _Standing) -> list[str]:
        changed = {oid for oid in self.files.keys() & after.files.keys() if self.files[oid] != after.files[oid]}
        return sorted(self.names[oid] for oid in changed)

    def table(self, oid: int) -> str | None:
        return self.names.get(self.roots.get(oid, oid))


class _Sampler:
    """Collects locks: how long by looking often, and at each commit all that the transaction holds, however short."""

    def __init__(self, connection: Connection, before: _Standing, url: URL, watched: Watched) -> None:
        self.connection, self.before, self.watched = connection, before, watched
        self.url = split_secrets(url)[0]
        self.held: dict[str, dict[str, float]] = {}

    @contextmanager
    def sampling(self) -> Iterator[None]:
        over = threading.Event()
        thread = threading.Thread(target=self._sample, args=(over,), name="arc-halo-locks", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """See commits and errors of any engine on this database: who migrates makes one of its own."""
        listeners: dict[str, Any] = {"commit": self._on_commit, "handle_error": self._on_error}
        for name, listener in listeners.items():
            event.listen(Engine, name, listener)
        try:
            yield
        finally:
            for name, listener in listeners.items():
                event.remove(Engine, name, listener)

    def locks(self) -> list[Lock]:
        """One for each table, the strongest and longest first."""
        strongest = {table: max(modes, key=MODES.index) for table, modes in self.held.items()}
        found = [Lock(table, mode, self.held[table][mode]) for table, mode in strongest.items()]
        return sorted(found, key=lambda lock: (-MODES.index(lock.mode), -lock.seconds, lock.table))

    def _sample(self, over: threading.Event) -> None:
        before = time.monotonic()
        with suppress(DatabaseError, SQLAlchemyError):
            while not over.wait(PERIOD_SECONDS):
                rows = self.connection.execute(_SAMPLE).all()
                now = time.monotonic()
                self._see(rows, now - before)
                before = now

    def _see(self, rows: Iterable[Any], seconds: float) -> None:
        for table, mode in {(self.before.table(oid), mode) for oid, mode in rows}:
            if table is not None and mode in MODES:
                modes = self.held.setdefault(table, {})
                modes[mode] = modes.get(mode, 0.0) + seconds

    def _on_commit(self, connection: Connection) -> None:
        if connection.engine.url == self.url and connection is not self.connection:
            self._see(connection.execute(_OWN).all(), 0.0)

    def _on_error(self, context: ExceptionContext) -> None:
        error = context.original_exception
        if context.engine is not None and context.engine.url == self.url and isinstance(error, psycopg.Error):
            self.watched.statement = context.statement
            self.watched.message = _message(error)


def _message(error: psycopg.Error) -> str:
    """What PostgreSQL said, with detail and hint."""
    said = [error.diag.message_primary or str(error), error.diag.message_detail, error.diag.message_hint]
    code = f" [{error.sqlstate}]" if error.sqlstate else ""
    return "; ".join(each.strip() for each in said if each) + code
