"""Privileges and owners: decided by declarations where somebody says so, else carried over and left alone."""

from __future__ import annotations

import pytest
from alembic import command
from sqlalchemy import BigInteger, Column, Computed, CreateView, MetaData, Table, Text, select
from sqlalchemy.exc import ProgrammingError

from arc_halo.autogenerate import declare, manage_owners, renamed_from
from arc_halo.autogenerate.drift import differences_from_declared
from arc_halo.autogenerate.linting import lint, temporary_database
from arc_halo.database.migrate import migration_engine
from arc_halo.errors import ConfigurationError
from arc_halo.testing.migrations import assert_round_trip, assert_same
from tests.autogenerate.grant_cases import CASES, manage
from tests.autogenerate.project import new_metadata


def declared(name, roles, *, changed):
    metadata = new_metadata()
    items = metadata.tables["app.items"]
    manage(items, roles)
    CASES[name](items, roles, changed=changed)
    return metadata


@pytest.mark.parametrize("name", CASES)
def test_round_trip(project, roles, name):
    before, after = (declared(name, roles, changed=changed) for changed in (False, True))
    rest = new_metadata()
    manage(rest.tables["app.items"], roles)
    if name == "owners":
        manage_owners(rest, roles.owner)
    assert_round_trip(project, before, after, rest=rest)


def view(*names, on_it=True):
    """The view ``v_items`` of these columns, and one on it."""
    metadata = new_metadata()
    items = metadata.tables["app.items"]
    items.append_column(Column("note", Text))
    made = CreateView(select(*(items.c[name] for name in names)), "v_items", metadata=metadata, schema="app").table
    if on_it:
        CreateView(select(made.c.id), "v_ids", metadata=metadata, schema="app")
    return metadata


def acl(project, name, column=None):
    """Privileges as pg_class, pg_proc or pg_attribute has them, sorted."""
    query = f"SELECT relacl::text[] FROM pg_class WHERE oid = '{name}'::regclass"
    if name.endswith(")"):
        query = f"SELECT proacl::text[] FROM pg_proc WHERE oid = '{name}'::regprocedure"
    if column:
        query = f"SELECT attacl::text[] FROM pg_attribute WHERE attrelid = '{name}'::regclass AND attname = '{column}'"
    with project.engine.connect() as connection:
        found = connection.exec_driver_sql(query).scalar_one()
        return None if found is None else sorted(found)


def all_of(project, *names):
    return [acl(project, name) for name in names]


VIEWS = ("app.v_items", "app.v_ids")


def test_what_others_granted_is_carried_over(project, roles):
    """They are granted after the revisions were written, as on a database that the developer does not have."""
    project.migrate(view("id", "name"))
    revision = project.revise(view("id", "note", "name"))
    project.execute(
        f"GRANT SELECT ON app.v_items TO {roles.reader} WITH GRANT OPTION",
        f"GRANT UPDATE, DELETE ON app.v_items TO {roles.writer}",
        "GRANT SELECT ON app.v_ids TO PUBLIC",
        f"GRANT SELECT (id), UPDATE (name) ON app.v_items TO {roles.writer}",
    )
    before = all_of(project, *VIEWS), acl(project, "app.v_items", "id"), acl(project, "app.v_items", "name")
    assert all(before)
    for move in (project.upgrade, project.downgrade, project.upgrade):
        move()
        now = all_of(project, *VIEWS), acl(project, "app.v_items", "id"), acl(project, "app.v_items", "name")
        assert now == before
    project.execute(project.sql("0002:0001"), project.sql("0001:0002"))
    assert (all_of(project, *VIEWS), acl(project, "app.v_items", "id"), acl(project, "app.v_items", "name")) == before
    upgrade, _, downgrade = revision.partition("def downgrade")
    for direction in (upgrade, downgrade):
        assert direction.count("set_config('alembic.privileges'") == direction.count("DO $$") == 1
    assert roles.reader not in revision


