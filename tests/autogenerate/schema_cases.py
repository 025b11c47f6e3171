"""Changes in two schemas at once, ``app`` and ``audit``: equal names, and what crosses from one to the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Computed,
    CreateView,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    select,
    text,
)

from arc_halo.autogenerate import declare, declare_partitions, declare_schemas
from tests.autogenerate.project import new_metadata

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import MetaData

NOTE: Final = """
CREATE FUNCTION audit.note{0}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit.entries (item) VALUES ({1}.id);
    RETURN NEW;
END $$
"""
NOTE_TRIGGER: Final = "CREATE TRIGGER note AFTER UPDATE ON app.items FOR EACH ROW EXECUTE FUNCTION audit.note{}()"
WORTH: Final = "CREATE FUNCTION audit.worth(n bigint) RETURNS {0} LANGUAGE sql IMMUTABLE RETURN ({1})::{0}"


def equal_names(metadata: MetaData, *, changed: bool) -> None:
    """Each thing is there twice under one name, and changes on both sides, each in its own way."""
    for schema, number in (("app", 1), ("audit", 2)):
        least = number + 10 * changed
        if schema == "audit":
            Table("items", metadata, Column("id", BigInteger, primary_key=True), Column("name", Text), schema=schema)
        items = metadata.tables[f"{schema}.items"]
        items.append_column(Column("size", BigInteger, server_default=str(least), comment=f"of {least}"))
        items.append_column(Column("payload", Text))
        items.append_column(Column("label", String(20 - number) if changed else Text))
        items.append_column(Column("twice", BigInteger, Computed(f"id * {least}", persisted=True)))
        items.append_column(Column(f"only_{schema}" if changed else "both", Integer))
        items.append_constraint(CheckConstraint(f"size > {least}", name="ck_items_size", comment=f"{least}"))
        items.append_constraint(UniqueConstraint(*("name", "size")[: 1 + changed], name="uq_items"))
        options = {"onupdate": "CASCADE"} if changed and schema == "app" else {}
        items.append_constraint(ForeignKeyConstraint(["size"], [items.c.id], name="fk_items_size", **options))
        Index("ix_items_name", items.c.name, items.c.size, postgresql_where=items.c.size > least)
        if changed:
            items.append_constraint(CheckConstraint(f"name <>\t'{schema}'", name="ck_items_tab"))
        CreateView(select(items.c.name).where(items.c.id > least), "v_items", metadata=metadata, schema=schema)
        mode = "EXTERNAL" if changed == (schema == "app") else "MAIN"
        declare(
            metadata,
            f"CREATE FUNCTION {schema}.least() RETURNS integer LANGUAGE sql RETURN {least}",
            f"ALTER TABLE {schema}.items ALTER COLUMN payload SET STORAGE {mode}",
            f"CREATE POLICY own ON {schema}.items USING (id > {least})",
            f"CREATE STATISTICS {schema}.both ON id, {'size' if changed else 'name'} FROM {schema}.items",
        )


def one_of_two(metadata: MetaData, *, changed: bool) -> None:
    """Of equal names only those in ``audit`` change or go."""
    for schema in ("app", "audit"):
        now = changed and schema == "audit"
        for name in ("kept", "gone")[: 1 if now else 2]:
            table = Table(
                name,
                metadata,
                Column("id", BigInteger, primary_key=True),
                Column("size", Integer if now else BigInteger),
                CheckConstraint(f"size > {int(now)}", name="ck_size"),
                schema=schema,
            )
            Index(f"ix_{name}", table.c.size, unique=now)
            CreateView(select(table.c.size), f"v_{name}", metadata=metadata, schema=schema)


def view_across(metadata: MetaData, *, changed: bool) -> None:
    """Views of each schema on the other's, and a column type below all of them."""
    items = metadata.tables["app.items"]
    items.append_column(Column("size", BigInteger if changed else Integer))
    first = CreateView(select(items.c.id, items.c.size), "sizes", metadata=metadata, schema="audit", materialized=True)
    Index("ix_sizes", first.table.c.size)
    second = CreateView(select(first.table.c.size), "v_sizes", metadata=metadata, schema="app")
    CreateView(select(second.table.c.size), "v_again", metadata=metadata, schema="audit")


