"""Downgrades that would lose rows are refused."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import text

from arc_halo.errors import DataLossRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import Connection

_TABLES = """
SELECT t.oid, pg_catalog.format('%I.%I', n.nspname, t.relname)
  FROM pg_catalog.pg_class AS t JOIN pg_catalog.pg_namespace AS n ON n.oid = t.relnamespace
 WHERE n.nspname = :schema AND t.relkind = 'r' AND t.relname <> :version_table
 ORDER BY 1"""
# A generated column can be computed again: it is no loss.
_COLUMNS = """
SELECT attrelid, attnum, attname FROM pg_catalog.pg_attribute
 WHERE attrelid = ANY (:tables) AND attnum > 0 AND NOT attisdropped AND attgenerated = ''"""


class Column(NamedTuple):
    """A column of a table, known by what a rename does not change."""

    table: int
    number: int


def goes_down(migration_context: MigrationContext) -> bool:
    """Whether the Alembic command that runs here takes the database back; sends a query."""
    if "destination_rev" not in migration_context.opts:  # e.g. ``check`` or ``revision``
        return False
    steps = migration_context.opts["fn"](migration_context.get_current_heads(), migration_context)
    return any(step.is_downgrade for step in steps)


@contextmanager
def refuse_data_loss(connection: Connection, schema: str, *, version_table: str = "alembic_version") -> Iterator[None]:
    """Let the block drop only tables without rows, and columns of such tables.

    Writers are locked out of the schema's tables until the transaction ends: a row that came after the look would be
    lost unseen. What the block did must be in the same transaction, for the error to take it back.

    Raises
    ------
    DataLossRefused
        At the end of the block; the caller's transaction must be rolled back.
    """
    parameters = {"schema": schema, "version_table": version_table}
    tables: dict[int, str] = {row[0]: row[1] for row in connection.execute(text(_TABLES), parameters)}
    if tables:
        connection.exec_driver_sql(f"LOCK TABLE {', '.join(tables.values())} IN SHARE MODE")
    filled = [oid for oid, name in tables.items() if connection.scalar(text(f"SELECT EXISTS (SELECT FROM {name})"))]  # noqa: S608  (quoted by PostgreSQL)
    before = _columns(connection, filled)
    yield
    lost = before.keys() - _columns(connection, filled).keys()
    if lost:
        whole = {column.table for column in before} - {column.table for column in before.keys() - lost}
        parts = {f"{tables[column.table]}.{before[column]}" for column in lost if column.table not in whole}
        names = ", ".join(sorted({tables[table] for table in whole} | parts))
        raise DataLossRefused(
            f"The downgrade would drop what holds rows: {names}. Nothing was changed. Save it first, or say that it may"
            " go: `-x allow_data_loss=1`."
        )


def _columns(connection: Connection, tables: list[int]) -> dict[Column, str]:
    return {Column(row[0], row[1]): row[2] for row in connection.execute(text(_COLUMNS), {"tables": tables})}
