"""Texts that something on the way to PostgreSQL could take for its own, in every kind of object that has a text."""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    Computed,
    CreateView,
    Index,
    Table,
    Text,
    literal_column,
    select,
    text,
)

from arc_halo.autogenerate import declare, declare_partitions
from arc_halo.autogenerate.render import escape_colons
from tests.autogenerate.table_cases import TOUCH, partitioned

TEXT = (
    """it's "quoted" \"""thrice\""" $$ $x$ [1:n] :name \\:name ::text %s %% %(x)s \\ \\\\ \\n {x} {{y}} -- /* """
    "\n\ttabs\t\n  Größe ☃ \U0001f600 \x85 \u2028 ;  \n"
)
LENGTH = 100_000


def tricky(*, changed: bool, long: bool = False) -> str:
    """The text as a literal, once or for 100 kB."""
    said = ("new " if changed else "old ") + TEXT * (LENGTH // len(TEXT) if long else 1)
    return "'" + said.replace("'", "''") + "'"


def tricky_function(items: Table, *, changed: bool) -> None:
    """As a string, parsed when it is created, and long."""
    said = tricky(changed=changed)
    declare(
        items.metadata,
        (
            f"CREATE FUNCTION app.f() RETURNS text LANGUAGE sql AS $body$\n\t/* {TEXT} */ */\tSELECT {said}; $body$",
            f"COMMENT ON FUNCTION app.f() IS {said}",
        ),
        f"CREATE FUNCTION app.g(x text DEFAULT {said}) RETURNS text LANGUAGE sql RETURN x || {said}",
        "CREATE FUNCTION app.h() RETURNS text LANGUAGE plpgsql AS"
        f" $body$ BEGIN RETURN {tricky(changed=changed, long=True)}; END $body$",
    )


def tricky_procedure(items: Table, *, changed: bool) -> None:
    said = tricky(changed=changed, long=True)
    body = f"UPDATE app.items SET name = {said}\n\tWHERE name LIKE {said}"
    declare(
        items.metadata,
        f"CREATE PROCEDURE app.p() LANGUAGE sql AS $body$ {body} $body$",
        f"CREATE PROCEDURE app.q() LANGUAGE sql BEGIN ATOMIC {body}; END",
    )


def tricky_aggregate(items: Table, *, changed: bool) -> None:
    declare(
        items.metadata,
        "CREATE FUNCTION app.joined(text, text) RETURNS text LANGUAGE sql IMMUTABLE RETURN $1 || $2",
        f"CREATE AGGREGATE app.joined(text) (SFUNC = app.joined, STYPE = text, INITCOND = {tricky(changed=changed)})",
    )


def tricky_view(items: Table, *, changed: bool) -> None:
    said = literal_column(tricky(changed=changed, long=True))
    query = select(items.c.id, said.label('odd: 100% "name"')).where(items.c.name != said)
    CreateView(query, "v_items", metadata=items.metadata, schema="app")
    declare(items.metadata, f"CREATE VIEW app.v_said AS\n\tSELECT {tricky(changed=changed)}::text AS said")


def tricky_materialized_view(items: Table, *, changed: bool) -> None:
    said = literal_column(tricky(changed=changed))
    query = select(items.c.id, said.label("said"))
    view = CreateView(query, "mv_items", metadata=items.metadata, schema="app", materialized=True).table
    Index("ix_mv_items_id", view.c.id, postgresql_where=text(escape_colons(f"said <> {tricky(changed=changed)}")))


def tricky_trigger(items: Table, *, changed: bool) -> None:
    condition = f"NEW.name <> {tricky(changed=changed, long=True)}"
    declare(
        items.metadata,
        TOUCH,
        f"CREATE TRIGGER touch BEFORE UPDATE ON app.items FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION app.touch()",
        "CREATE TRIGGER told AFTER INSERT ON app.items FOR EACH ROW"
        f" EXECUTE FUNCTION app.touch({tricky(changed=changed)}, 'x')",
    )


def tricky_policy(items: Table, *, changed: bool) -> None:
    said = tricky(changed=changed, long=True)
    declare(items.metadata, f"CREATE POLICY own ON app.items USING (name <> {said}) WITH CHECK (name = {said})")


def tricky_comments(items: Table, *, changed: bool) -> None:
    """Of all that has one: Alembic's own of tables and columns, SQLAlchemy's of views, declared ones."""
    said = ("new " if changed else "old ") + TEXT * (LENGTH // len(TEXT))
    items.comment = items.c.name.comment = said
    items.append_constraint(CheckConstraint("id > 0", name="ck_items_id", comment=said))
    view = CreateView(select(items.c.id), "v_items", metadata=items.metadata, schema="app").table
    view.comment = view.c.id.comment = said
    literal = tricky(changed=changed, long=True)
    declare(
        items.metadata,
        TOUCH,
        (
            "CREATE TRIGGER touch BEFORE UPDATE ON app.items FOR EACH ROW EXECUTE FUNCTION app.touch()",
            f"COMMENT ON TRIGGER touch ON app.items IS {literal}",
        ),
        ("CREATE POLICY own ON app.items USING (true)", f"COMMENT ON POLICY own ON app.items IS {literal}"),
    )


def tricky_check(items: Table, *, changed: bool) -> None:
    """In a new table, and on one that stands."""
    expression = escape_colons(f"name <> {tricky(changed=changed, long=True)}")
    items.append_constraint(CheckConstraint(expression, name="ck_items_name"))


def tricky_check_of_a_new_table(items: Table, *, changed: bool) -> None:
    if changed:
        expression = escape_colons(f"name <> {tricky(changed=changed)}")
        check = CheckConstraint(expression, name="ck_notes_name")
        Table("notes", items.metadata, Column("name", Text, primary_key=True), check)


def tricky_default(items: Table, *, changed: bool) -> None:
    """Without tabs: offline, Alembic writes spaces for them."""
    said = escape_colons(tricky(changed=changed).replace("\t", ""))
    items.append_column(Column("said", Text, server_default=text(said)))
    if changed:
        items.append_column(Column("more", Text, server_default=text(said)))


def tricky_generated_column(items: Table, *, changed: bool) -> None:
    """Without tabs: offline, Alembic writes spaces for them."""
    expression = escape_colons(f"name || {tricky(changed=changed)}".replace("\t", ""))
    items.append_column(Column("said", Text, Computed(expression, persisted=True)))


def tricky_index(items: Table, *, changed: bool) -> None:
    said = escape_colons(tricky(changed=changed))
    Index("ix_items_name", items.c.name, postgresql_where=text(f"name <> {said}"))
    Index("ix_items_said", text(f"(name || {said})"), _table=items)
    if changed:
        Index("ix_items_more", items.c.name, postgresql_where=text(f"name <> {said}"))


def tricky_statistics(items: Table, *, changed: bool) -> None:
    declare(items.metadata, f"CREATE STATISTICS app.st_items ON (name || {tricky(changed=changed)}) FROM app.items")


def tricky_partition(items: Table, *, changed: bool) -> None:
    if changed:
        table = partitioned(items.metadata)
        bound = tricky(changed=changed)
        declare_partitions(table, f"CREATE TABLE app.events_odd PARTITION OF app.events FOR VALUES IN ({bound})")
