"""What create_all says it made of which declaration."""

from __future__ import annotations

import pytest
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from arc_halo.autogenerate import create_all, declare
from arc_halo.autogenerate.objects import Key
from arc_halo.errors import ConfigurationError
from tests.autogenerate.project import new_metadata

MIXED = {
    ("policy", "own ON app.items"): "CREATE POLICY own ON app.items USING (id > 0)",
    ("rls", "app.items"): "ALTER TABLE app.items ENABLE ROW LEVEL SECURITY",
    ("trigger", "touch ON app.items"): "CREATE TRIGGER touch BEFORE UPDATE ON app.items"
    " FOR EACH ROW EXECUTE FUNCTION app.touch()",
    ("trigger", "write ON app.v_items"): "CREATE TRIGGER write INSTEAD OF UPDATE ON app.v_items"
    " FOR EACH ROW EXECUTE FUNCTION app.touch()",
    ("storage", "app.items.name"): "ALTER TABLE app.items ALTER COLUMN name SET STORAGE EXTERNAL",
    ("compression", "app.items.name"): "ALTER TABLE app.items ALTER COLUMN name SET COMPRESSION pglz",
    ("view", "app.v_names"): "-- a view\n/* on a view */ CREATE VIEW app.v_names AS SELECT name FROM app.v_items",
    ("view", "app.v_items"): "CREATE VIEW app.v_items AS SELECT id, name FROM app.items",
    ("function", "app.touch()"): "CREATE FUNCTION app.touch() RETURNS trigger LANGUAGE plpgsql"
    " AS 'BEGIN RETURN NEW; END'",
    ("function", "app.late()"): "DO $$ BEGIN BEGIN PERFORM 1 / 0; EXCEPTION WHEN division_by_zero THEN NULL; END;"
    " CREATE FUNCTION app.late() RETURNS integer LANGUAGE sql RETURN 1; END $$",
}
NUMBERED = "CREATE FUNCTION app.f{0}() RETURNS integer LANGUAGE sql RETURN {0}"


def test_each_declaration_is_known_by_what_it_made(project):
    metadata = new_metadata()
    declare(metadata, *MIXED.values())
    with project.engine.connect() as connection:
        built = create_all(connection, metadata)
    assert {key: made.source[0] for key, made in built.items()} == MIXED
    assert [key for key, made in built.items() if made.before_tables] == [
        ("function", "app.touch()"),
        ("function", "app.late()"),
    ]


def test_what_stood_before_is_none_of_it(project):
    project.execute(NUMBERED.format(0))
    metadata = new_metadata()
    declare(metadata, NUMBERED.format(1))
    with project.engine.connect() as connection:
        assert create_all(connection, metadata).keys() == {Key("function", "app.f1()")}


@pytest.mark.parametrize(
    "bad", ["CREATE SEQUENCE app.s", "CREATE VIEW app.a AS SELECT 1; CREATE VIEW app.b AS SELECT 1"]
)
def test_the_declaration_that_is_none_is_named_among_others(project, bad):
    metadata = new_metadata()
    declare(metadata, NUMBERED.format(1), bad, NUMBERED.format(2))
    with project.engine.connect() as connection, pytest.raises(ConfigurationError, match=bad[:20]):
        create_all(connection, metadata)


def test_catalogs_are_not_read_again_for_each_object(project):
    def queries(count):
        metadata = new_metadata()
        declare(metadata, *(NUMBERED.format(number) for number in range(count)))
        seen = []
        with project.engine.connect() as connection:
            event.listen(connection, "before_cursor_execute", lambda _c, _k, statement, *_: seen.append(statement))
            create_all(connection, metadata)
        return sum("pg_depend" in statement for statement in seen)

    assert queries(3) == queries(40)


CIRCLE = (
    "CREATE VIEW app.v_circle AS SELECT app.in_circle() AS one",
    "CREATE FUNCTION app.in_circle() RETURNS bigint LANGUAGE {0} AS $${1}$$",
)


def test_a_circle_is_explained(project):
    metadata = new_metadata()
    declare(metadata, *(each.format("sql", "SELECT count(*) FROM app.v_circle") for each in CIRCLE))
    with project.engine.connect() as connection, pytest.raises(ConfigurationError) as caught:
        create_all(connection, metadata)
    assert "2 declarations cannot be created" in str(caught.value)
    assert "v_circle AS SELECT app.in_circle() AS one: function app.in_circle() does not exist" in str(caught.value)
    assert "write one of its functions in that" in str(caught.value)


def test_and_broken_as_it_says(project):
    metadata = new_metadata()
    body = "BEGIN RETURN (SELECT count(*) FROM app.v_circle); END"
    declare(metadata, *(each.format("plpgsql", body) for each in CIRCLE))
    with project.engine.connect() as connection:
        assert len(create_all(connection, metadata)) == 2


def test_the_reason_of_a_single_one_is_postgresqls(project):
    metadata = new_metadata()
    declare(metadata, CIRCLE[0], NUMBERED.format(1))
    with project.engine.connect() as connection, pytest.raises(DBAPIError, match="in_circle"):
        create_all(connection, metadata)
