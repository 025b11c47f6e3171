"""The environment's policy: prerequisites, whose transaction it is, locks, and no loss of rows unasked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import inspect

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


def test_what_holds_no_rows_may_go(migrated):
    head = migrated.scalars("SELECT version_num FROM arc_halo.alembic_version")
    migrated.execute(MODEL)
    migrated.add("later", head[0], "CREATE TABLE arc_halo.later (id bigint)", "DROP TABLE arc_halo.later")
    migrated.upgrade()
    migrated.downgrade()
    assert migrated.scalars("SELECT name FROM arc_halo.models") == ["m"]


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
