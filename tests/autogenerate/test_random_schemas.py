"""Whatever is declared, and whatever becomes of it: autogenerate goes there and back."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine

from arc_halo.autogenerate import create_all
from arc_halo.testing.migrations import Project, assert_same
from tests.autogenerate.random_edits import histories
from tests.autogenerate.random_schema import build
from tests.autogenerate.random_tables import kept, rows
from tests.fixtures.long import how_many

schemas = how_many("--schemas", short=100)


def begin(project, described):
    """What is described stands there, of ``create_all``, and no revision was written."""
    versions = Path(project.config.get_main_option("script_location"), "versions")
    shutil.rmtree(versions)  # with __pycache__, which knows a file by its second and size
    versions.mkdir()
    project.use(build(described))
    project.execute("DROP SCHEMA IF EXISTS app CASCADE")
    with project.engine.begin() as connection:
        create_all(connection, project.metadata)
    project.execute(*rows(described))


def assert_kept(project, before, after, revision):
    """No row and no value is lost on the way; then everything is filled anew, also the columns that came."""
    with project.engine.connect() as connection:
        for query in kept(before, after):
            assert connection.exec_driver_sql(query).scalar_one() == 1, f"{query}\n{revision}"
    project.execute(*rows(after))


def assert_there_and_back(project, states, *, offline):
    begin(project, states[0])
    found = [project.things()]
    revisions = []
    for before, after in pairwise(states):
        revision = project.migrate(build(after))
        assert_same(project.things(), project.built(), f"The revision does not give what is declared.\n{revision}")
        assert_kept(project, before, after, revision)
        revisions.append(revision)
        found.append(project.things())
    for place, revision in reversed(list(enumerate(revisions))):
        project.downgrade()
        assert_same(project.things(), found[place], f"The downgrade does not give the former.\n{revision}")
        assert_kept(project, states[place + 1], states[place], revision)
    if offline:
        head = f"{len(revisions):04}"
        project.execute("DROP TABLE app.alembic_version", project.sql(head))
        assert_same(project.things(), found[-1], "Offline SQL does not give the last.")
        project.execute(project.sql(f"{head}:base"))
        assert_same(project.things(), found[0], "Offline SQL of the downgrade does not give the first.")
    else:
        project.upgrade()
        assert_same(project.things(), found[-1], "The upgrade after a downgrade does not give the last.")


def run(folder, url, max_examples):
    with Project(folder, url, "app") as project:
        project.engine.dispose()
        # One connection for all: each new one fills its caches first.
        project.engine = create_engine(url, connect_args={"options": "-c search_path=pg_catalog,public"})
        project.config.attributes["engine"] = project.engine

        @settings(
            max_examples=max_examples,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        )
        @given(states=histories(), offline=st.sampled_from([False, False, False, True]))
        def there_and_back(states, offline):
            assert_there_and_back(project, states, offline=offline)

        there_and_back()


@pytest.mark.timeout(900)
def test_random_schemas(tmp_path, database_url, schemas):
    run(tmp_path / "project", database_url, schemas)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_many_random_schemas(tmp_path, database_url, schemas):
    run(tmp_path / "project", database_url, schemas)
