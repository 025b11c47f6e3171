from __future__ import annotations

import os
import time
from types import SimpleNamespace

import psycopg
import pytest
from sqlalchemy import text

from arc_halo.database.engine import application_engine, connect_patiently
from arc_halo.database.url import libpq_string, parse_url
from arc_halo.errors import DatabaseUnavailable, PoolExhausted, StatementTimeout
from arc_halo.settings import Settings

BACKEND = text("SELECT pg_backend_pid()")


def refusal(**facts):
    return psycopg.OperationalError("no", pgconn=SimpleNamespace(**({"needs_password": 0, "used_password": 0} | facts)))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr("arc_halo.database.backoff.FIRST_SECONDS", 0.001)


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (refusal(), 6),
        (psycopg.OperationalError("failed to resolve host"), 6),
        (psycopg.errors.ConnectionTimeout("too late"), 1),
        (refusal(needs_password=1), 1),
        (refusal(used_password=1), 2),
    ],
)
def test_how_often_connecting_is_tried(error, attempts):
    calls = []

    def connect():
        calls.append(1)
        raise error

    with pytest.raises(DatabaseUnavailable, match="cannot connect to the moon") as raised:
        connect_patiently(connect, 6, where="the moon")
    assert len(calls) == attempts
    assert raised.value.__cause__ is error


def test_a_server_that_starts_late_is_reached():
    answers = iter([refusal(), refusal(), None])

    def connect():
        if answer := next(answers):
            raise answer
        return "connection"

    assert connect_patiently(connect, 6, where="here") == "connection"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no-such-host.invalid"])
def test_no_server_is_a_typed_error(address, impatient):
    engine = application_engine(parse_url(f"postgresql://u:s3cret@{address}/db?sslmode=disable"), impatient)
    with pytest.raises(DatabaseUnavailable, match="after 2 attempts") as raised:
        engine.connect()
    assert "s3cret" not in str(raised.value)


def test_a_blackhole_costs_one_timeout(blackhole, impatient):
    settings = impatient.model_copy(update={"connect_attempts": 6, "connect_timeout_seconds": 2})
    engine = application_engine(parse_url(f"postgresql://127.0.0.1:{blackhole}/db"), settings)
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailable, match="timeout"):
        engine.connect()
    assert time.monotonic() - began < 4


def test_an_exhausted_pool_is_a_typed_error(database_url):
    settings = Settings(_env_file=None, pool_size=1, max_overflow=0, pool_timeout_seconds=0.1)
    engine = application_engine(database_url, settings)
    with engine.connect(), pytest.raises(PoolExhausted, match="all 1 pooled connections"):
        engine.connect()
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    engine.dispose()


def test_a_connection_killed_while_idle_is_replaced_unseen(engine):
    with engine.connect() as connection:
        idle = connection.scalar(BACKEND)
    with psycopg.connect(libpq_string(engine.url)) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [idle])
    with engine.connect() as connection:
        assert connection.scalar(BACKEND) != idle


def test_a_link_cut_in_use_is_a_typed_error_and_the_next_one_works(proxy, impatient):
    engine = application_engine(proxy.url, impatient)
    with engine.connect() as connection:
        connection.execute(BACKEND)
        proxy.cut()
        with pytest.raises(DatabaseUnavailable, match="run the unit again"):
            connection.execute(BACKEND)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    engine.dispose()


def test_a_forked_child_leaves_the_parents_connections_alone(engine):
    with engine.connect() as connection:
        before = connection.scalar(BACKEND)
    if not (child := os.fork()):
        with engine.connect() as connection:
            os._exit(connection.scalar(BACKEND) == before)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with engine.connect() as connection:
        assert connection.scalar(BACKEND) == before


def test_the_statement_timeout_of_the_settings_holds(database_url):
    engine = application_engine(database_url, Settings(_env_file=None, statement_timeout_seconds=0.05))
    with engine.connect() as connection, pytest.raises(StatementTimeout):
        connection.execute(text("SELECT pg_sleep(5)"))
    engine.dispose()


def test_the_search_path_is_the_sessions_own(engine):
    with engine.connect() as connection:
        assert connection.scalar(text("SHOW search_path")) == '"$user", public'
        assert connection.scalar(text("SHOW application_name")) == "arc-halo"
