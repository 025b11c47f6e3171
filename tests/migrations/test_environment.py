"""The environment's policy: prerequisites, whose transaction it is, locks, and no loss of rows unasked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import inspect

from arc_halo.database.migrate import migration_lock
from arc_halo.errors import DataLossRefused, LockTimeout
from tests.migrations.own import copy_of_ours

REPOSITORY = Path(__file__).parents[2]
MODEL = "INSERT INTO arc_halo.models (name, version, model_type) VALUES ('m', '1', 'bert')"


def alembic(*arguments, **environment):
    """Plain ``alembic``, from the repository."""
    inherited = {name: value for name, value in os.environ.items() if not name.endswith("DATABASE_URL")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "alembic.config", *arguments],
        cwd=REPOSITORY, env=inherited | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_plain_alembic_with_a_url(migrations):
    url = migrations.engine.url.render_as_string(hide_password=False)
    assert alembic("upgrade", "head", ARC_HALO_DATABASE_URL=url).returncode == 0
    assert migrations.fingerprint()  # committed, though the environment had to create the schema first
    assert "No new upgrade operations" in alembic("-x", f"url={url}", "check").stdout
    assert alembic("-x", f"url={url}", "downgrade", "base").returncode == 0
    assert migrations.fingerprint() == []


def test_plain_alembic_without_a_url(home):
    assert alembic("upgrade", "head", ARC_HALO_HOME=str(home)).returncode == 0
    current = alembic("current", ARC_HALO_HOME=str(home))
    assert "(head)" in current.stdout


def test_current_changes_nothing_and_waits_for_nobody(migrations):
    url = migrations.engine.url.render_as_string(hide_password=False)
    with migration_lock(migrations.engine):
        current = alembic("current", ARC_HALO_DATABASE_URL=url)
    assert (current.returncode, current.stdout) == (0, "")
    assert migrations.scalars("SELECT to_regnamespace('arc_halo')") == [None]
    assert migrations.scalars("SELECT extname FROM pg_extension WHERE extname = 'vector'") == []


def test_offline_needs_no_server(tmp_path):
    written = alembic("upgrade", "head", "--sql", ARC_HALO_HOME=str(tmp_path))
    assert written.returncode == 0
    assert "CREATE TABLE arc_halo.models" in written.stdout
    assert list(tmp_path.iterdir()) == []


def test_revisions_are_numbered(migrated):
    written = migrated.revise(copy_of_ours())
    number = max(int(path.stem.split("_")[0]) for path in migrated.folder.iterdir())
    assert f"revision: str = '{number:04}'" in written
    assert 'op.execute("SET LOCAL lock_timeout' in written


def test_the_callers_transaction_is_the_callers(migrations):
    with migrations.engine.connect() as connection, connection.begin() as transaction:
        migrations.config.attributes["connection"] = connection
        migrations.upgrade()
        assert inspect(connection).has_table("models", "arc_halo")
        transaction.rollback()
    assert migrations.scalars("SELECT nspname FROM pg_namespace WHERE nspname = 'arc_halo'") == []


def test_the_callers_engine(migrations):
    migrations.config.attributes["connection"] = migrations.engine
    migrations.upgrade()
    assert migrations.fingerprint()


def test_rows_are_not_dropped_unasked(migrated):
    migrated.execute(MODEL)
    before = migrated.fingerprint()
    with pytest.raises(DataLossRefused, match=r": arc_halo\.models\. "):
        migrated.downgrade("base")
    assert migrated.fingerprint() == before
    assert migrated.scalars("SELECT name FROM arc_halo.models") == ["m"]
    migrated.check()


def test_a_refused_downgrade_takes_back_its_first_steps(migrated):
    head = migrated.scalars("SELECT version_num FROM arc_halo.alembic_version")
    migrated.add("later", head[0], "CREATE TABLE arc_halo.later (id bigint)", "DROP TABLE arc_halo.later")
    migrated.upgrade()
    migrated.execute(MODEL)
    with pytest.raises(DataLossRefused):
        migrated.downgrade("base")
    assert migrated.scalars("SELECT count(*) FROM arc_halo.later") == [0]
    assert migrated.scalars("SELECT version_num FROM arc_halo.alembic_version") == ["later"]


LATER = "CREATE TABLE arc_halo.later (id bigint, name text); INSERT INTO arc_halo.later VALUES (1, 'a')"


def refusal(migrated, back, back_at_once, destination="-1"):
    """What a downgrade is told; it drops what ``back`` and ``back_at_once`` say of a table with a row."""
    head = migrated.scalars("SELECT version_num FROM arc_halo.alembic_version")
    migrated.add("later", head[0], LATER, back, back_at_once)
    migrated.upgrade()
    with pytest.raises(DataLossRefused) as caught:
        migrated.downgrade(destination)
    return str(caught.value)


def test_rows_are_kept_before_a_commit_in_the_midst(migrated):
    said = refusal(migrated, "ALTER TABLE arc_halo.later DROP COLUMN name", "SELECT 1")
    assert "Nothing was changed." in said
    assert migrated.scalars("SELECT name FROM arc_halo.later") == ["a"]
    assert migrated.scalars("SELECT version_num FROM arc_halo.alembic_version") == ["later"]


def test_a_commit_in_the_midst_is_told(migrated):
    migrated.execute(MODEL)
    said = refusal(migrated, "TRUNCATE arc_halo.later", "SELECT 1", "base")
    assert "arc_halo.models." in said
    assert "Nothing was changed" not in said
    assert migrated.scalars("SELECT name FROM arc_halo.models") == ["m"]


def test_a_loss_without_a_transaction_is_told(migrated):
    said = refusal(migrated, "SELECT 1", "ALTER TABLE arc_halo.later DROP COLUMN name")
    assert "dropped what held rows: arc_halo.later.name. " in said
    assert "Nothing was changed" not in said


def test_a_concurrent_drop_of_an_index_is_let_through(migrated):
    head = migrated.scalars("SELECT version_num FROM arc_halo.alembic_version")
    index = "CREATE INDEX ix_later ON arc_halo.models (created_at)"
    migrated.add("later", head[0], index, "SELECT 1", "DROP INDEX CONCURRENTLY arc_halo.ix_later")
    migrated.upgrade()
    migrated.execute(MODEL)
    migrated.downgrade()
    assert migrated.scalars("SELECT version_num FROM arc_halo.alembic_version") == head


def test_what_holds_no_rows_may_go(migrated):
    head = migrated.scalars("SELECT version_num FROM arc_halo.alembic_version")
    migrated.execute(MODEL)
    migrated.add("later", head[0], "CREATE TABLE arc_halo.later (id bigint)", "DROP TABLE arc_halo.later")
    migrated.upgrade()
    migrated.downgrade()
    assert migrated.scalars("SELECT name FROM arc_halo.models") == ["m"]


def test_an_upgrade_that_says_that_it_loses_data_is_refused_as_a_whole(migrated):
    head = migrated.scalars("SELECT version_num FROM arc_halo.alembic_version")
    migrated.add("before", head[0], "CREATE TABLE arc_halo.later (id bigint)", "DROP TABLE arc_halo.later")
    migrated.add("later", "before", "DROP TABLE arc_halo.later", "SELECT 1")
    file = migrated.folder / "later.py"
    file.write_text(
        file.read_text().replace("    op.execute", "    # DATA LOSS: table later, with its rows\n    op.execute", 1)
    )
    with pytest.raises(DataLossRefused, match=r"later: table later, with its rows. Nothing was changed"):
        migrated.upgrade()
    assert migrated.scalars("SELECT version_num FROM arc_halo.alembic_version") == head
    migrated.upgrade("before")
    migrated.config.attributes["allow_data_loss"] = True
    migrated.upgrade()
    assert migrated.scalars("SELECT version_num FROM arc_halo.alembic_version") == ["later"]


def test_rows_go_when_the_caller_says_so(migrated):
    migrated.execute(MODEL)
    migrated.config.attributes["allow_data_loss"] = True
    migrated.downgrade("base")
    assert migrated.fingerprint() == []


def test_rows_go_when_the_command_line_says_so(migrated):
    migrated.execute(MODEL)
    url = migrated.engine.url.render_as_string(hide_password=False)
    refused = alembic("-x", f"url={url}", "downgrade", "base")
    assert "allow_data_loss=1" in refused.stderr
    assert refused.returncode != 0
    assert alembic("-x", f"url={url}", "-x", "allow_data_loss=1", "downgrade", "base").returncode == 0
    assert migrated.fingerprint() == []


def test_a_long_reader_times_the_migration_out(migrated):
    before = migrated.fingerprint()
    with migrated.engine.connect() as reader:
        reader.exec_driver_sql("SELECT count(*) FROM arc_halo.models")
        with pytest.raises(LockTimeout, match="lock"):
            migrated.downgrade("base")
    assert migrated.fingerprint() == before
