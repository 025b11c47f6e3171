"""Pytest fixtures: real PostgreSQL, migrated once per run, and a database or transaction of its own for each test.

Switch it on with ``pytest_plugins = ["arc_halo.testing.databases"]``. The server is the one of
``ARC_HALO_TEST_DATABASE_URL`` (its role must be allowed to create databases and extensions), else a container where a
Docker engine answers, else the embedded server in a folder that is removed afterwards. Under pytest-xdist all workers
share the controller's.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.orm import Session

from arc_halo.database import Database, connect, parse_url
from arc_halo.database.embedded import EmbeddedServer
from arc_halo.database.migrate import upgrade
from arc_halo.database.url import libpq_string

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL

IMAGE: Final = "pgvector/pgvector:pg18"
_DOCKER_SOCKETS: Final = (Path("/var/run/docker.sock"), Path.home() / ".docker" / "run" / "docker.sock")
_DOCKER_SECONDS: Final = 2.0
# Nothing of a test outlives its machine, so nothing needs to reach the disk. Commits still wait for the kernel to have
# them: a test may kill the server and expect what was committed.
UNSAFE_AND_FAST: Final = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "128MB"}


@dataclass(frozen=True)
class DatabaseServer:
    """A server to make databases on; every name begins with ``prefix``, one per test run."""

    url: URL
    prefix: str
    stop: Callable[[], None]

    def create(self, template: str = "template1") -> URL:
        """A new database, as a copy of ``template``, which nobody may be connected to."""
        name = f"{self.prefix}_{uuid4().hex[:12]}"
        self._create(name, template)
        return self.url.set(database=name)

    def drop(self, url: URL) -> None:
        """Drop a database that `create` made, whoever is still connected."""
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", str(url.database))

    def template(self) -> str:
        """The name of a migrated database; the first who asks makes it, the others wait."""
        name = f"{self.prefix}_template"
        with self._connection() as connection:
            connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [name])
            if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchall():
                building = f"{name}_building"
                self._create(building, "template1")
                upgrade(self.url.set(database=building))
                self._execute("ALTER DATABASE {} RENAME TO {}", building, name)
        return name

    def databases(self) -> list[str]:
        """The names of this run's databases."""
        statement = "SELECT datname FROM pg_database WHERE starts_with(datname, %s) ORDER BY datname"
        with self._connection() as connection:
            return [name for (name,) in connection.execute(statement, [self.prefix])]

    def wait(self, seconds: float = 60.0) -> None:
        """Wait until the server takes connections."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self._connection().close()
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.2)

    def close(self) -> None:
        """Drop what the run left behind, and stop the server if it is ours."""
        for name in self.databases():
            self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)
        self.stop()

    def _create(self, name: str, template: str) -> None:
        # Copied as files: with few blocks to copy the checkpoint it forces costs less than logging each of them.
        self._execute("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy", name, template)

    def _execute(self, statement: str, *names: str) -> None:
        with self._connection() as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def _connection(self) -> psycopg.Connection[Any]:
        return psycopg.connect(libpq_string(self.url), autocommit=True)


def start_server() -> DatabaseServer:
    """The first that is there: a server named in the environment, a container, the embedded server."""
    prefix = f"arc_halo_test_{uuid4().hex[:8]}"
    if given := os.environ.get("ARC_HALO_TEST_DATABASE_URL"):
        return DatabaseServer(parse_url(given), prefix, stop=lambda: None)
    if _docker_answers():
        return _start_container(prefix)
    return _start_embedded(prefix)


def _docker_answers() -> bool:
    """Ask as plainly as can be: Docker's own client is slow to import and leaks the socket it could not use."""
    given = os.environ.get("DOCKER_HOST")
    return any(map(_pings, [given] if given else [f"unix://{path}" for path in _DOCKER_SOCKETS]))


