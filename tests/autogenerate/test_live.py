"""Autogenerate beside clients of the database: it waits for none, stops none, and leaves nothing behind."""

from __future__ import annotations

import logging
from contextlib import ExitStack

import pytest
from alembic.util import CommandError
from sqlalchemy import create_engine, event, text

from tests.autogenerate.cases import declared

LOGGER = "alembic.autogenerate.arc_halo"
LOCKS = text(
    "SELECT c.relname, l.mode FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation"
    " WHERE l.pid <> pg_backend_pid() AND l.relation = ANY (:tables)"
)
TABLES = text("SELECT array_agg(oid::bigint) FROM pg_class WHERE relnamespace = 'app'::regnamespace AND relkind = 'r'")


@pytest.fixture
def client(project):
    """A connection of somebody else's."""
    engine = create_engine(project.engine.url, connect_args={"application_name": "shop"})
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@pytest.mark.parametrize("name", ["materialized_view", "column_type", "circular_references", "partitioned_table"])
def test_nobody_waits_while_a_revision_is_written(project, client, name):
    project.migrate(declared(name, changed=False))
    project.use(declared(name, changed=True))
    client.exec_driver_sql("SELECT FROM app.items")  # and its lock stays to the end
    tables = client.execute(TABLES).scalar_one()
    seen = []
    is_built = []

    def look(_connection, _cursor, statement, *_):
        if statement.startswith("ALTER SCHEMA"):
            is_built.append(statement)
        elif is_built:  # before, Alembic creates its version table and reads it
            seen.append({tuple(row) for row in client.execute(LOCKS, {"tables": tables})})

    event.listen(project.engine, "after_cursor_execute", look)
    assert "op." in project.revise()
    event.remove(project.engine, "after_cursor_execute", look)
    assert len(seen) > 10
    assert set().union(*seen) <= {("alembic_version", "AccessShareLock")}
    assert client.execute(LOCKS, {"tables": tables}).all() == []


def test_a_database_with_clients_is_told_of(project, client, caplog):
    client.exec_driver_sql("SELECT 1")
    with caplog.at_level(logging.WARNING, LOGGER):
        project.revise(declared("function", changed=True))
    assert "The database has 1 other client (shop)" in caplog.text


def test_one_without_is_not(project, caplog):
    with project.engine.connect() as lock, caplog.at_level(logging.WARNING, LOGGER):
        lock.exec_driver_sql("SELECT pg_advisory_lock(1)")
        project.revise(declared("function", changed=True))
    assert caplog.text == ""


def test_many_clients_are_counted(project, caplog):
    engines = [create_engine(project.engine.url, connect_args={"application_name": f"shop {n}"}) for n in range(7)]
    with ExitStack() as stack, caplog.at_level(logging.WARNING, LOGGER):
        for engine in engines:
            stack.callback(engine.dispose)
            stack.enter_context(engine.connect())
        project.revise(declared("function", changed=True))
    assert "7 other clients (shop 0, shop 1, shop 2, shop 3, shop 4 and 2 more)" in caplog.text


def test_a_database_that_is_not_at_head_is_refused(project):
    project.migrate(declared("function", changed=False))
    project.downgrade()
    with pytest.raises(CommandError, match="not up to date"):
        project.revise(declared("function", changed=True))