def test_a_function_that_is_made_again_stays_closed(project, roles):
    def start(kind):
        metadata = new_metadata()
        for name in ("closed", "given", "open"):
            declare(metadata, f"CREATE FUNCTION app.{name}() RETURNS {kind} LANGUAGE sql RETURN 1::{kind}")
        declare(metadata, f"CREATE AGGREGATE app.total(bigint) (SFUNC = int8pl, STYPE = bigint, SSPACE = {len(kind)})")
        return metadata

    names = ("app.closed()", "app.given()", "app.open()", "app.total(bigint)")
    project.migrate(start("integer"))
    project.revise(start("bigint"))
    project.execute(
        "REVOKE ALL ON FUNCTION app.closed() FROM PUBLIC",
        f"GRANT EXECUTE ON FUNCTION app.given() TO {roles.reader}",
        "REVOKE ALL ON FUNCTION app.total(bigint) FROM PUBLIC",
        f"GRANT EXECUTE ON FUNCTION app.total(bigint) TO {roles.writer}",
    )
    before = all_of(project, *names)
    assert before[2] is None
    for move in (project.upgrade, project.downgrade):
        move()
        assert all_of(project, *names) == before


def test_a_generated_column_keeps_its_grants(project, roles):
    def twice(factor):
        metadata = new_metadata()
        computed = Computed(f"id * {factor}", persisted=True)
        metadata.tables["app.items"].append_column(Column("twice", BigInteger, computed))
        return metadata

    project.migrate(twice(2))
    project.revise(twice(3))
    project.execute(
        f"GRANT SELECT (twice) ON app.items TO {roles.reader}", f"GRANT INSERT ON app.items TO {roles.writer}"
    )
    before = acl(project, "app.items", "twice"), acl(project, "app.items")
    project.upgrade()
    assert (acl(project, "app.items", "twice"), acl(project, "app.items")) == before


def test_a_column_that_goes_takes_its_grants_along(project, roles):
    project.migrate(view("id", "name", on_it=False))
    project.revise(view("id", "note", on_it=False))
    project.execute(f"GRANT SELECT (id, name) ON app.v_items TO {roles.reader}")
    project.upgrade()
    assert acl(project, "app.v_items", "id") == [f"{roles.reader}=r/postgres"]
    assert acl(project, "app.v_items", "note") is None


def test_nothing_is_carried_where_nothing_is_made_again(project):
    project.migrate(declared_before := view("id", "name"))
    assert "alembic.privileges" not in project.migrate(new_metadata())
    assert "alembic.privileges" not in project.migrate(declared_before)


def test_privileges_of_other_roles_are_left_alone(project, roles):
    metadata = declared("table", roles, changed=False)
    project.migrate(metadata)
    project.execute(
        f"GRANT ALL ON app.items TO {roles.other}",
        f"GRANT UPDATE (name) ON app.items TO {roles.other}",
        f"GRANT USAGE ON SCHEMA app TO {roles.other}",
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT SELECT ON TABLES TO {roles.other}",
    )
    before = acl(project, "app.items"), acl(project, "app.items", "name")
    command.check(project.config)
    revision = project.migrate(declared("table", roles, changed=True))
    assert roles.other not in revision
    theirs = [each for each in acl(project, "app.items") if each.startswith(roles.other)]
    assert theirs == [each for each in before[0] if each.startswith(roles.other)] != []
    assert acl(project, "app.items", "name") == before[1]


def test_what_managed_roles_have_beyond_is_revoked_and_given_back(project, roles):
    metadata = declared("table", roles, changed=False)
    project.migrate(metadata)
    project.execute(
        f"GRANT TRUNCATE ON app.items TO {roles.writer}",
        f"GRANT INSERT (name) ON app.items TO {roles.reader}",
        "GRANT USAGE ON SCHEMA app TO PUBLIC",
    )
    before = project.things()
    with project.engine.connect() as connection:
        told = {(each.kind, each.name, each.change) for each in differences_from_declared(connection, metadata)}
    assert told == {
        ("grant", f"app.items TO {roles.writer}", "extra"),
        ("grant", f"app.items TO {roles.reader}", "changed"),
        ("grant", "SCHEMA app TO PUBLIC", "extra"),
    }
    project.migrate(metadata)
    with project.engine.connect() as connection:
        assert differences_from_declared(connection, metadata) == []
    project.downgrade()
    assert_same(project.things(), before)


