"""A PostgreSQL server of a benchmark's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

import arc_halo
from arc_halo.database.embedded import EmbeddedServer

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from sqlalchemy import URL


class Server:
    """An embedded server of the benchmark's own, with the settings users get, and a database for each store."""

    def __init__(self, home: Path, resources: ExitStack) -> None:
        self._server = EmbeddedServer(home)
        self._server.acquire()
        resources.callback(self._server.close)
        self._resources = resources
        self.connection = self.connect("postgres")
        self._databases: list[str] = []
        self._create("migrated", "template1")
        arc_halo.connect(self._server.url("migrated"), migrate=True).close()

    def connect(self, database: str) -> psycopg.Connection[Any]:
        """A connection in autocommit, closed when the benchmark ends."""
        return self._resources.enter_context(self._connection(database))

    def create(self, database: str) -> URL:
        """A new database with our schema."""
        self._create(database, "migrated")
        self._databases.append(database)
        return self._server.url(database)

    def create_empty(self, database: str) -> URL:
        """A new database with nothing in it."""
        self._create(database, "template1")
        self._databases.append(database)
        return self._server.url(database)

    def _connection(self, database: str) -> psycopg.Connection[Any]:
        address = self._server.url(database).set(drivername="postgresql").render_as_string(hide_password=False)
        return psycopg.connect(address, autocommit=True)

    def _create(self, database: str, template: str) -> None:
        names = (sql.Identifier(name) for name in (database, template))
        self.connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*names))

    def restart(self) -> None:
        """Stop and start it, with nothing in its memory; what others hold open is cut."""
        self.connection.close()
        self._server.release()
        self._server.acquire()
        self.connection = self.connect("postgres")

    def checkpoint(self) -> None:
        """Write what is dirty, so that the next measurement does not."""
        self.connection.execute("CHECKPOINT")

    def vacuum(self) -> None:
        """What autovacuum does sooner or later, at a time of our own."""
        for database in self._databases:
            with self._connection(database) as connection:
                connection.execute("VACUUM (ANALYZE)")
        self.checkpoint()
