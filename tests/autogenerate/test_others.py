"""What others keep in our schema is neither compared nor dropped."""

from __future__ import annotations

import pytest
from sqlalchemy import BigInteger, Column, CreateView, MetaData, String, Table, select, text

from arc_halo.autogenerate import declare, leave_alone, manage_grants, renamed_from
from arc_halo.autogenerate.drift import differences_from_declared
from arc_halo.testing.migrations import assert_same
from tests.autogenerate.project import new_metadata

THEIRS = (
    "CREATE TABLE app.legacy_items (id bigint PRIMARY KEY, old text DEFAULT 'x' CHECK (old <> ''))",
    "CREATE INDEX legacy_index ON app.legacy_items (old)",
    "CREATE TRIGGER legacy_trigger BEFORE UPDATE ON app.legacy_items FOR EACH ROW EXECUTE FUNCTION app.dba_touch()",
    "CREATE POLICY legacy_policy ON app.legacy_items USING (true)",
    "ALTER TABLE app.legacy_items ENABLE ROW LEVEL SECURITY",
    "CREATE SEQUENCE app.legacy_numbers",
    "CREATE TYPE app.legacy_kind AS ENUM ('a')",
    "CREATE VIEW app.legacy_view AS SELECT id, name FROM app.items",
    "CREATE MATERIALIZED VIEW app.legacy_matview AS SELECT id FROM app.legacy_view",
    "CREATE UNIQUE INDEX legacy_matview_id ON app.legacy_matview (id)",
    "COMMENT ON VIEW app.legacy_view IS 'theirs'",
    "ALTER TABLE app.items ADD COLUMN dba_note text",
    "CREATE INDEX dba_name ON app.items (name)",
    "ALTER TABLE app.items ADD CONSTRAINT dba_positive CHECK (id > 0)",
    "ALTER TABLE app.items ADD CONSTRAINT dba_unique UNIQUE (name)",
    "CREATE TRIGGER dba_touch BEFORE UPDATE ON app.items FOR EACH ROW EXECUTE FUNCTION app.dba_touch()",
    "CREATE POLICY dba_policy ON app.items USING (true)",
)
FUNCTION = "CREATE FUNCTION app.dba_touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"
NAMES = ("app.legacy_*", "app.dba_*", "dba_* ON app.items", "app.items.dba_*")


def ours(*, changed: bool = False, legacy: bool = True):
    metadata = new_metadata()
    if changed:
        declare(metadata, "CREATE FUNCTION app.ours() RETURNS integer LANGUAGE sql RETURN 1")
    if legacy:
        leave_alone(metadata, *NAMES)
    return metadata


@pytest.fixture
def shared(project):
    """A project in whose schema others keep things."""
    project.migrate(ours())
    project.execute(FUNCTION, *THEIRS)
    return project


def test_it_is_not_dropped(shared):
    before = shared.things()
    written = shared.migrate(ours(changed=True))
    assert "app.ours()" in written
    assert "legacy" not in written
    assert "dba" not in written
    shared.downgrade()
    assert_same(shared.things(), before)


def test_otherwise_it_would_be(shared):
    written = shared.revise(ours(legacy=False))
    assert written.count("legacy_items") > 1
    assert "DROP VIEW app.legacy_view" in written


def test_it_is_no_drift(shared):
    with shared.engine.connect() as connection:
        assert differences_from_declared(connection, ours()) == []
        assert len(differences_from_declared(connection, ours(legacy=False))) > len(THEIRS)


def test_what_is_in_the_way_comes_back(shared):
    """A view on a column of ours whose type changes, and what hangs on that view."""
    before = shared.things()
    metadata = ours()
    metadata.tables["app.items"].c.name.type = String(80)
    written = shared.migrate(metadata)
    assert written.count("CREATE VIEW app.legacy_view") == 2  # up and down
    shared.downgrade()
    assert_same(shared.things(), before)


def test_what_is_declared_is_ours_whatever_its_name(shared):
    metadata = ours()
    Table("legacy_ours", metadata, Column("id", BigInteger, primary_key=True))
    CreateView(select(metadata.tables["app.items"].c.id), "legacy_new", metadata=metadata, schema="app")
    written = shared.migrate(metadata)
    assert "legacy_ours" in written
    assert "legacy_new" in written


def test_a_comment_may_mark_it(project):
    project.migrate(new_metadata())
    project.execute(
        "CREATE TABLE app.a (id bigint)",
        "COMMENT ON TABLE app.a IS 'for reports; kept by the DBA'",
        "CREATE INDEX on_a ON app.a (id)",
        "CREATE VIEW app.b AS SELECT 1 AS one",
        "COMMENT ON VIEW app.b IS 'kept by the DBA'",
        "CREATE FUNCTION app.c() RETURNS integer LANGUAGE sql RETURN 1",
        "COMMENT ON FUNCTION app.c() IS 'kept by the DBA'",
        "ALTER TABLE app.items ADD COLUMN d text",
        "COMMENT ON COLUMN app.items.d IS 'kept by the DBA'",
        "CREATE INDEX e ON app.items (id)",
        "COMMENT ON INDEX app.e IS 'kept by the DBA'",
        "CREATE VIEW app.unmarked AS SELECT 1 AS one",
    )
    before = project.things()
    metadata = new_metadata()
    leave_alone(metadata, marker="kept by the DBA")
    with project.engine.connect() as connection:
        assert [each.name for each in differences_from_declared(connection, metadata)] == ["app.unmarked"]
    written = project.migrate(metadata)
    assert "DROP VIEW app.unmarked" in written
    assert written.count("op.execute(\n") == 2
    project.downgrade()
    assert_same(project.things(), before)


