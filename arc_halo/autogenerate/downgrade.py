"""Downgrades that would lose rows are refused."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import event, text

from arc_halo.errors import DataLossRefused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from alembic.runtime.migration import MigrationContext, MigrationStep
    from sqlalchemy import Connection

    from arc_halo.autogenerate.schemas import Schemas

_TABLES = """
SELECT t.oid, pg_catalog.format('%I.%I', n.nspname, t.relname)
  FROM pg_catalog.pg_class AS t JOIN pg_catalog.pg_namespace AS n ON n.oid = t.relnamespace
 WHERE n.nspname = ANY (:schemas) AND t.relkind = 'r' AND (n.nspname, t.relname) <> (:schema, :version_table)
 ORDER BY 1"""
# A generated column can be computed again: it is no loss.
_COLUMNS = """
SELECT attrelid, attnum, attname FROM pg_catalog.pg_attribute
 WHERE attrelid = ANY (:tables) AND attnum > 0 AND NOT attisdropped AND attgenerated = ''"""


class Column(NamedTuple):
    """A column of a table, known by what a rename does not change."""

    table: int
    number: int


def steps_of(migration_context: MigrationContext) -> list[MigrationStep]:
    """What the Alembic command that runs here will do, revision by revision; sends a query."""
    if "destination_rev" not in migration_context.opts:  # e.g. ``check`` or ``revision``
        return []
    return list(migration_context.opts["fn"](migration_context.get_current_heads(), migration_context))


def goes_down(steps: Iterable[MigrationStep]) -> bool:
    """Whether they take the database back."""
    return any(step.is_downgrade for step in steps)


@contextmanager
def refuse_data_loss(connection: Connection, *schemas: str, version_table: str = "alembic_version") -> Iterator[None]:
    """Let the block drop only tables without rows, and columns of such tables.

    It is checked before every commit, since ``autocommit_block()`` commits, and at the end of the block. Writers are
    locked out of the schemas' tables in each transaction: a row that came after the look would be lost unseen. Within
    an ``autocommit_block()`` each statement is final, and the loss can only be told. The version table of the first
    schema may change.

    Raises
    ------
    DataLossRefused
        Before a commit, or at the end of the block; the transaction must be rolled back.
    """
    guard = _Guard(connection, schemas, version_table)
    guard.look()
    listeners = {"begin": guard.look, "commit": guard.before_commit}
    for name, listener in listeners.items():
        event.listen(connection, name, listener)
    try:
        yield
        guard.check()
    finally:
        for name, listener in listeners.items():
            event.remove(connection, name, listener)


class _Guard:
    """What held rows when the transaction began."""

    def __init__(self, connection: Connection, schemas: Schemas, version_table: str) -> None:
        self.connection = connection
        self.parameters = {"schemas": list(schemas), "schema": schemas[0], "version_table": version_table}
        self.tables: dict[int, str] = {}
        self.filled: list[int] = []
        self.columns: dict[Column, str] = {}
        self.final = False  # whether what is done now is committed by itself
        self.committed = False

    def look(self, _connection: Connection | None = None) -> None:
        """Lock the tables and see which of them, and of their columns, must stay."""
        self.final = _is_autocommit(self.connection)
        self.tables = {row[0]: row[1] for row in self.connection.execute(text(_TABLES), self.parameters)}
        if self.tables and not self.final:
            self.connection.exec_driver_sql(f"LOCK TABLE {', '.join(self.tables.values())} IN SHARE MODE")
        self.filled = [oid for oid, name in self.tables.items() if self._has_rows(name)]
        self.columns = _columns(self.connection, self.filled)

    def _has_rows(self, name: str) -> bool:
        return bool(self.connection.scalar(text(f"SELECT EXISTS (SELECT FROM {name})")))  # noqa: S608  (quoted by PostgreSQL)

    def before_commit(self, _connection: Connection) -> None:
        self.check()
        self.committed = True

    def check(self) -> None:
        lost = self.columns.keys() - _columns(self.connection, self.filled).keys()
        if not lost:
            return
        kept_tables = {column.table for column in self.columns.keys() - lost}
        names = ", ".join(sorted({self._lost(column, kept_tables) for column in lost}))
        if self.final:
            raise DataLossRefused(
                f"The downgrade dropped what held rows: {names}. It did so in an `autocommit_block()`, where nothing"
                " can be taken back: restore it from a backup, and have the revision drop outside of such a block."
            )
        done = (
            "What came before its last `autocommit_block()` stays done." if self.committed else "Nothing was changed."
        )
        raise DataLossRefused(
            f"The downgrade would drop what holds rows: {names}. {done} Save it first, or say that it may"
            " go: `-x allow_data_loss=1`."
        )

    def _lost(self, column: Column, kept_tables: set[int]) -> str:
        table = self.tables[column.table]
        return f"{table}.{self.columns[column]}" if column.table in kept_tables else table


def _is_autocommit(connection: Connection) -> bool:
    driver_connection = connection.connection.dbapi_connection
    assert driver_connection is not None
    return connection.dialect.detect_autocommit_setting(driver_connection)


def _columns(connection: Connection, tables: list[int]) -> dict[Column, str]:
    return {Column(row[0], row[1]): row[2] for row in connection.execute(text(_COLUMNS), {"tables": tables})}
