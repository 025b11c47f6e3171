from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import psycopg
import pytest
from alembic.config import Config
from sqlalchemy import text

from arc_halo.database import migrate
from arc_halo.database.url import libpq_string, parse_url
from arc_halo.errors import ConfigurationError, DatabaseUnavailable, LockTimeout, SchemaNotAtHead

pytestmark = pytest.mark.usefixtures("scripts")

UPGRADE = """
import sys
from pathlib import Path
from arc_halo.database import migrate
migrate.script_folder = lambda: Path(sys.argv[1])
migrate.upgrade(sys.argv[2])
"""


def start_upgrade(scripts, url):
    address = url.render_as_string(hide_password=False)
    return subprocess.Popen([sys.executable, "-c", UPGRADE, scripts.folder, address], stderr=subprocess.PIPE)


def run_sql(url, statement):
    with psycopg.connect(libpq_string(url)) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else None


def columns(url):
    statement = (
        "SELECT column_name FROM information_schema.columns WHERE table_schema = 'arc_halo' AND table_name = 'runs'"
    )
    return {name for (name,) in run_sql(url, statement)}


def test_up_and_down_and_up(database_url):
    assert migrate.current(database_url) == ()
    migrate.upgrade(database_url)
    assert migrate.current(database_url) == migrate.heads() == ("0002",)
    assert columns(database_url) == {"pid", "label"}
    migrate.downgrade(database_url, "base")
    assert migrate.current(database_url) == ()
    migrate.upgrade(database_url, "0001")
    assert columns(database_url) == {"pid"}


def test_nothing_is_printed(database_url, capfd):
    migrate.upgrade(database_url)
    migrate.downgrade(database_url, "base")
    assert capfd.readouterr() == ("", "")


def test_a_password_with_special_characters_survives():
    config = Config()
    url = parse_url("postgresql://u:p%25%40%3A@localhost/db")
    config.attributes["url"] = url
    assert migrate.environment_url(config).password == "p%@:"


def test_where_the_environment_finds_its_url(monkeypatch):
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", "postgresql://localhost/settings")
    config = Config()
    assert migrate.environment_url(config).database == "settings"
    config.set_main_option("sqlalchemy.url", "postgresql://localhost/ini")
    assert migrate.environment_url(config).database == "ini"
    config.cmd_opts = type("Options", (), {"x": ["allow_data_loss=1", "url=postgresql://localhost/x?a=b"]})
    assert migrate.environment_url(config).database == "x"
    config.attributes["url"] = "postgresql://localhost/attribute"
    assert migrate.environment_url(config).database == "attribute"


def test_eight_at_once_one_runs(scripts, database_url):
    scripts.add("0003", "0002", "INSERT INTO arc_halo.runs DEFAULT VALUES")
    upgrades = [start_upgrade(scripts, database_url) for _ in range(8)]
    assert [upgrade.communicate()[1] for upgrade in upgrades] == [b""] * 8
    assert [upgrade.returncode for upgrade in upgrades] == [0] * 8
    assert run_sql(database_url, "SELECT count(*) FROM arc_halo.runs") == [(1,)]


def test_a_killed_upgrade_is_taken_up_again(scripts, database_url):
    scripts.add("0003", "0002", "INSERT INTO arc_halo.runs DEFAULT VALUES; SELECT pg_sleep(60)")
    upgrade = start_upgrade(scripts, database_url)
    sleeping = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()"
    while not (found := run_sql(database_url, sleeping)):
        time.sleep(0.05)
    upgrade.send_signal(signal.SIGKILL)
    upgrade.communicate()
    run_sql(database_url, f"SELECT pg_terminate_backend({found[0][0]}, 5000)")
    assert migrate.current(database_url) == ("0002",)
    scripts.add("0003", "0002", "INSERT INTO arc_halo.runs DEFAULT VALUES")
    migrate.upgrade(database_url)
    assert run_sql(database_url, "SELECT count(*) FROM arc_halo.runs") == [(1,)]


def test_a_long_reader_costs_a_timeout_and_nothing_changes(scripts, database_url, monkeypatch):
    scripts.add_label(lock_timeout="50ms")
    monkeypatch.setattr("arc_halo.database.backoff.FIRST_SECONDS", 0.001)
    migrate.upgrade(database_url, "0001")
    with psycopg.connect(libpq_string(database_url)) as reader:
        reader.execute("SELECT FROM arc_halo.runs")
        with pytest.raises(LockTimeout, match="somebody holds the lock"):
            migrate.upgrade(database_url)
    assert migrate.current(database_url) == ("0001",)
    migrate.upgrade(database_url)
    assert columns(database_url) == {"pid", "label"}


def test_a_reader_that_leaves_in_time_is_waited_for(scripts, database_url):
    scripts.add_label(lock_timeout="200ms")
    migrate.upgrade(database_url, "0001")
    reader = psycopg.connect(libpq_string(database_url))
    reader.execute("SELECT FROM arc_halo.runs")
    timer = threading.Timer(0.3, reader.close)
    timer.start()
    migrate.upgrade(database_url)
    timer.join()
    assert migrate.current(database_url) == ("0002",)