def test_names_are_as_postgresql_writes_them(project):
    project.migrate(new_metadata())
    project.execute(
        'CREATE TABLE app."Their table" ("Odd column" bigint)', 'CREATE VIEW app."Their view" AS SELECT 1 AS x'
    )
    metadata = new_metadata()
    leave_alone(metadata, 'app."Their *"')
    declare(metadata, "CREATE FUNCTION app.one() RETURNS integer LANGUAGE sql RETURN 1")
    assert "Their" not in project.migrate(metadata)
    with project.engine.connect() as connection:
        assert connection.scalar(text("""SELECT count(*) FROM app."Their table" """)) == 0


def renamed():
    """The table and a column of it under new names, the column of another type."""
    metadata = MetaData(schema="app", naming_convention=new_metadata().naming_convention)
    title = renamed_from(Column("title", String(80), nullable=False), "name")
    renamed_from(Table("articles", metadata, Column("id", BigInteger, primary_key=True), title), "items")
    leave_alone(metadata, "app.legacy_*", "app.dba_*", "dba_* ON app.*")
    return metadata


def test_what_is_in_the_way_comes_back_by_new_names(project):
    project.migrate(ours())
    project.execute(
        FUNCTION,
        "CREATE VIEW app.legacy_view AS SELECT id, name FROM app.items",
        "CREATE VIEW app.legacy_on_it AS SELECT name FROM app.legacy_view",
        "CREATE TRIGGER dba_touch BEFORE UPDATE OF name ON app.items FOR EACH ROW EXECUTE FUNCTION app.dba_touch()",
    )
    before = project.things()
    project.migrate(renamed())
    with project.engine.connect() as connection:
        view = connection.scalar(text("SELECT pg_get_viewdef('app.legacy_view'::regclass)"))
        trigger = connection.scalar(text("SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname = 'dba_touch'"))
    assert "title AS name" in view
    assert "UPDATE OF title ON app.articles" in trigger
    after = project.things()
    project.downgrade()
    assert_same(project.things(), before)
    project.upgrade()
    assert_same(project.things(), after)


def test_what_is_in_the_way_keeps_its_grants(project, roles):
    """Also those of roles whose privileges are declared."""

    def managed(**options):
        metadata = ours(**options)
        manage_grants(metadata, roles.reader)
        return metadata

    project.migrate(managed())
    project.execute(
        "CREATE VIEW app.legacy_view AS SELECT id, name FROM app.items",
        f"GRANT SELECT ON app.legacy_view TO {roles.reader}, {roles.other}",
    )
    acl = text("SELECT relacl::text FROM pg_class WHERE oid = 'app.legacy_view'::regclass")
    with project.engine.connect() as connection:
        before = connection.scalar(acl)
    metadata = managed()
    metadata.tables["app.items"].c.name.type = String(80)
    project.migrate(metadata)
    for move in (project.downgrade, project.upgrade):
        with project.engine.connect() as connection:
            assert connection.scalar(acl) == before
        move()


@pytest.mark.parametrize("marked", [False, True])
def test_grants_on_a_function_of_theirs_are_theirs(project, roles, marked):
    def managed(**options):
        metadata = ours(legacy=not marked, **options)
        manage_grants(metadata, roles.reader)
        leave_alone(metadata, marker="kept by the DBA")
        return metadata

    project.migrate(managed())
    project.execute(
        FUNCTION,
        f"COMMENT ON FUNCTION app.dba_touch() IS '{'kept by the DBA' if marked else ''}'",
        f"GRANT EXECUTE ON FUNCTION app.dba_touch() TO {roles.reader}",
    )
    with project.engine.connect() as connection:
        assert differences_from_declared(connection, managed()) == []
    assert "dba_touch" not in project.migrate(managed(changed=True))


def test_a_trigger_of_theirs_goes_with_its_table(project):
    metadata = ours()
    Table("extra", metadata, Column("id", BigInteger, primary_key=True))
    leave_alone(metadata, "dba_* ON app.*")
    project.migrate(metadata)
    project.execute(
        FUNCTION, "CREATE TRIGGER dba_touch BEFORE UPDATE ON app.extra FOR EACH ROW EXECUTE FUNCTION app.dba_touch()"
    )
    before = project.things()
    rest = ours()
    leave_alone(rest, "dba_* ON app.*")
    project.migrate(rest)
    project.downgrade()
    assert_same(project.things(), before)


def test_a_declared_function_of_such_a_name_is_no_drift(project):
    metadata = ours()
    declare(metadata, FUNCTION)
    project.migrate(metadata)
    with project.engine.connect() as connection:
        assert differences_from_declared(connection, metadata) == []