def reference_across(metadata: MetaData, *, changed: bool) -> None:
    """Foreign keys in both directions; one points to what the revision adds, one is changed."""
    items = metadata.tables["app.items"]
    entries = Table(
        "entries",
        metadata,
        Column("id", BigInteger, primary_key=True),
        Column("item", ForeignKey(items.c.id, ondelete="CASCADE" if changed else None)),
        schema="audit",
    )
    if changed:
        entries.append_column(Column("code", Text))
        entries.append_constraint(UniqueConstraint("code", name="uq_entries_code"))
        items.append_column(Column("entry", ForeignKey(entries.c.id, name="fk_items_entry", use_alter=True)))
        Table("later", metadata, Column("code", ForeignKey(entries.c.code), primary_key=True))
        Table("last", metadata, Column("code", ForeignKey("app.later.code"), primary_key=True), schema="audit")
    else:
        Table("former", metadata, Column("id", BigInteger, ForeignKey(items.c.id), primary_key=True), schema="audit")


def trigger_across(metadata: MetaData, *, changed: bool) -> None:
    """The function has another body."""
    _entries(metadata)
    declare(metadata, NOTE_TRIGGER.format(""), NOTE.format("", "NEW" if changed else "OLD"))


def other_function_across(metadata: MetaData, *, changed: bool) -> None:
    """The trigger stays in ``app``, its function in ``audit`` is another, and the former one goes."""
    _entries(metadata)
    which = "_2" if changed else ""
    declare(metadata, NOTE_TRIGGER.format(which), NOTE.format(which, "NEW"))


def result_across(metadata: MetaData, *, changed: bool) -> None:
    """The result of a function changes below a view, a default, a CHECK and a column of the other schema."""
    items = metadata.tables["app.items"]
    kind = "numeric" if changed else "bigint"
    declare(metadata, WORTH.format(kind, "n * 2"))
    worth = "audit.worth({})"
    items.append_column(Column("size", BigInteger, server_default=text(worth.format(1))))
    items.append_column(Column("worth", BigInteger, Computed(worth.format("id"), persisted=True)))
    items.append_constraint(CheckConstraint(f"{worth.format('id')} > 0", name="ck_items_worth"))
    Index("ix_items_worth", text(worth.format("id")), _table=items)
    declare(metadata, f"CREATE VIEW app.v_worth AS SELECT {worth.format('id')} AS worth FROM app.items")


def objects_across(metadata: MetaData, *, changed: bool) -> None:
    """Statistics in ``audit`` of a table in ``app``; a policy, an aggregate and a procedure that use the other."""
    _entries(metadata)
    declare(
        metadata,
        f"CREATE STATISTICS audit.both ({'mcv' if changed else 'ndistinct'}) ON id, name FROM app.items",
        f"CREATE POLICY own ON app.items USING (EXISTS (SELECT FROM audit.entries WHERE item > {int(changed)}))",
        "ALTER TABLE audit.entries ENABLE ROW LEVEL SECURITY",
        f"CREATE FUNCTION app.longer(a text, b text) RETURNS text LANGUAGE sql IMMUTABLE RETURN a || '{changed}' || b",
        f"CREATE AGGREGATE audit.all_of(text) (SFUNC = app.longer, STYPE = text, INITCOND = '{int(changed)}')",
        f"CREATE PROCEDURE app.clean() LANGUAGE sql AS $$ DELETE FROM audit.entries WHERE id > {int(changed)} $$",
    )


def first_of_a_schema(metadata: MetaData, *, changed: bool) -> None:
    """The other schema is not even declared at first."""
    if changed:
        declare_schemas(metadata, 'Odd "1" %')
        table = Table("Items", metadata, Column("id", BigInteger, primary_key=True), schema='Odd "1" %')
        table.append_column(Column("item", ForeignKey("app.items.id")))
        CreateView(select(table.c.item), "v", metadata=metadata, schema='Odd "1" %')


def last_of_a_schema(metadata: MetaData, *, changed: bool) -> None:
    """Everything in the other schema goes; it is declared still."""
    if not changed:
        objects_across(metadata, changed=False)
        events = Table(
            "events", metadata, Column("id", BigInteger, primary_key=True), schema="audit",
            postgresql_partition_by="RANGE (id)",
        )  # fmt: skip
        declare_partitions(events, "CREATE TABLE audit.events_1 PARTITION OF audit.events FOR VALUES FROM (1) TO (9)")


def _entries(metadata: MetaData) -> None:
    Table("entries", metadata, Column("id", BigInteger, primary_key=True), Column("item", BigInteger), schema="audit")


CASES: Final[dict[str, Callable[..., None]]] = {
    case.__name__: case
    for case in (
        equal_names, one_of_two, view_across, reference_across, trigger_across, other_function_across, result_across,
        objects_across, first_of_a_schema, last_of_a_schema,
    )
}  # fmt: skip


def declared(name: str | None = None, *, changed: bool = False) -> MetaData:
    """The metadata of a case, left out of none."""
    metadata = new_metadata()
    declare_schemas(metadata, "audit")
    if name is not None:
        CASES[name](metadata, changed=changed)
    return metadata
