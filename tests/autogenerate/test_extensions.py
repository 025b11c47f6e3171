"""Extensions are installed where they are missing, moved and updated, and never dropped."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from arc_halo.autogenerate import declare, declare_extension
from arc_halo.autogenerate.drift import differences_from_declared
from tests.autogenerate.project import new_metadata

NAME = "pg_stat_statements"
VERSION = "1.9"
"""One that the server can still install, and is not its default."""


def declaring(**options):
    metadata = new_metadata()
    declare_extension(metadata, NAME, **options)
    return metadata


def installed(project):
    query = "SELECT extnamespace::regnamespace::text, extversion FROM pg_extension WHERE extname = :name"
    with project.engine.connect() as connection:
        row = connection.execute(text(query), {"name": NAME}).one_or_none()
        return row and tuple(row)


def drift(project, metadata):
    with project.engine.connect() as connection:
        return [(each.kind, each.name, each.change) for each in differences_from_declared(connection, metadata)]


def test_it_is_installed_before_what_uses_it(project):
    metadata = declaring(schema="public")
    declare(metadata, f"CREATE VIEW app.v_calls AS SELECT calls FROM public.{NAME}")
    written = project.migrate(metadata)
    assert written.index(f"CREATE EXTENSION IF NOT EXISTS {NAME} WITH SCHEMA public") < written.index("v_calls")
    assert installed(project)[0] == "public"
    project.downgrade("base")
    assert installed(project)[0] == "public"
    project.execute("DROP TABLE app.alembic_version", f"DROP EXTENSION {NAME}", project.sql("head"))
    assert installed(project)[0] == "public"


def test_one_that_is_there_is_left_as_it_is(project):
    project.execute(f"CREATE EXTENSION {NAME} WITH SCHEMA neighbour VERSION '{VERSION}'")
    assert "EXTENSION" not in project.migrate(declaring())
    assert installed(project) == ("neighbour", VERSION)
    assert "EXTENSION" not in project.migrate(new_metadata())
    assert installed(project) == ("neighbour", VERSION)


def test_it_is_moved_and_updated(project):
    project.migrate(declaring(schema="neighbour", version=VERSION))
    assert installed(project) == ("neighbour", VERSION)
    written = project.migrate(declaring(schema="public", version="1.10"))
    assert f"ALTER EXTENSION {NAME} UPDATE TO '1.10'" in written
    assert installed(project) == ("public", "1.10")
    with pytest.raises(DBAPIError, match="no update path"):
        project.downgrade()
    assert installed(project) == ("public", "1.10")


def test_it_is_moved_back(project):
    project.migrate(declaring(schema="neighbour"))
    project.migrate(declaring(schema="public"))
    project.downgrade()
    assert installed(project)[0] == "neighbour"


def test_one_in_our_own_schema_is_found_while_that_is_set_aside(project):
    metadata = declaring(schema="app")
    declare(metadata, f"CREATE VIEW app.v_calls AS SELECT calls FROM app.{NAME}")
    project.migrate(metadata)
    assert installed(project)[0] == "app"


def test_drift_names_it(project):
    project.migrate(new_metadata())
    assert drift(project, declaring()) == [("extension", NAME, "missing")]
    project.execute(f"CREATE EXTENSION {NAME} WITH SCHEMA public VERSION '{VERSION}'")
    assert drift(project, declaring()) == []
    assert drift(project, declaring(schema="public", version=VERSION)) == []
    assert drift(project, declaring(schema="neighbour")) == [("extension", NAME, "changed")]
    assert drift(project, declaring(version="1.10")) == [("extension", NAME, "changed")]
