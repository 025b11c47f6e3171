"""Run statements as they are, try them, take them back."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from arc_halo.autogenerate.schemas import quoted, standing_schemas

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection

    from arc_halo.autogenerate.schemas import Schemas


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


def put_aside(connection: Connection, schemas: Schemas) -> None:
    """Rename the schemas that stand: only their rows in the catalog change, no table is locked, nobody waits."""
    for number, schema in enumerate(sorted(standing_schemas(connection, schemas))):
        run(connection, [f"ALTER SCHEMA {quoted(schema)} RENAME TO autogenerate_set_aside_{number}"])
