"""The harness of declarations says what does not hold, and where."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
from sqlalchemy import BigInteger, Column, Enum, Integer, MetaData, Table

from arc_halo.autogenerate import declare
from arc_halo.autogenerate.fingerprint import Thing
from arc_halo.errors import ConfigurationError
from arc_halo.testing.migrations import ENVIRONMENT, Project, assert_round_trip, assert_same
from tests.docs.pages import REPOSITORY, blocks


@pytest.fixture
def project(tmp_path, database_url):
    with Project(tmp_path / "new" / "100%", database_url, "odd name") as project:
        yield project


def counting(step, kind=BigInteger):
    metadata = MetaData(schema="odd name")
    Table("counted", metadata, Column("id", kind, primary_key=True, autoincrement=False))
    name = '"odd name".following(n bigint)'
    declare(metadata, f"CREATE FUNCTION {name} RETURNS bigint LANGUAGE sql IMMUTABLE RETURN n + {step}")
    return metadata


def test_what_holds(project):
    assert "CREATE OR REPLACE FUNCTION" in assert_round_trip(project, counting(1), counting(2))
    assert_same(project.things(), project.things())


def test_what_stands_first(project):
    standing = MetaData(schema="odd name")
    counting(0).tables["odd name.counted"].to_metadata(standing)
    assert_round_trip(project, counting(1), counting(2), start=standing, rest=standing)
    first, second, *_ = sorted(Path(project.config.get_main_option("script_location")).glob("versions/*.py"))
    assert "create_table" in first.read_text()
    assert "create_table" not in second.read_text()
    project.use(counting(1))
    assert_same(project.things(), project.built())


def test_no_change_is_no_test(project):
    with pytest.raises(AssertionError, match="the same things"):
        assert_round_trip(project, counting(1), counting(1))


def labelled(*labels):
    metadata = MetaData(schema="odd name")
    Table("labelled", metadata, Column("kind", Enum(*labels, name="kind", metadata=metadata, schema="odd name")))
    return metadata


def test_a_change_that_is_not_written(project):
    project.migrate(labelled("a"))
    project.use(labelled("a", "b"))
    with pytest.raises(AssertionError, match=r"where(?s:.*)changed type (?s:.*)- e 'a', 'b'(?s:.*)\+ e 'a'"):
        assert_same(project.things(), project.built(), "where")


def test_what_the_revision_lacks(tmp_path, database_url):
    plain = "**scope(target_metadata, connection) | {'autogenerate_plugins': ['alembic.autogenerate.*']}"
    environment = ENVIRONMENT.replace("**scope(target_metadata, connection)", plain)
    with (
        Project(tmp_path / "project", database_url, "odd name", environment=environment) as project,
        pytest.raises(AssertionError, match=r"what `before` declares(?s:.*)missing function .*following"),
    ):
        assert_round_trip(project, counting(1), counting(2))


def test_a_second_autogenerate_that_is_not_empty(project):
    """Alembic retypes the column of a serial and forgets the sequence."""
    for kind, last in ((Integer, False), (BigInteger, True)):
        metadata = MetaData(schema="odd name")
        Table("counted", metadata, Column("id", kind, primary_key=True))
        with pytest.raises(AssertionError, match="second autogenerate") if last else nullcontext():
            project.migrate(metadata)


def test_differences_are_named_line_by_line():
    said = [Thing("view", "app.v", "v", f"SELECT a\n  FROM {table}\n WHERE true" + 9 * "\n--") for table in "xy"]
    with pytest.raises(AssertionError) as raised:
        assert_same([said[1], Thing("table", "app.t", "t", "")], [said[0]], "here")
    assert str(raised.value).splitlines() == [
        "here",
        "extra table app.t",
        "changed view app.v",
        "      SELECT a",
        "    -   FROM x",
        "    +   FROM y",
        "       WHERE true",
        "      --",
    ]


def test_another_schema_is_refused(project):
    with pytest.raises(ConfigurationError, match="odd name"):
        project.use(MetaData(schema="other"))


def test_the_page(tmp_path, database_url):
    page = blocks(REPOSITORY / "docs" / "migrations.md")
    (block,) = (each for each in page if each.language == "python" and "assert_round_trip" in each.text)
    names = {}
    exec(block.text, names)
    names["test_another_condition"](tmp_path, database_url)