def _pings(address: str) -> bool:
    parts = urlsplit(address)
    if parts.scheme not in {"unix", "tcp"}:
        return False
    where: Any = parts.path if parts.scheme == "unix" else (parts.hostname, parts.port or 2375)
    try:
        with socket.socket(socket.AF_UNIX if parts.scheme == "unix" else socket.AF_INET) as link:
            link.settimeout(_DOCKER_SECONDS)
            link.connect(where)
            link.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in link.recv(64)
    except OSError:
        return False


def _start_container(prefix: str) -> DatabaseServer:
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415  only where Docker is

    password = uuid4().hex
    container = DockerContainer(IMAGE).with_env("POSTGRES_PASSWORD", password).with_exposed_ports(5432)
    settings = [part for name, value in UNSAFE_AND_FAST.items() for part in ("-c", f"{name}={value}")]
    container.with_command(["postgres", *settings]).start()
    host, port = container.get_container_host_ip(), container.get_exposed_port(5432)
    server = DatabaseServer(
        parse_url(f"postgresql://postgres:{password}@{host}:{port}/postgres?sslmode=disable"), prefix, container.stop
    )
    server.wait()
    return server


def _start_embedded(prefix: str) -> DatabaseServer:
    home = Path(tempfile.mkdtemp(prefix="arc-halo-test-"))  # not pytest's: it would be closed to the server's user
    server = EmbeddedServer(home, UNSAFE_AND_FAST)
    server.acquire()

    def stop() -> None:
        server.close()
        shutil.rmtree(home)

    return DatabaseServer(server.url("postgres"), prefix, stop)


_SERVER = pytest.StashKey[DatabaseServer]()


def _server_of(config: pytest.Config) -> DatabaseServer:
    if _SERVER not in config.stash:
        lent = getattr(config, "workerinput", {}).get("arc_halo_server")
        config.stash[_SERVER] = DatabaseServer(parse_url(lent[0]), lent[1], lambda: None) if lent else start_server()
    return config.stash[_SERVER]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Lend the controller's server to a worker of pytest-xdist."""
    server = _server_of(node.config)
    node.workerinput["arc_halo_server"] = (server.url.render_as_string(hide_password=False), server.prefix)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the server of this run; a worker's is the controller's."""
    if _SERVER in config.stash and not hasattr(config, "workerinput"):
        config.stash[_SERVER].close()


@pytest.fixture(scope="session")
def database_server(pytestconfig: pytest.Config) -> DatabaseServer:
    """The server of this test run."""
    return _server_of(pytestconfig)


@pytest.fixture
def database_url(database_server: DatabaseServer) -> Iterator[URL]:
    """An empty database of the test's own."""
    url = database_server.create()
    yield url
    database_server.drop(url)


@pytest.fixture
def migrated_url(database_server: DatabaseServer) -> Iterator[URL]:
    """A database of the test's own, migrated to head."""
    url = database_server.create(database_server.template())
    yield url
    database_server.drop(url)


@pytest.fixture
def database(migrated_url: URL) -> Iterator[Database]:
    """A connected database of the test's own, migrated to head: for tests that commit or use several connections."""
    with connect(migrated_url) as database:
        yield database


@pytest.fixture(scope="session")
def shared_database(database_server: DatabaseServer) -> Iterator[Database]:
    """One migrated database per worker, in which nothing is ever committed."""
    url = database_server.create(database_server.template())
    with connect(url) as database:
        yield database
    database_server.drop(url)


@pytest.fixture
def session(shared_database: Database) -> Iterator[Session]:
    """A session of `rolled_back_session` on the worker's database: the fast choice."""
    with rolled_back_session(shared_database) as session:
        yield session


@contextmanager
def rolled_back_session(database: Database) -> Iterator[Session]:
    """A session whose commits are savepoints of a transaction that is rolled back in the end."""
    with database.engine.connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint", expire_on_commit=False) as session:
            yield session
        outer.rollback()
