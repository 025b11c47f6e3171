"""Run statements as they are, try them, take them back."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection


@contextmanager
def rolled_back(connection: Connection) -> Iterator[None]:
    """A savepoint that leaves no trace, settings included."""
    savepoint = connection.begin_nested()
    try:
        yield
    finally:
        savepoint.rollback()


def run(connection: Connection, statements: Iterable[str]) -> None:
    """Send statements in which neither ``%`` nor ``:`` means anything."""
    for statement in statements:
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def succeeds(connection: Connection, statements: Iterable[str]) -> bool:
    """Run the statements; if PostgreSQL refuses one, undo them all and say so."""
    savepoint = connection.begin_nested()
    try:
        run(connection, statements)
    except DBAPIError:
        savepoint.rollback()
        return False
    savepoint.commit()
    return True


def put_aside(connection: Connection, schema: str) -> None:
    """Rename a schema: only its row in the catalog changes, no table is locked, nobody waits."""
    name = connection.dialect.identifier_preparer.quote_schema(schema)
    run(connection, [f"ALTER SCHEMA {name} RENAME TO autogenerate_set_aside"])
