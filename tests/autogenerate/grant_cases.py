"""Changes of privileges and owners; the metadata decides what ``{reader}``, ``{writer}`` and PUBLIC may do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import BigInteger, Column, Computed, CreateView, Identity, Table, Text, select

from arc_halo.autogenerate import declare, manage_grants, manage_owners
from tests.autogenerate.object_cases import materialized

if TYPE_CHECKING:
    from tests.autogenerate.roles import Roles


def declare_grants(items: Table, roles: Roles, *statements: str) -> None:
    declare(items.metadata, *(statement.format(**roles._asdict()) for statement in statements))


def table(items: Table, roles: Roles, *, changed: bool) -> None:
    privileges = "SELECT, INSERT" if changed else "SELECT, DELETE"
    declare_grants(items, roles, f"GRANT {privileges} ON app.items TO {{reader}}")
    if changed:
        declare_grants(items, roles, "GRANT ALL ON app.items TO {writer}")


def columns(items: Table, roles: Roles, *, changed: bool) -> None:
    names = '"no TE", id' if changed else "id"
    items.append_column(Column("no TE", Text))
    declare_grants(
        items, roles, "GRANT DELETE ON app.items TO {writer}", f"GRANT SELECT ({names}) ON app.items TO {{writer}}"
    )


def column_that_goes(items: Table, roles: Roles, *, changed: bool) -> None:
    declare_grants(items, roles, "GRANT SELECT (id) ON app.items TO {reader}")
    if not changed:
        items.append_column(Column("note", Text))
        declare_grants(items, roles, "GRANT SELECT (note), UPDATE (note) ON app.items TO {reader}")


def generated_column(items: Table, roles: Roles, *, changed: bool) -> None:
    """Dropped and made again, the privileges with it."""
    items.append_column(Column("twice", BigInteger, Computed(f"id * {2 + changed}", persisted=True)))
    declare_grants(items, roles, "GRANT SELECT (twice) ON app.items TO {reader}")


def grant_option(items: Table, roles: Roles, *, changed: bool) -> None:
    option = " WITH GRANT OPTION" if changed else ""
    declare_grants(
        items,
        roles,
        f"GRANT SELECT ON app.items TO {{reader}}{option}",
        f"GRANT UPDATE (name) ON app.items TO {{reader}}{option}",
        "GRANT INSERT ON app.items TO {reader}",
    )


def views(items: Table, roles: Roles, *, changed: bool) -> None:
    """Made again, with one on it; the grant of one changes, too."""
    items.append_column(Column("note", Text))
    selected = [items.c.id, items.c.note, items.c.name] if changed else [items.c.id, items.c.name]
    view = CreateView(select(*selected), "v_items", metadata=items.metadata, schema="app").table
    CreateView(select(view.c.id), "v_ids", metadata=items.metadata, schema="app")
    privileges = "SELECT, UPDATE" if changed else "SELECT"
    declare_grants(
        items, roles, "GRANT SELECT ON app.v_items TO {reader}", f"GRANT {privileges} ON app.v_ids TO {{writer}}"
    )


def column_of_a_view_that_goes(items: Table, roles: Roles, *, changed: bool) -> None:
    selected = [items.c.id] if changed else [items.c.id, items.c.name]
    CreateView(select(*selected), "v_items", metadata=items.metadata, schema="app")
    names = "id" if changed else "id, name"
    declare_grants(items, roles, f"GRANT SELECT ({names}) ON app.v_items TO {{reader}}")


def materialized_view(items: Table, roles: Roles, *, changed: bool) -> None:
    materialized(items, "mv_items", *([items.c.name] if changed else []))
    declare_grants(items, roles, "GRANT SELECT ON app.mv_items TO {reader}, PUBLIC")


def dropped_view(items: Table, roles: Roles, *, changed: bool) -> None:
    if not changed:
        CreateView(select(items.c.id), "v_items", metadata=items.metadata, schema="app")
        declare_grants(items, roles, "GRANT SELECT ON app.v_items TO {reader}")


def sequence(items: Table, roles: Roles, *, changed: bool) -> None:
    items.append_column(Column("number", BigInteger, Identity()))
    privileges = "USAGE, SELECT" if changed else "USAGE"
    declare_grants(items, roles, f"GRANT {privileges} ON SEQUENCE app.items_number_seq TO {{writer}}")


def functions(items: Table, roles: Roles, *, changed: bool) -> None:
    """Which only some may call; one is made again, for its result changes, one is new."""
    kind = "bigint" if changed else "integer"
    declare(
        items.metadata,
        f"CREATE FUNCTION app.start() RETURNS {kind} LANGUAGE sql IMMUTABLE RETURN 1::{kind}",
        "CREATE FUNCTION app.open() RETURNS integer LANGUAGE sql IMMUTABLE RETURN 1",
        "CREATE PROCEDURE app.clean(before bigint) LANGUAGE sql AS 'DELETE FROM app.items WHERE id < before'",
        "CREATE AGGREGATE app.total(bigint) (SFUNC = int8pl, STYPE = bigint)",
    )
    if changed:
        declare(items.metadata, "CREATE FUNCTION app.later(a text) RETURNS integer LANGUAGE sql IMMUTABLE RETURN 1")
        declare_grants(items, roles, "REVOKE EXECUTE ON FUNCTION app.later(text) FROM PUBLIC")
    declare_grants(
        items,
        roles,
        "REVOKE EXECUTE ON FUNCTION app.start() FROM PUBLIC",
        "REVOKE EXECUTE ON PROCEDURE app.clean(bigint) FROM PUBLIC",
        "GRANT EXECUTE ON FUNCTION app.start() TO {reader} WITH GRANT OPTION",
        f"GRANT EXECUTE ON PROCEDURE app.clean(bigint) TO {{{'writer' if changed else 'reader'}}}",
        "GRANT EXECUTE ON FUNCTION app.total(bigint) TO {reader}",
    )


def public_function(items: Table, roles: Roles, *, changed: bool) -> None:
    declare(items.metadata, "CREATE FUNCTION app.start() RETURNS integer LANGUAGE sql IMMUTABLE RETURN 1")
    if changed:
        declare_grants(items, roles, "REVOKE ALL ON ALL FUNCTIONS IN SCHEMA app FROM PUBLIC")


def schema(items: Table, roles: Roles, *, changed: bool) -> None:
    privileges = "USAGE, CREATE" if changed else "USAGE"
    declare_grants(items, roles, f"GRANT {privileges} ON SCHEMA app TO {{reader}}")


def all_tables(items: Table, roles: Roles, *, changed: bool) -> None:
    if changed:
        Table("more", items.metadata, Column("id", BigInteger, primary_key=True))
    declare_grants(items, roles, "GRANT SELECT ON ALL TABLES IN SCHEMA app TO {reader}, {writer}")


def default_privileges(items: Table, roles: Roles, *, changed: bool) -> None:
    """Also of what stands already; what is new and shall not have them lacks them."""
    privileges = "SELECT, INSERT" if changed else "SELECT"
    declare_grants(items, roles, f"ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT {privileges} ON TABLES TO {{reader}}")
    if changed:
        Table("more", items.metadata, Column("id", BigInteger, primary_key=True))
        Table("secret", items.metadata, Column("id", BigInteger, primary_key=True))
        declare_grants(
            items,
            roles,
            "REVOKE ALL ON app.secret FROM {reader}",
            "ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT ALL ON SEQUENCES TO {writer} WITH GRANT OPTION",
            "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA app GRANT EXECUTE ON FUNCTIONS TO {reader}",
        )


def default_privileges_that_go(items: Table, roles: Roles, *, changed: bool) -> None:
    if changed:
        Table("more", items.metadata, Column("id", BigInteger, primary_key=True))
    else:
        CreateView(select(items.c.id), "v_items", metadata=items.metadata, schema="app")
        declare_grants(items, roles, "ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT SELECT ON TABLES TO {reader}")


def owners(items: Table, roles: Roles, *, changed: bool) -> None:
    """All that was there gets one, all that is made, and what is made again."""
    items.append_column(Column("note", Text))
    selected = [items.c.id, items.c.note, items.c.name] if changed else [items.c.id, items.c.name]
    CreateView(select(*selected), "v_items", metadata=items.metadata, schema="app")
    declare(
        items.metadata,
        "CREATE FUNCTION app.start() RETURNS integer LANGUAGE sql IMMUTABLE RETURN 1",
        "CREATE AGGREGATE app.total(bigint) (SFUNC = int8pl, STYPE = bigint)",
        "CREATE STATISTICS app.seen ON id, name FROM app.items",
    )
    declare_grants(items, roles, "GRANT SELECT ON app.v_items TO {reader}")
    if changed:
        Table("more", items.metadata, Column("id", BigInteger, Identity(), primary_key=True))
        materialized(items, "mv_items")
    else:
        Table("gone", items.metadata, Column("id", BigInteger, primary_key=True))
    manage_owners(items.metadata, roles.plain(roles.owner if changed else roles.other))


CASES = {
    case.__name__: case
    for case in (
        table, columns, column_that_goes, generated_column, grant_option, views, column_of_a_view_that_goes,
        materialized_view, dropped_view, sequence, functions, public_function, schema, all_tables, default_privileges,
        default_privileges_that_go, owners,
    )
}  # fmt: skip


def manage(items: Table, roles: Roles) -> None:
    manage_grants(items.metadata, roles.plain(roles.reader), roles.plain(roles.writer), "public")