def test_unmanaged_grants_are_no_drift(project, roles):
    project.migrate(new_metadata())
    project.execute(f"GRANT SELECT ON app.items TO {roles.reader}", f"ALTER TABLE app.items OWNER TO {roles.owner}")
    command.check(project.config)
    with project.engine.connect() as connection:
        assert differences_from_declared(connection, project.metadata) == []


def test_what_a_role_has_as_the_owner_is_not_compared(project, roles):
    metadata = declared("table", roles, changed=False)
    manage_owners(metadata, roles.reader)
    project.migrate(metadata)
    with project.engine.connect() as connection:
        assert differences_from_declared(connection, metadata) == []


def test_an_owner_that_is_another_is_drift(project, roles):
    metadata = new_metadata()
    manage_owners(metadata, roles.owner)
    project.migrate(metadata)
    project.execute(f"ALTER TABLE app.items OWNER TO {roles.other}")
    with project.engine.connect() as connection:
        (difference,) = differences_from_declared(connection, metadata)
    assert (difference.kind, difference.name, difference.change) == ("owner", "table app.items", "changed")
    assert difference.first == f"ALTER TABLE app.items OWNER TO {roles.owner}"


@pytest.mark.parametrize(
    ("statement", "error", "said"),
    [
        ("GRANT SELECT ON app.items TO {other}", ConfigurationError, "manage_grants(metadata, 'other_"),
        ("REVOKE SELECT ON app.items FROM {reader}", ConfigurationError, "changes no privilege of schema app"),
        ("GRANT SELECT ON public.items TO {reader}", ConfigurationError, "changes no privilege of schema app"),
        ("GRANT {owner} TO {reader}", ConfigurationError, "changes no privilege of schema app"),
        ("GRANT SELECT ON app.items TO nobody_at_all", ProgrammingError, 'role "nobody_at_all" does not exist'),
    ],
)
def test_a_declaration_that_decides_nothing_is_refused(project, roles, statement, error, said):
    metadata = new_metadata()
    manage(metadata.tables["app.items"], roles)
    declare(metadata, statement.format(**roles._asdict()))
    with pytest.raises(error) as caught:
        project.revise(metadata)
    assert said in str(caught.value)
    if error is ProgrammingError:
        assert "CREATE ROLE comes first" in caught.value.__notes__[0]


def test_grants_want_somebody_who_manages_them(project, roles):
    metadata = new_metadata()
    declare(metadata, f"GRANT SELECT ON app.items TO {roles.reader}")
    with pytest.raises(ConfigurationError, match="manage_grants"):
        project.revise(metadata)


def test_what_default_privileges_give_is_not_given_to_what_lacked_it(project, roles):
    project.migrate(view("id", "name"))
    project.revise(view("id", "note", "name"))
    project.execute(
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT SELECT ON TABLES TO {roles.reader}",
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT SELECT ON TABLES TO {roles.other}",
        f"GRANT SELECT ON app.v_items TO {roles.writer}",
        f"GRANT SELECT ON app.v_ids TO {roles.other}",
    )
    before = all_of(project, *VIEWS)
    project.upgrade()
    assert all_of(project, *VIEWS) == before


