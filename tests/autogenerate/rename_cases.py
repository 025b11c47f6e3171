"""Renames, alone and beside another change; `items` has a row when they are run."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Computed,
    CreateView,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
    select,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import INT8RANGE, ExcludeConstraint
from sqlalchemy.sql.elements import conv

from arc_halo.autogenerate import declare, declare_partitions, declare_schemas, renamed_from
from tests.autogenerate.table_cases import TOUCH, TOUCH_TRIGGER

if TYPE_CHECKING:
    from collections.abc import Callable

CONVENTION = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
}


def metadata_of(
    name: str = "items", column: str = "name", *, metadata: MetaData | None = None
) -> tuple[MetaData, Table]:
    """A table under one name or another, with what stands on it under names of a convention."""
    metadata = metadata or MetaData(schema="app", naming_convention=CONVENTION)
    table = Table(
        name,
        metadata,
        Column("id", BigInteger, primary_key=True),
        Column(column, Text, nullable=False, unique=True),
        Column("size", BigInteger, server_default=text("7")),
        Column("length", BigInteger, Computed(f"length({column})", persisted=True)),
        Column("number", BigInteger, Identity()),
        CheckConstraint(f"{column} <> ''", name="filled"),
        comment="of things",
    )
    Index(None, table.c.size)
    Index(f"ix_{name}_partial", table.c[column], postgresql_where=text(f"{column} > 'a'"))
    return metadata, table


def dependents(table: Table, column: str = "name") -> None:
    """Views on it, a function, a trigger, a policy, a storage, statistics, and a table that refers to it."""
    metadata, name = table.metadata, table.name
    view = CreateView(select(table.c.id, table.c[column].label("said")), "v_said", metadata=metadata, schema="app")
    made = CreateView(select(view.table.c.id), "mv_said", metadata=metadata, schema="app", materialized=True)
    Index("ix_mv_said", made.table.c.id)
    declare(
        metadata,
        TOUCH,
        TOUCH_TRIGGER.format("UPDATE OF size", name),
        f"CREATE FUNCTION app.largest() RETURNS bigint LANGUAGE sql STABLE"
        f" BEGIN ATOMIC SELECT max(size) FROM app.{name}; END",
        f"CREATE FUNCTION app.said(app.{name}) RETURNS text LANGUAGE sql STABLE RETURN ($1).{column}",
        f"ALTER TABLE app.{name} ENABLE ROW LEVEL SECURITY",
        (f"CREATE POLICY own ON app.{name} USING ({column} <> 'x')", f"COMMENT ON POLICY own ON app.{name} IS 'own'"),
        f"ALTER TABLE app.{name} ALTER COLUMN {column} SET STORAGE EXTERNAL",
        f"CREATE STATISTICS app.st_items ON {column}, size FROM app.{name}",
    )
    Table("notes", metadata, Column("id", BigInteger, primary_key=True), Column("item_id", ForeignKey(table.c.id)))


def former(metadata: MetaData, item: object, old: str, *, changed: bool) -> MetaData:
    """Say the former name of an item, once it has another."""
    if changed:
        renamed_from(item, old)
    return metadata


def table(*, changed: bool) -> MetaData:
    """Everything on it stays, and what a naming convention calls after it follows."""
    metadata, items = metadata_of("things" if changed else "items")
    dependents(items)
    return former(metadata, items, "items", changed=changed)


def column(*, changed: bool) -> MetaData:
    """A column of views on it follows where it has no name of its own."""
    name = "title" if changed else "name"
    metadata, items = metadata_of("items", name)
    dependents(items, name)
    view = CreateView(select(items.c.id, items.c[name]), "v_items", metadata=metadata, schema="app")
    CreateView(select(view.table.c[name]), "mv_items", metadata=metadata, schema="app", materialized=True)
    return former(metadata, items.c[name], "name", changed=changed)


def table_and_column(*, changed: bool) -> MetaData:
    """With a new column, a dropped one, another type, another CHECK and other defaults."""
    name = "title" if changed else "name"
    metadata, items = metadata_of("things" if changed else "items", name)
    items.append_column(Column("weight", Integer if changed else SmallInteger, server_default="2" if changed else "1"))
    items.append_column(Column("added" if changed else "gone", BigInteger, server_default=text("3")))
    items.append_constraint(CheckConstraint(f"{name} <> 'b'" if changed else f"{name} <> 'c'", name="other"))
    items.comment = "of other things" if changed else "of things"
    Index("ix_added" if changed else "ix_gone", items.c.weight)
    Index("ix_renewed", items.c.weight, postgresql_where=text("weight > 1" if changed else "weight > 2"))
    dependents(items, name)
    if changed:
        declare(
            metadata,
            "CREATE FUNCTION app.least() RETURNS bigint LANGUAGE sql RETURN (SELECT min(added) FROM app.things)",
        )
    former(metadata, items, "items", changed=changed)
    return former(metadata, items.c[name], "name", changed=changed)


def table_under_a_view_of_its_old_name(*, changed: bool) -> MetaData:
    """So that code of the last release finds what it knows."""
    metadata, items = metadata_of("things" if changed else "items")
    if changed:
        CreateView(select(items), "items", metadata=metadata, schema="app")
    return former(metadata, items, "items", changed=changed)


def table_whose_old_name_is_given_again(*, changed: bool) -> MetaData:
    """With an index, a key and a trigger of the old names as well."""
    metadata, items = metadata_of("things" if changed else "items")
    declare(metadata, TOUCH, TOUCH_TRIGGER.format("UPDATE", "items"))
    if changed:
        metadata_of("items", metadata=metadata)
    return former(metadata, items, "items", changed=changed)


def tables_in_a_chain(*, changed: bool) -> MetaData:
    metadata, second = metadata_of("third" if changed else "items")
    _, first = metadata_of("items" if changed else "first", metadata=metadata)
    former(metadata, second, "items", changed=changed)
    return former(metadata, first, "first", changed=changed)


def partitioned_table(*, changed: bool) -> MetaData:
    """With a table that refers to it, for which PostgreSQL keeps one more constraint per partition."""
    metadata, _ = metadata_of()
    parts = Table(
        "parts_new" if changed else "parts",
        metadata,
        Column("kind_new" if changed else "kind", Text, primary_key=True),
        Column("id", BigInteger, primary_key=True),
        postgresql_partition_by="LIST (kind_new)" if changed else "LIST (kind)",
    )
    declare_partitions(parts, f"CREATE TABLE app.parts_a PARTITION OF app.{parts.name} FOR VALUES IN ('a')")
    Index("ix_parts_id", parts.c.id)
    uses = Table("uses_new" if changed else "uses", metadata, Column("kind", Text), Column("id", BigInteger))
    uses.append_constraint(ForeignKeyConstraint([uses.c.kind, uses.c.id], [parts.c[0], parts.c.id]))
    former(metadata, uses, "uses", changed=changed)
    former(metadata, parts.c[0], "kind", changed=changed)
    return former(metadata, parts, "parts", changed=changed)


def dropped_beside_a_rename(*, changed: bool) -> MetaData:
    """A table, a column and the functions that their defaults call come back under the names that stood."""
    metadata, items = metadata_of()
    declare(
        metadata,
        f"CREATE FUNCTION app.{'start' if changed else 'begin'}() RETURNS bigint LANGUAGE sql RETURN 1",
        renamed_from="begin" if changed else None,
    )
    if not changed:
        declare(metadata, "CREATE FUNCTION app.gone() RETURNS bigint LANGUAGE sql RETURN 2")
        items.append_column(Column("first", BigInteger, server_default=text("app.begin()")))
        items.append_column(Column("second", BigInteger, server_default=text("app.gone()")))
        gone = Table("gone", metadata, Column("id", ForeignKey(items.c.id), server_default=text("app.begin()")))
        Index("ix_gone", gone.c.id)
        CreateView(select(gone), "v_gone", metadata=metadata, schema="app")
    return metadata


def constraints(*, changed: bool) -> MetaData:
    metadata, items = metadata_of()
    end = "_new" if changed else ""
    notes = Table("notes", metadata, Column("id", BigInteger), Column("item_id", BigInteger), Column("code", INT8RANGE))
    made = {
        "pk": PrimaryKeyConstraint(notes.c.id, name=f"pk{end}"),
        "fk": ForeignKeyConstraint([notes.c.item_id], [items.c.id], name=f"fk{end}"),
        "uq": UniqueConstraint(notes.c.item_id, name=f"uq{end}"),
        "ck": CheckConstraint("item_id > 0", name=conv(f"ck{end}")),
        "ex": ExcludeConstraint(("code", "&&"), name=f"ex{end}"),
    }
    for name, constraint in made.items():
        notes.append_constraint(constraint)
        former(metadata, constraint, name, changed=changed)
    return metadata


def constraint_of_other_values(*, changed: bool) -> MetaData:
    """Dropped under one name and made under the other."""
    metadata, items = metadata_of()
    condition = "size > 1" if changed else "size > 0"
    check = CheckConstraint(condition, name=conv("ck_new" if changed else "ck"))
    items.append_constraint(check)
    return former(metadata, check, "ck", changed=changed)


def index(*, changed: bool) -> MetaData:
    metadata, items = metadata_of()
    return former(
        metadata, Index("ix_new" if changed else "ix_old", items.c.name, items.c.size), "ix_old", changed=changed
    )


def view(*, changed: bool) -> MetaData:
    """With a column, another condition, a trigger on it and a view on it; and a view that is declared as SQL."""
    metadata, items = metadata_of()
    column = items.c.name.label("title" if changed else "said")
    query = select(items.c.id, column).where(items.c.id > (1 if changed else 0))
    made = CreateView(query, "v_new" if changed else "v_old", metadata=metadata, schema="app").table
    made.comment = "new" if changed else "old"
    CreateView(select(made.c.id, made.c[1].label("text")), "v_names", metadata=metadata, schema="app")
    declare(
        metadata,
        TOUCH,
        f"CREATE TRIGGER touch INSTEAD OF UPDATE ON app.{made.name} FOR EACH ROW EXECUTE FUNCTION app.touch()",
    )
    declare(
        metadata,
        f"CREATE VIEW app.{'w_new' if changed else 'w_old'} AS SELECT id FROM app.items",
        renamed_from="w_old" if changed else None,
    )
    former(metadata, made, "v_old", changed=changed)
    return former(metadata, made.c[1], "said", changed=changed)


def materialized_view(*, changed: bool) -> MetaData:
    metadata, items = metadata_of()
    query = select(items.c.id, items.c.name.label("title" if changed else "said"))
    name = "mv_new" if changed else "mv_old"
    made = CreateView(query, name, metadata=metadata, schema="app", materialized=True).table
    by_name = Index(f"ix_{name}", made.c[1])
    former(metadata, made, "mv_old", changed=changed)
    former(metadata, made.c[1], "said", changed=changed)
    return former(metadata, by_name, "ix_mv_old", changed=changed)


def view_of_other_columns(*, changed: bool) -> MetaData:
    """Dropped under one name and made under the other, with the view on it."""
    metadata, items = metadata_of()
    columns = [items.c.id, items.c.size, items.c.name] if changed else [items.c.id, items.c.name]
    made = CreateView(select(*columns), "v_new" if changed else "v_old", metadata=metadata, schema="app").table
    CreateView(select(made.c.id), "v_ids", metadata=metadata, schema="app")
    return former(metadata, made, "v_old", changed=changed)


def routines(*, changed: bool) -> MetaData:
    """A function that others call, one of two of that name, a procedure and aggregates."""
    metadata, items = metadata_of()
    items.append_column(Column("code", BigInteger, server_default=text(f"app.{'code' if changed else 'number'}(1)")))
    declare(metadata, "CREATE FUNCTION app.number(text) RETURNS bigint LANGUAGE sql IMMUTABLE RETURN 1")
    call = f"app.{'code' if changed else 'number'}"
    declare(metadata, f"CREATE FUNCTION app.twice() RETURNS bigint LANGUAGE sql IMMUTABLE RETURN 2 * {call}(1)")
    CreateView(select(literal_column("app.twice()").label("twice")), "v_twice", metadata=metadata, schema="app")
    for old, new, made in (
        ("number", "code", "CREATE FUNCTION {}(bigint) RETURNS bigint LANGUAGE sql IMMUTABLE RETURN $1"),
        ("clean", "wipe", "CREATE PROCEDURE {}() LANGUAGE plpgsql AS 'BEGIN DELETE FROM app.items; END'"),
        ("total", "sum_up", "CREATE AGGREGATE {}(bigint) (SFUNC = pg_catalog.int8pl, STYPE = bigint, INITCOND = 0)"),
        ("counted", "tallied", "CREATE AGGREGATE {}(*) (SFUNC = pg_catalog.int8inc, STYPE = bigint, INITCOND = 0)"),
    ):
        sql = made.format(f"app.{new if changed else old}")
        said = "COMMENT ON {} IS 'x'".format(sql[7:].partition(")")[0] + ")")
        declare(metadata, (sql, said), renamed_from=old if changed else None)
    return metadata


def function_of_another_body(*, changed: bool) -> MetaData:
    """Of a table that is renamed, too: one whose body PostgreSQL knows, one of a string, one in PL/pgSQL."""
    metadata, items = metadata_of("things" if changed else "items")
    table, more, end = items.name, " + 1" if changed else "", "_new" if changed else ""
    for name, sql in {
        "known": "RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT max(size){} FROM app.{}; END",
        "string": "RETURNS bigint LANGUAGE sql AS 'SELECT max(size){} FROM app.{}'",
        "block": "RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT max(size){} FROM app.{}); END'",
    }.items():
        made = f"CREATE FUNCTION app.{name}{end}() {sql.format(more, table)}"
        declare(metadata, made, renamed_from=name if changed else None)
    of_row = f"CREATE FUNCTION app.of_row{end}(app.{table}) RETURNS bigint LANGUAGE sql RETURN ($1).size{more}"
    declare(metadata, of_row, renamed_from="of_row" if changed else None)
    return former(metadata, items, "items", changed=changed)


def trigger(*, changed: bool) -> MetaData:
    """One as it was, and one of other events."""
    metadata, _ = metadata_of()
    declare(metadata, TOUCH)
    for name, events in (("a", "INSERT"), ("b", "UPDATE OF size, name" if changed else "UPDATE OF size")):
        sql = TOUCH_TRIGGER.format(events, "items").replace("touch", f"{name}_new" if changed else name, 1)
        declare(metadata, sql, renamed_from=name if changed else None)
    return metadata


def policy(*, changed: bool) -> MetaData:
    metadata, _ = metadata_of()
    declare(metadata, "ALTER TABLE app.items ENABLE ROW LEVEL SECURITY")
    for name, value in (("a", "x"), ("b", "y" if changed else "z")):
        sql = f"CREATE POLICY {name}{'_new' if changed else ''} ON app.items USING (name = '{value}')"
        said = f"COMMENT ON POLICY {name}{'_new' if changed else ''} ON app.items IS '{value}'"
        declare(metadata, (sql, said), renamed_from=name if changed else None)
    return metadata


def statistics(*, changed: bool) -> MetaData:
    metadata, _ = metadata_of()
    name = "st_new" if changed else "st_old"
    declare(
        metadata,
        f"CREATE STATISTICS app.{name} ON name, size FROM app.items",
        renamed_from="st_old" if changed else None,
    )
    return metadata


def quoted(*, changed: bool) -> MetaData:
    metadata = metadata_of()[0]
    name, column = ('New "Größe"', "user %") if changed else ("Odd 'Name'", "Größe")
    odd = Table(
        name,
        metadata,
        Column("Id", BigInteger, primary_key=True, autoincrement=False),
        Column(column, Text),
    )
    quote = postgresql.dialect(paramstyle="named").identifier_preparer.quote
    Index(f"ix {name}", odd.c[column])
    CreateView(select(odd.c["Id"], odd.c[column].label("it")), f"V {name}", metadata=metadata, schema="app")
    declare(
        metadata,
        f"CREATE FUNCTION app.{quote(f'F {name}')}(app.{quote(name)}) RETURNS text LANGUAGE sql"
        f" RETURN ($1).{quote(column)}",
        renamed_from="F Odd 'Name'" if changed else None,
    )
    former(metadata, metadata.tables[f"app.V {name}"], "V Odd 'Name'", changed=changed)
    former(metadata, odd.c[column], "Größe", changed=changed)
    return former(metadata, odd, "Odd 'Name'", changed=changed)


def comments_beside_renames(*, changed: bool) -> MetaData:
    """Of what is renamed, and of what stands on it."""
    metadata, items = metadata_of("things" if changed else "items")
    word = "new" if changed else "old"
    items.comment = word
    items.c.name.comment = None if changed else word
    view = CreateView(select(items.c.id), f"v_{word}", metadata=metadata, schema="app").table
    view.comment = view.c.id.comment = word
    declare(
        metadata,
        (
            f"CREATE POLICY own ON app.{items.name} USING (true)",
            f"COMMENT ON POLICY own ON app.{items.name} IS '{word}'",
        ),
        TOUCH,
        TOUCH_TRIGGER.format("UPDATE", items.name),
    )
    former(metadata, view, "v_old", changed=changed)
    return former(metadata, items, "items", changed=changed)


def several_schemas(*, changed: bool) -> MetaData:
    """Tables of one name in two schemas, of which one is renamed, with a view and a function in the other one."""
    metadata, items = metadata_of()
    declare_schemas(metadata, "audit")
    end = "things" if changed else "items"
    other = Table(
        end,
        metadata,
        Column("id", BigInteger, primary_key=True),
        Column("title" if changed else "name", Text, index=True),
        schema="audit",
    )
    former(metadata, other, "items", changed=changed)
    former(metadata, other.c[1], "name", changed=changed)
    items.append_column(Column("other_id", ForeignKey(other.c.id)))
    view = CreateView(select(other.c[1].label("it")), f"v_{end}", metadata=metadata, schema="app").table
    sql = f"CREATE FUNCTION audit.of_{end}(audit.{end}) RETURNS text LANGUAGE sql RETURN ($1).{other.c[1].name}"
    declare(metadata, sql, renamed_from="of_items" if changed else None)
    return former(metadata, view, "v_items", changed=changed)


class Said(NamedTuple):
    """What the upgrade says, and what not."""

    case: Callable[..., MetaData]
    present: tuple[str, ...]
    absent: tuple[str, ...] = ("DROP", "drop_", "CREATE", "create_")


CASES: dict[str, Said] = {
    said.case.__name__: said
    for said in (
        Said(table, ("ALTER TABLE app.items RENAME TO things", "RENAME CONSTRAINT pk_items TO pk_things")),
        Said(column, ("ALTER TABLE app.items RENAME COLUMN name TO title", "app.mv_items RENAME COLUMN name TO title")),
        Said(
            table_and_column,
            ("ALTER TABLE app.items RENAME TO things", "app.things RENAME COLUMN name TO title"),
            ("create_table(", "DROP TABLE", "DROP VIEW", "DROP FUNCTION", "DROP POLICY", "DROP TRIGGER"),
        ),
        Said(table_under_a_view_of_its_old_name, ("app.items RENAME TO things", "CREATE VIEW app.items"), ("DROP",)),
        Said(
            table_whose_old_name_is_given_again,
            ("app.items RENAME TO things", "create_table('items'", "DROP TRIGGER touch ON app.items"),
            ("DROP TABLE", "drop_"),
        ),
        Said(tables_in_a_chain, ("app.items RENAME TO third", "app.first RENAME TO items")),
        Said(partitioned_table, ("app.parts RENAME TO parts_new", "RENAME COLUMN kind TO kind_new")),
        Said(
            dropped_beside_a_rename,
            ("ALTER FUNCTION app.begin() RENAME TO start", "DROP TABLE app.gone"),
            ("DROP FUNCTION app.begin",),
        ),
        Said(
            constraints,
            tuple(f"RENAME CONSTRAINT {name} TO {name}_new" for name in ("pk", "fk", "uq", "ck", "ex")),
        ),
        Said(constraint_of_other_values, ("DROP CONSTRAINT ck'", "ADD CONSTRAINT ck_new"), ("RENAME",)),
        Said(index, ("ALTER INDEX app.ix_old RENAME TO ix_new",)),
        Said(
            view,
            (
                "ALTER VIEW app.v_old RENAME TO v_new",
                "ALTER TABLE app.v_new RENAME COLUMN said TO title",
                "CREATE OR REPLACE VIEW app.v_new",
                "ALTER VIEW app.w_old RENAME TO w_new",
            ),
            ("DROP",),
        ),
        Said(
            materialized_view,
            ("ALTER MATERIALIZED VIEW app.mv_old RENAME TO mv_new", "ALTER INDEX app.ix_mv_old RENAME TO ix_mv_new"),
        ),
        Said(view_of_other_columns, ("DROP VIEW app.v_old", "CREATE VIEW app.v_new"), ("RENAME",)),
        Said(
            routines,
            (
                "ALTER FUNCTION app.number(bigint) RENAME TO code",
                "ALTER PROCEDURE app.clean() RENAME TO wipe",
                "ALTER AGGREGATE app.total(bigint) RENAME TO sum_up",
            ),
        ),
        Said(
            function_of_another_body,
            (
                "ALTER FUNCTION app.known() RENAME TO known_new",
                "CREATE OR REPLACE FUNCTION app.string_new()",
                "ALTER FUNCTION app.of_row(app.things) RENAME TO of_row_new",
            ),
            ("DROP",),
        ),
        Said(
            trigger,
            ("ALTER TRIGGER a ON app.items RENAME TO a_new", "CREATE OR REPLACE TRIGGER b_new"),
            ("DROP",),
        ),
        Said(policy, ("ALTER POLICY a ON app.items RENAME TO a_new", "DROP POLICY b"), ("DROP POLICY a",)),
        Said(statistics, ("ALTER STATISTICS app.st_old RENAME TO st_new",)),
        Said(quoted, ('RENAME TO "New ""Größe""', 'RENAME COLUMN "Größe" TO "user %"')),
        Said(
            several_schemas,
            (
                "ALTER TABLE audit.items RENAME TO things",
                "ALTER TABLE audit.things RENAME COLUMN name TO title",
                "ALTER SEQUENCE audit.items_id_seq RENAME TO things_id_seq",
                "ALTER INDEX audit.ix_items_name RENAME TO ix_things_title",
                "ALTER VIEW app.v_items RENAME TO v_things",
                "ALTER FUNCTION audit.of_items(audit.things) RENAME TO of_things",
            ),
        ),
        Said(comments_beside_renames, ("ALTER VIEW app.v_old RENAME TO v_new",), ("DROP", "CREATE")),
    )
}
