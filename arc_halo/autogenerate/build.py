"""Create everything a metadata declares, in an order that PostgreSQL accepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from arc_halo.autogenerate.catalog import object_keys
from arc_halo.autogenerate.objects import declared, tables_and_views, view_sources
from arc_halo.autogenerate.partitions import declared_partitions
from arc_halo.autogenerate.savepoints import run, succeeds
from arc_halo.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Connection, MetaData

    from arc_halo.autogenerate.objects import Key, Statements


@dataclass(frozen=True)
class Built:
    """A declared object: its source, and whether it could be created before any table existed."""

    source: Statements
    before_tables: bool


def create_all(connection: Connection, metadata: MetaData) -> dict[Key, Built]:
    """Create the schema, its tables with their partitions, its views and every declared object.

    The order is found by trying, so declarations need none. The caller owns the transaction.

    Returns
    -------
    dict[Key, Built]
        The objects in the order in which they were created.

    Raises
    ------
    ConfigurationError
        If a declaration creates no object of the schema, or several.
    sqlalchemy.exc.DBAPIError
        PostgreSQL's reason, if an object cannot be created.
    """
    tables, views = tables_and_views(metadata)
    schema = connection.dialect.identifier_preparer.quote_schema(str(metadata.schema))
    run(connection, [f"CREATE SCHEMA IF NOT EXISTS {schema}"])
    built: dict[Key, Built] = {}
    waiting = _create_possible(connection, metadata, declared(metadata), built, before_tables=True)
    metadata.create_all(connection, tables=tables, checkfirst=False)
    for table in tables:
        run(connection, declared_partitions(table.info))
    waiting += [source for view in views for source in view_sources(view)]
    waiting = _create_possible(connection, metadata, waiting, built, before_tables=False)
    if waiting:
        run(connection, waiting[0])  # refused above; this time PostgreSQL's reason reaches the caller
    return built


def _create_possible(
    connection: Connection,
    metadata: MetaData,
    waiting: list[Statements],
    built: dict[Key, Built],
    *,
    before_tables: bool,
) -> list[Statements]:
    """Create what can be created until nothing more can; return what is left."""
    schema = str(metadata.schema)
    present = object_keys(connection, schema)
    while True:
        left: list[Statements] = []
        for source in waiting:
            if not succeeds(connection, source):
                left.append(source)
                continue
            keys = object_keys(connection, schema)
            new = keys - present
            if len(new) != 1:
                raise ConfigurationError(
                    f"A declaration must create one object of schema {schema!r}; this one created"
                    f" {sorted(new) or 'none'}: {source[0][:200]}"
                )
            built[new.pop()] = Built(source, before_tables)
            present = keys
        if len(left) == len(waiting):
            return left
        waiting = left
