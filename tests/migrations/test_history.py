"""Our revisions lead from nothing to what the code declares, and back."""

from __future__ import annotations

import ast

import pytest

from arc_halo.autogenerate import difference
from arc_halo.database.migrate import heads, script_folder
from arc_halo.schema import Base

REVISIONS = sorted((script_folder() / "versions").glob("*.py"))


def test_one_head():
    assert len(heads()) == 1


@pytest.mark.parametrize("path", REVISIONS, ids=lambda path: path.stem)
def test_each_revision_goes_up_down_and_up(migrations, path):
    revision = path.stem.split("_")[0]
    migrations.upgrade(revision)
    reached = migrations.fingerprint()
    migrations.downgrade()
    migrations.upgrade(revision)
    assert difference(reached, migrations.fingerprint()) == []


def test_migrations_equal_create_all(migrated):
    assert difference(migrated.fingerprint(), migrated.built(Base.metadata)) == []


def test_up_down_up(migrations):
    migrations.upgrade()
    first = migrations.fingerprint()
    migrations.downgrade("base")
    assert migrations.fingerprint() == []
    left = "SELECT relname FROM pg_class WHERE relnamespace = 'arc_halo'::regnamespace AND relkind <> 'i'"
    assert migrations.scalars(left) == ["alembic_version"]
    migrations.upgrade()
    assert difference(first, migrations.fingerprint()) == []


def test_offline_equals_online(migrations, migrated):
    migrations.execute(migrations.sql())
    assert difference(migrations.fingerprint(), migrated.fingerprint()) == []
    migrations.check()


def test_check_is_clean_with_partitions_present(migrated):
    parents = "SELECT relname FROM pg_class WHERE relkind = 'p' AND pg_get_partkeydef(oid) LIKE 'RANGE%'"
    for parent in migrated.scalars(parents):
        migrated.execute(f"SELECT arc_halo.ensure_time_partitions('arc_halo.{parent}')")
    assert migrated.scalars("SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r'")
    migrated.check()


@pytest.mark.parametrize("path", REVISIONS, ids=lambda path: path.stem)
def test_revisions_do_not_import_the_package(path):
    imported = {
        name.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert imported <= {"__future__", "alembic", "pgvector.sqlalchemy", "sqlalchemy", "sqlalchemy.dialects"}