def test_the_lock_is_held_by_one_and_given_up(database_url):
    first, second = migrate.migration_engine(database_url), migrate.migration_engine(database_url)
    outcome = []

    def other():
        try:
            with migrate.migration_lock(second, wait_seconds=0.1):
                outcome.append("granted")
        except LockTimeout as error:
            outcome.append(str(error))

    for expected in ("another migration of", "granted"):
        thread = threading.Thread(target=other)
        if expected == "granted":
            thread.start()
        else:
            with migrate.migration_lock(first), migrate.migration_lock(second):
                thread.start()
                thread.join()
        thread.join()
        assert outcome.pop().startswith(expected)


def test_another_migration_is_waited_for_once_and_named(database_url, monkeypatch):
    waits = []

    def hurried(engine):
        waits.append(engine)
        return migration_lock(engine, wait_seconds=0.1)

    migration_lock = migrate.migration_lock
    monkeypatch.setattr(migrate, "migration_lock", hurried)
    with psycopg.connect(libpq_string(database_url)) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [migrate.LOCK_KEY])
        with pytest.raises(LockTimeout, match=f"see pid {other.info.backend_pid} in pg_stat_activity"):
            migrate.upgrade(database_url)
    assert len(waits) == 1


def lose_the_lock(url):
    ours = "locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    assert run_sql(url, f"SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE {ours}") == [(True,)]


def test_work_done_stays_done_where_the_lock_was_lost(database_url):
    with migrate.migration_lock(migrate.migration_engine(database_url)):
        lose_the_lock(database_url)
    with migrate.migration_lock(migrate.migration_engine(database_url), wait_seconds=0):
        pass


def test_a_lost_lock_hides_no_error(database_url):
    engine = migrate.migration_engine(database_url)
    with pytest.raises(ZeroDivisionError), migrate.migration_lock(engine):  # noqa: PT012  the loss is the point
        lose_the_lock(database_url)
        raise ZeroDivisionError


def test_the_agreement_of_code_and_database_is_one_query(database_url, engine, count_statements):
    migrate.upgrade(database_url)
    with engine.connect() as connection:
        connection.scalar(text("SELECT 1"))
    with count_statements(engine) as statements:
        migrate.ensure_at_head(engine)
    assert len(statements) == 1


def test_an_empty_database_is_told_to_upgrade(engine):
    with pytest.raises(SchemaNotAtHead, match=r"no Arc-Halo schema yet.*arc-halo db upgrade"):
        migrate.ensure_at_head(engine)


def test_an_older_database_is_told_to_upgrade(database_url, engine):
    migrate.upgrade(database_url, "0001")
    with pytest.raises(SchemaNotAtHead, match="at revision 0001, and the code is at 0002"):
        migrate.ensure_at_head(engine)


def test_a_newer_database_is_not_written(scripts, database_url, engine):
    migrate.upgrade(database_url)
    scripts.remove("0002")
    with pytest.raises(SchemaNotAtHead, match="0002, which this version of arc-halo does not know"):
        migrate.ensure_at_head(engine)
    with pytest.raises(SchemaNotAtHead, match="0002"):
        migrate.upgrade(database_url)
    assert columns(database_url) == {"pid", "label"}


def test_two_heads_are_not_written(scripts, database_url, engine):
    scripts.add("0002b", "0001", "SELECT 1")
    with pytest.raises(SchemaNotAtHead, match="several heads"):
        migrate.ensure_at_head(engine)
    with pytest.raises(SchemaNotAtHead, match=r"[Mm]ultiple head"):
        migrate.upgrade(database_url)
    assert columns(database_url) == set()


def test_a_difference_from_the_declarations_is_told(database_url):
    with pytest.raises(SchemaNotAtHead, match="not up to date"):
        migrate.check(database_url)
    migrate.upgrade(database_url)
    migrate.check(database_url)


def test_a_migration_session_is_pinned(database_url):
    engine = migrate.migration_engine(database_url)
    with engine.connect() as connection:
        assert connection.scalar(text("SHOW search_path")) == "pg_catalog, public"
        assert connection.scalar(text("SHOW lock_timeout")) == "5s"
    assert engine.dialect.default_schema_name == "pg_catalog"


def test_a_pooler_is_refused():
    with pytest.raises(ConfigurationError, match="direct host"):
        migrate.upgrade("postgresql://u@ep-x-pooler.aws.neon.tech/db")


def test_no_server_is_a_typed_error(monkeypatch):
    monkeypatch.setenv("ARC_HALO_CONNECT_ATTEMPTS", "1")
    with pytest.raises(DatabaseUnavailable):
        migrate.upgrade("postgresql://127.0.0.1:1/db")
