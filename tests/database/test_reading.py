from __future__ import annotations

import psycopg
import pytest
from sqlalchemy import text

from arc_halo import connect
from arc_halo.errors import DatabaseUnavailable


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr("arc_halo.database.backoff.FIRST_SECONDS", 0.001)


def ask(session):
    return session.scalar(text("SELECT count(*) FROM arc_halo.models"))


@pytest.fixture
def database_url(migrated_url):
    """A migrated database; ``proxy`` leads there."""
    return migrated_url


def test_a_read_is_one_statement_and_nothing_else(database, monkeypatch):
    database.read(ask)
    sent = []
    execute = psycopg.Cursor.execute

    def noted(self, query, *rest, **options):
        sent.append(query)
        return execute(self, query, *rest, **options)

    monkeypatch.setattr(psycopg.Cursor, "execute", noted)
    assert database.read(ask) == 0
    assert database.read(lambda session: session.connection().connection.driver_connection.autocommit)
    assert len(sent) == 1


def test_a_read_leaves_no_transaction_open(database):
    assert database.read(lambda session: session.scalar(text("SELECT pg_current_xact_id_if_assigned()"))) is None
    with database.session() as session:
        open_ones = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
        assert session.scalar(text(open_ones)) == 0


def test_a_link_that_was_cut_while_nobody_used_it_is_not_noticed(proxy):
    with connect(proxy.url) as database:
        assert database.read(ask) == 0
        proxy.cut()
        assert database.read(ask) == 0


def test_a_link_that_is_cut_meanwhile_is_replaced(proxy):
    cuts = iter([True, False])

    def cut_once(session):
        if next(cuts):
            proxy.cut()
        return ask(session)

    with connect(proxy.url) as database:
        assert database.read(cut_once) == 0


def test_a_server_that_is_gone_is_said(proxy, monkeypatch):
    monkeypatch.setenv("ARC_HALO_CONNECT_ATTEMPTS", "1")
    with connect(proxy.url) as database:
        database.read(ask)
        proxy.stop()
        proxy.cut()
        with pytest.raises(DatabaseUnavailable):
            database.read(ask, attempts=2)


def test_reading_after_closing_connects_anew(migrated_url):
    database = connect(migrated_url)
    database.read(ask)
    database.close()
    assert database.read(ask) == 0
    database.close()
