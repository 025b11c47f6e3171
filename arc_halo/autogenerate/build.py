"""Create everything a metadata declares, in an order that PostgreSQL accepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from arc_halo.autogenerate.catalog import object_births
from arc_halo.autogenerate.extensions import install_extensions
from arc_halo.autogenerate.objects import declared, is_creation, tables_and_views, view_sources
from arc_halo.autogenerate.partitions import declared_partitions
from arc_halo.autogenerate.privileges import grant, set_default_privileges
from arc_halo.autogenerate.savepoints import run, succeeds
from arc_halo.autogenerate.schemas import declared_schemas, quoted
from arc_halo.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Connection, MetaData

    from arc_halo.autogenerate.objects import Key, Statements
    from arc_halo.autogenerate.schemas import Schemas


@dataclass(frozen=True)
class Built:
    """A declared object: its source, and whether it could be created before any table existed."""

    source: Statements
    before_tables: bool


def create_all(connection: Connection, metadata: MetaData) -> dict[Key, Built]:
    """Create the schemas, extensions, tables with their partitions, views, and every declared object and privilege.

    The order is found by trying, so declarations need none. The caller owns the transaction.

    Returns
    -------
    dict[Key, Built]
        The objects in the order in which they were created.

    Raises
    ------
    ConfigurationError
        If a declaration creates no object of the schemas, or several, or several of them cannot be created, or it
        changes privileges that are left alone.
    sqlalchemy.exc.DBAPIError
        PostgreSQL's reason, if an object cannot be created.
    """
    tables, views = tables_and_views(metadata)
    schemas = declared_schemas(metadata)
    run(connection, [f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}" for schema in schemas])
    install_extensions(connection, metadata)
    set_default_privileges(connection, metadata, schemas)
    built: dict[Key, Built] = {}
    waiting = _create_possible(connection, metadata, declared(metadata), built, before_tables=True)
    metadata.create_all(connection, tables=tables, checkfirst=False)
    for table in tables:
        run(connection, declared_partitions(table.info))
    waiting += [source for view in views for source in view_sources(view)]
    waiting = _create_possible(connection, metadata, waiting, built, before_tables=False)
    if waiting:
        _refuse(connection, waiting)
    grant(connection, metadata, schemas)
    return built


def _refuse(connection: Connection, waiting: list[Statements]) -> None:
    """Give PostgreSQL's reason for one declaration, or its reasons for several."""
    reasons: list[str] = []
    for source in waiting:
        try:
            with connection.begin_nested():
                run(connection, source)
        except DBAPIError as error:
            if len(waiting) == 1:
                raise
            said = str(error.orig).splitlines()[0]
            reasons.append(f"{source[0].splitlines()[0][:100]}: {said}")
    raise ConfigurationError(
        f"{len(waiting)} declarations cannot be created; some wait for others, or they for each other:\n"
        + "\n".join(reasons)
        + "\nPostgreSQL looks into views, defaults and SQL functions when they are made, and into PL/pgSQL only when it"
        " runs: to break a circle, write one of its functions in that."
    )


def _create_possible(
    connection: Connection,
    metadata: MetaData,
    waiting: list[Statements],
    built: dict[Key, Built],
    *,
    before_tables: bool,
) -> list[Statements]:
    """Create what can be created until nothing more can; return what is left."""
    schemas = declared_schemas(metadata)
    while True:
        creations = [source for source in waiting if is_creation(source)]
        settings = [source for source in waiting if not is_creation(source)]
        made = [*_try_at_once(connection, schemas, creations), *_try_each(connection, schemas, settings)]
        built |= {key: Built(source, before_tables) for key, source in made}
        done = {source for _, source in made}
        left = [source for source in waiting if source not in done]
        if not done:
            return left
        waiting = left


def _try_at_once(connection: Connection, schemas: Schemas, sources: list[Statements]) -> list[tuple[Key, Statements]]:
    """Create what can be created; PostgreSQL is asked once what that was.

    Each source is a subtransaction of its own, and those are numbered in order: the oldest object is of the first one.
    """
    before = object_births(connection, schemas)
    savepoint = connection.begin_nested()
    made = [source for source in sources if succeeds(connection, source)]
    new = {key: born for key, born in object_births(connection, schemas).items() if key not in before}
    births = sorted((born, key) for key, born in new.items() if born is not None)
    if len(made) == len(new) == len({born for born, _ in births}):
        savepoint.commit()
        return [(key, source) for (_, key), source in zip(births, made, strict=True)]
    savepoint.rollback()  # one of them is no declaration of one object
    return _try_each(connection, schemas, sources)


def _try_each(connection: Connection, schemas: Schemas, sources: list[Statements]) -> list[tuple[Key, Statements]]:
    """Create what can be created; PostgreSQL is asked each time what that was."""
    made: list[tuple[Key, Statements]] = []
    present = object_births(connection, schemas).keys() if sources else set()
    for source in sources:
        if not succeeds(connection, source):
            continue
        keys = object_births(connection, schemas).keys()
        new = keys - present
        if len(new) != 1:
            raise ConfigurationError(
                f"A declaration must create one object of schema {' or '.join(schemas)}; this one created"
                f" {sorted(new) or 'none'}: {source[0][:200]}"
            )
        made.append((new.pop(), source))
        present = keys
    return made
