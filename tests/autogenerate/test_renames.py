"""Renames that are declared are renames, whatever changes beside them."""

from __future__ import annotations

import pytest
from sqlalchemy import BigInteger, CheckConstraint, Column, MetaData, Table, Text, inspect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql.elements import conv

from arc_halo.autogenerate import declare, renamed_from
from arc_halo.autogenerate.drift import differences_from_declared
from arc_halo.autogenerate.renames_declared import pending
from arc_halo.autogenerate.renames_reflected import RenamedInspector
from arc_halo.errors import ConfigurationError
from arc_halo.testing.migrations import assert_round_trip, assert_same
from tests.autogenerate.project import new_metadata
from tests.autogenerate.rename_cases import CASES, metadata_of

ROW = "INSERT INTO app.items (name) VALUES ('kept')"


def upgrade_of(revision):
    """Its text, with long literals put together."""
    return "".join(revision.partition("def downgrade")[0].split("'\n        '")).replace("\\'", "'")


@pytest.mark.parametrize("name", CASES)
def test_round_trip(project, name):
    case, present, absent = CASES[name]
    before, after = (case(changed=changed) for changed in (False, True))
    revision = assert_round_trip(project, before, after, rows=(ROW,))
    upgrade = upgrade_of(revision)
    assert [each for each in present if each not in upgrade] == []
    assert [each for each in absent if each in upgrade] == []
    assert ("DATA LOSS" in upgrade) == (name in {"table_and_column", "dropped_beside_a_rename"})


def written(project, before, after):
    """The upgrade of the revision from one to the other; a second autogenerate is empty."""
    project.migrate(before)
    project.execute(ROW)
    return upgrade_of(project.migrate(after))


def test_values_are_kept(project):
    case = CASES["table_and_column"].case
    written(project, case(changed=False), case(changed=True))
    with project.engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT id, title, size, weight, length, number FROM app.things").one()
    assert tuple(found) == (1, "kept", 7, 1, 4, 1)


@pytest.mark.parametrize("name", ["tables_in_a_chain", "table_whose_old_name_is_given_again", "routines", "quoted"])
def test_a_fresh_database_knows_no_former_names(project, name):
    assert "RENAME" not in upgrade_of(project.migrate(CASES[name].case(changed=True)))


@pytest.mark.parametrize("kind", ["table", "column", "function", "constraint"])
def test_a_circle_is_refused(project, kind):
    project.migrate(circle(kind, changed=False))
    with pytest.raises(ConfigurationError, match="circle"):
        project.revise(circle(kind, changed=True))


def circle(kind, *, changed):
    metadata, items = metadata_of()
    other = Table("other", metadata, Column("a", BigInteger), Column("b", BigInteger))
    checks = [CheckConstraint("a > 0", name=conv("one")), CheckConstraint("b > 0", name=conv("two"))]
    for check in checks:
        other.append_constraint(check)
    pairs = {"table": (items, other), "column": (other.c.a, other.c.b), "constraint": checks}
    for name, old in (("f", "g"), ("g", "f")):
        body = f"CREATE FUNCTION app.{name}() RETURNS text LANGUAGE sql RETURN '{name}'"
        declare(metadata, body, renamed_from=old if changed and kind == "function" else None)
    if changed and kind in pairs:
        first, second = pairs[kind]
        renamed_from(first, second.name)
        renamed_from(second, first.name)
    return metadata


@pytest.mark.parametrize("name", ["table", "column", "view", "routines", "policy", "constraints"])
def test_two_of_which_only_one_is_declared_are_refused(project, name):
    """Who made the new one beside the old one has to say which one it is."""
    project.migrate(CASES[name].case(changed=True))
    project.execute(*SECOND[name])
    with pytest.raises(ConfigurationError, match=r"both\s+stand"):
        project.revise()


SECOND = {
    "table": ["CREATE TABLE app.items (id bigint)"],
    "column": ["ALTER TABLE app.items ADD COLUMN name text"],
    "view": ["CREATE VIEW app.w_old AS SELECT 1 AS one"],
    "routines": ["CREATE PROCEDURE app.clean() LANGUAGE sql AS ''"],
    "policy": ["CREATE POLICY a ON app.items USING (true)"],
    "constraints": ["ALTER TABLE app.notes ADD CONSTRAINT ck CHECK (true)"],
}


