"""A database of its own to run revisions on, gone afterwards."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from psycopg import Error, sql
from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    import psycopg
    from sqlalchemy import URL, Connection, Engine

# Those that are there by themselves, or of sessions, are left out.
_SCHEMAS: Final = """
SELECT n.nspname FROM pg_catalog.pg_namespace AS n
 WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'public')
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d
                    WHERE d.classid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND d.objid = n.oid
                      AND d.deptype = 'e')
 ORDER BY 1"""
_EXTENSIONS: Final = """
SELECT e.extname, n.nspname
  FROM pg_catalog.pg_extension AS e JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
 WHERE e.extname <> 'plpgsql' ORDER BY e.oid"""


@contextmanager
def temporary_database(engine: Engine) -> Iterator[URL]:
    """An empty database on the server of ``engine``, dropped at the end of the block.

    Raises
    ------
    PermissionDenied
        The role may not create databases.
    """
    name = f"arc_halo_lint_{uuid4().hex[:12]}"
    quoted = sql.Identifier(name).as_string()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {quoted} TEMPLATE template0")
        try:
            yield engine.url.set(database=name)
        finally:
            connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {quoted} WITH (FORCE)")


def furnish(scratch: psycopg.Connection[Any], live: Connection) -> None:
    """Make the schemas and extensions of the live database, as far as the scratch's server has them.

    Revisions may rely on them without making them. A neighbour's extension that is missing there is no matter: what
    wants it will say so.
    """
    for name in live.scalars(text(_SCHEMAS)):
        scratch.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(name)))
    for name, schema in live.execute(text(_EXTENSIONS)).all():
        statement = sql.SQL("CREATE EXTENSION IF NOT EXISTS {} WITH SCHEMA {}")
        if schema != "pg_catalog":
            try:
                scratch.execute(statement.format(sql.Identifier(name), sql.Identifier(schema)))
            except Error:
                continue