def test_one_who_is_no_superuser_may_run_it(project, roles):
    """What a role handed on that had the grant option is given by the owner then."""
    project.migrate(view("id", "name"))
    project.revise(view("id", "note", "name"))
    owned = ("app.items", "app.alembic_version", *VIEWS)
    project.execute(
        *(f"ALTER TABLE {name} OWNER TO {roles.owner}" for name in owned),
        f"ALTER SCHEMA app OWNER TO {roles.owner}",
        f"GRANT USAGE ON SCHEMA app TO {roles.reader}",
        f"GRANT SELECT ON app.v_ids TO {roles.reader} WITH GRANT OPTION",
        f"SET LOCAL ROLE {roles.reader}",
        f"GRANT SELECT ON app.v_ids TO {roles.writer}",
    )
    assert f"{roles.writer}=r/{roles.reader}" in acl(project, "app.v_ids")
    project.execute(
        f"SET LOCAL ROLE {roles.owner}", project.sql("0001:0002").replace("BEGIN;", "").replace("COMMIT;", "")
    )
    granted = [each for each in acl(project, "app.v_ids") if not each.startswith(roles.owner)]
    assert granted == [f"{roles.writer}=r/{roles.owner}", f"{roles.reader}=r*/{roles.owner}"]


def test_the_linter_can_run_it(project):
    """It runs each statement in a transaction of its own."""
    project.migrate(view("id", "name"))
    project.revise(view("id", "note", "name"))
    with (
        temporary_database(project.engine) as url,
        migration_engine(url).connect() as scratch,
        project.engine.connect() as live,
    ):
        (revision,) = lint(project.config, live, scratch, current=("0001",)).revisions
    assert revision.statements
    findings = {each.rule for judged in revision.statements for each in judged.findings}
    assert findings.isdisjoint({"fails", "in-transaction"})


def test_what_is_made_again_by_a_new_name_keeps_its_grants(project, roles):
    """What nobody but one role may call does not become everybody's."""

    def declaring(name, result, *columns):
        metadata = new_metadata()
        items = metadata.tables["app.items"]
        old = None if name == "one" else "one"
        made = f"CREATE FUNCTION app.{name}(a integer) RETURNS {result} LANGUAGE sql RETURN a"
        declare(metadata, made, renamed_from=old)
        view = CreateView(select(*(items.c[each] for each in columns)), f"v_{name}", metadata=metadata, schema="app")
        if old:
            renamed_from(view.table, "v_one")
        return metadata

    project.migrate(declaring("one", "integer", "id", "name"))
    project.execute(
        "REVOKE ALL ON FUNCTION app.one(integer) FROM PUBLIC",
        f"GRANT EXECUTE ON FUNCTION app.one(integer) TO {roles.other}",
        f"GRANT SELECT (id), UPDATE (name) ON app.v_one TO {roles.writer}",
        f"GRANT SELECT ON app.v_one TO {roles.other}",
    )

    def held(name):
        columns = (acl(project, f"app.v_{name}", column) for column in ("id", "name"))
        return *all_of(project, f"app.{name}(integer)", f"app.v_{name}"), *columns

    before = held("one")
    project.migrate(declaring("two", "bigint", "name", "id"))
    assert held("two") == before
    project.downgrade()
    assert held("one") == before
    project.upgrade()
    assert held("two") == before


def test_the_former_owner_of_what_is_renamed_comes_back(project, roles):
    def owned(name, owner):
        metadata = MetaData(schema="app")
        table = Table(name, metadata, Column("id", BigInteger, primary_key=True))
        manage_owners(metadata, owner)
        return metadata if name == "items" else renamed_from(table, "items").metadata

    def owner(name):
        with project.engine.connect() as connection:
            query = f"SELECT relowner::regrole::text FROM pg_class WHERE oid = 'app.{name}'::regclass"
            return connection.exec_driver_sql(query).scalar_one()

    project.migrate(owned("items", roles.other))
    project.migrate(owned("things", roles.owner))
    assert owner("things") == roles.owner
    project.downgrade()
    assert owner("items") == roles.other


def test_another_signature_is_told_of(project):
    """Whether the new function is for the same roles nobody but its author knows."""

    def declaring(arguments):
        metadata = new_metadata()
        declare(metadata, f"CREATE FUNCTION app.gross({arguments}) RETURNS integer LANGUAGE sql RETURN 1")
        return metadata

    project.migrate(declaring("integer"))
    said = "# The privileges of app.gross(integer) do not pass to another signature"
    assert project.migrate(declaring("bigint, integer")).count(said) == 2
    assert said not in project.migrate(new_metadata())