def test_functions_cannot_take_a_name_that_is_given_again(project):
    def declared(*, changed):
        metadata, _ = metadata_of()
        body = "CREATE FUNCTION app.{}() RETURNS integer LANGUAGE sql RETURN 1"
        declare(metadata, body.format("new" if changed else "old"), renamed_from="old" if changed else None)
        if changed:
            declare(metadata, body.format("old"))
        return metadata

    project.migrate(declared(changed=False))
    with pytest.raises(ConfigurationError, match="declared for another"):
        project.revise(declared(changed=True))


def test_a_former_name_is_of_one_object():
    with pytest.raises(ConfigurationError, match="one object"):
        declare(MetaData(schema="app"), "CREATE A", "CREATE B", renamed_from="c")


def test_a_setting_has_no_name(project):
    metadata, _ = metadata_of()
    project.migrate(metadata)
    declare(metadata, "ALTER TABLE app.items ALTER COLUMN name SET STORAGE MAIN", renamed_from="name")
    with pytest.raises(ConfigurationError, match="no name of its own"):
        project.revise(metadata)


def test_a_mapped_column_has_a_former_name(project):
    def mapped(*, changed):
        class Base(DeclarativeBase):
            metadata = MetaData(schema="app")

        class Item(Base):
            __tablename__ = "items"
            id: Mapped[int] = mapped_column(primary_key=True)
            if changed:
                title: Mapped[str] = renamed_from(mapped_column(), "name")
            else:
                name: Mapped[str]

        return Base.metadata

    upgrade = written(project, mapped(changed=False), mapped(changed=True))
    assert "ALTER TABLE app.items RENAME COLUMN name TO title" in upgrade
    assert "_column(" not in upgrade


def test_nobody_is_locked_out_while_a_rename_is_written(project):
    case = CASES["table_and_column"].case
    project.migrate(case(changed=False))
    before = project.things()
    with project.engine.begin() as writer:
        writer.exec_driver_sql("LOCK TABLE app.items, app.notes IN ROW EXCLUSIVE MODE")
        project.revise(case(changed=True))
    assert_same(project.things(), before)


def test_drift_calls_a_rename_that_is_to_come_missing_and_extra(project):
    case = CASES["statistics"].case
    project.migrate(case(changed=False))
    with project.engine.connect() as connection:
        found = differences_from_declared(connection, case(changed=True))
    assert [(each.change, each.name) for each in found] == [("missing", "app.st_new"), ("extra", "app.st_old")]


def test_what_is_reflected_of_one_table_is_what_is_reflected_of_many(project):
    """Alembic asks the one way or the other."""
    case = CASES["table_and_column"].case
    project.migrate(case(changed=False))
    with project.engine.connect() as connection:
        renames = pending(connection, case(changed=True))
        inspector = RenamedInspector(inspect(connection), renames)
        assert "things" in inspector.get_table_names(schema="app")
        for what in ("pk_constraint", "foreign_keys", "indexes", "unique_constraints", "check_constraints"):
            many = getattr(inspector, f"get_multi_{what}")(schema="app", filter_names=["things"])
            assert many == {("app", "things"): getattr(inspector, f"get_{what}")("things", schema="app")}
        (unique,) = inspector.get_unique_constraints("things", schema="app")
        assert (unique["name"], unique["column_names"]) == ("uq_things_title", ["title"])
        (reference,) = inspector.get_foreign_keys("notes", schema="app")
        assert reference["name"] == "fk_notes_item_id_things"
        assert (reference["referred_table"], reference["referred_columns"]) == ("things", ["id"])
        assert [each["name"] for each in inspector.get_columns("items", schema="neighbour")] == ["id", "name", "total"]


def test_two_cannot_have_one_former_name(project):
    project.migrate(new_metadata())
    metadata = MetaData(schema="app")
    for name in ("first", "second"):
        renamed_from(Table(name, metadata, Column("id", BigInteger, primary_key=True), Column("name", Text)), "items")
    with pytest.raises(ConfigurationError, match="former name of several"):
        project.revise(metadata)


def test_one_cannot_have_two_former_names():
    table = renamed_from(Table("items", MetaData(schema="app"), Column("id", BigInteger)), "first")
    assert renamed_from(table, "first") is table
    with pytest.raises(ConfigurationError, match="former names 'first' and 'second'"):
        renamed_from(table, "second")


def test_a_new_table_says_nothing_of_a_former_name(project):
    metadata = MetaData(schema="app")
    renamed_from(Table("new", metadata, Column("id", BigInteger, primary_key=True)), "old")
    assert "arc_halo" not in project.migrate(metadata)
