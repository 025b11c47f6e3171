from __future__ import annotations

import stat
import subprocess
import sys
from functools import partial

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from arc_halo.database import Database, connect, embedded, migrate
from arc_halo.database.embedded import EmbeddedServer, embedded_server
from arc_halo.database.engine import application_engine
from arc_halo.database.url import parse_url
from arc_halo.errors import DatabaseUnavailable, EmbeddedServerError, SchemaNotAtHead
from arc_halo.settings import Settings
from tests.fixtures.embedded import kill

pytestmark = pytest.mark.usefixtures("scripts")

CONNECT = """
import sys
from pathlib import Path
from arc_halo.database import connect, migrate
migrate.script_folder = lambda: Path(sys.argv[1])
connect().close()
"""


@pytest.fixture
def embedded_home(home, server, monkeypatch):
    """No URL configured, and a home of the test's own."""
    monkeypatch.setitem(embedded._servers, home, server)
    monkeypatch.setenv("ARC_HALO_HOME", str(home))
    monkeypatch.delenv("ARC_HALO_DATABASE_URL", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    return home


def labels(database):
    with database.session() as session:
        return session.scalars(text("SELECT label FROM arc_halo.runs")).all()


def test_a_url_is_not_migrated_unless_told(database_url):
    with pytest.raises(SchemaNotAtHead, match="arc-halo db upgrade"):
        connect(database_url)
    assert migrate.current(database_url) == ()
    with connect(database_url, migrate=True) as database:
        assert not database.is_embedded
        assert labels(database) == []
    connect(database_url).close()


def test_a_url_in_the_environment_is_used(database_url, monkeypatch):
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", database_url.render_as_string(hide_password=False))
    with connect(migrate=True) as database:
        assert database.engine.url.database == database_url.database


def test_no_server_is_a_typed_error(monkeypatch):
    monkeypatch.setenv("ARC_HALO_CONNECT_ATTEMPTS", "1")
    with pytest.raises(DatabaseUnavailable, match=r"127\.0\.0\.1"):
        connect("postgresql://127.0.0.1:1/db")


def test_objects_outlive_a_commit(engine):
    with Database(engine).session() as session:
        assert isinstance(session, Session)
        assert not session.expire_on_commit
    with Database(engine).session(expire_on_commit=True) as session:
        assert session.expire_on_commit


def test_no_password_is_shown():
    url = parse_url("postgresql://u:s3cret@localhost/db?sslpassword=s3cret&connect_timeout=1&gssencmode=disable")
    database = Database(application_engine(url, Settings(_env_file=None)))
    shown = [repr(database), database.url, database._repr_html_(), repr(database.engine), str(database.engine.url)]
    assert not any("s3cret" in text for text in shown)
    assert "connect_timeout=1&amp;gssencmode" in database._repr_html_()


def test_the_embedded_database_is_migrated_and_stops_with_its_last_user(embedded_home):
    with connect() as first, connect() as second:
        assert first.is_embedded
        assert labels(second) == []
    assert embedded_server(embedded_home)._postmaster() is None
    assert not (embedded_home / "backups").exists()


def test_the_embedded_database_may_be_left_unmigrated(embedded_home):
    with pytest.raises(SchemaNotAtHead):
        connect(migrate=False)
    assert embedded_server(embedded_home)._postmaster() is None


def test_several_processes_connect_for_the_first_time_at_once(scripts, embedded_home):
    scripts.add("0003", "0002", "INSERT INTO arc_halo.runs DEFAULT VALUES")
    command = [sys.executable, "-c", CONNECT, scripts.folder]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate()[1] for process in processes] == [b""] * 4
    with connect() as database:
        assert labels(database) == [None]
    assert not (embedded_home / "backups").exists()


def test_an_older_embedded_database_is_dumped_first(scripts, embedded_home):
    connect().close()
    scripts.add("0003", "0002", "DROP TABLE arc_halo.runs")
    connect().close()
    connect().close()
    (dump,) = (embedded_home / "backups").iterdir()
    assert dump.name.endswith("-0002.dump")
    server = embedded_server(embedded_home)
    server.acquire()
    server.run_tool("pg_restore", "--dbname=arc_halo", "--table=runs", "--schema=arc_halo", str(dump))


def upgrade_again(scripts, count):
    for number in range(count):
        scripts.add(f"1{number}", f"1{number - 1}" if number else "0002", "SELECT 1")
        connect().close()


def test_dumps_are_their_owners_alone(scripts, embedded_home):
    (embedded_home / "backups").mkdir(mode=0o755)
    connect().close()
    upgrade_again(scripts, 1)
    (dump,) = (embedded_home / "backups").iterdir()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (dump.parent, dump)] == [0o700, 0o600]


def test_the_newest_three_dumps_are_kept_and_nobody_elses_is_touched(scripts, embedded_home):
    connect().close()
    (embedded_home / "backups").mkdir()
    (embedded_home / "backups" / "mine.dump").touch()
    upgrade_again(scripts, 4)
    kept = {dump.stem.partition("-")[2] for dump in (embedded_home / "backups").iterdir()}
    assert kept == {"", "10", "11", "12"}


def test_a_failed_dump_leaves_nothing_and_the_schema_as_it_was(scripts, embedded_home, monkeypatch):
    connect().close()
    scripts.add("0003", "0002", "DROP TABLE arc_halo.runs")
    run_tool = partial(embedded_server(embedded_home).run_tool, "pg_dump", "--table=missing")
    monkeypatch.setattr(EmbeddedServer, "run_tool", lambda _self, _tool, *arguments: run_tool(*arguments))
    with pytest.raises(EmbeddedServerError, match="pg_dump failed"):
        connect()
    assert not list((embedded_home / "backups").iterdir())


def test_backups_that_cannot_be_written_stop_the_upgrade(scripts, embedded_home):
    connect().close()
    (embedded_home / "backups").touch()
    with pytest.raises(EmbeddedServerError, match="cannot be dumped into"):
        upgrade_again(scripts, 1)


def test_a_newer_embedded_database_is_left_alone(scripts, embedded_home):
    connect().close()
    scripts.remove("0002")
    with pytest.raises(SchemaNotAtHead, match="does not know"):
        connect()
    assert not (embedded_home / "backups").exists()


def test_connecting_again_after_the_server_was_killed(embedded_home):
    first = connect()
    kill(embedded_server(embedded_home))
    with connect() as second:
        assert labels(second) == []
        assert labels(first) == []
    first.close()


def test_a_killed_server_keeps_what_was_committed(embedded_home):
    with connect() as database:
        lost = database.session()
        lost.execute(text("INSERT INTO arc_halo.runs (label) VALUES ('lost')"))
        with database.session() as kept:
            kept.execute(text("INSERT INTO arc_halo.runs (label) VALUES ('kept')"))
            kept.commit()
        kill(embedded_server(embedded_home))
        lost.invalidate()
        with connect() as again:
            assert labels(again) == ["kept"]
