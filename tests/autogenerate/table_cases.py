"""Changes of tables: columns, keys, constraints, indexes, partitions, and what stands on them."""

from __future__ import annotations

from pgvector.sqlalchemy import VECTOR
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Computed,
    CreateView,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, INT8RANGE, JSONB, ExcludeConstraint

from arc_halo.autogenerate import declare, declare_partitions

TOUCH = """
CREATE FUNCTION app.touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.name := 'touched{}';
    RETURN NEW;
END $$;
"""
TOUCH_TRIGGER = "CREATE TRIGGER touch BEFORE {} ON app.{} FOR EACH ROW EXECUTE FUNCTION app.touch()"
NEW_KEY = "CREATE FUNCTION app.new_key() RETURNS uuid LANGUAGE sql VOLATILE RETURN gen_random_uuid()"


def column(items: Table, *, changed: bool) -> None:
    if changed:
        items.append_column(Column("note", Text, comment='what\'s 100% new: \\ and "quotes"'))


def every_type(items: Table, *, changed: bool) -> None:
    declare(items.metadata, NEW_KEY)
    if changed:
        Table(
            "things",
            items.metadata,
            Column("number", BigInteger, Identity(always=True), primary_key=True),
            Column("id", Uuid, server_default=text("app.new_key()"), nullable=False),
            Column("config", JSONB, server_default=text("'{}'::jsonb"), nullable=False),
            Column("shape", ARRAY(BigInteger), nullable=False),
            Column("made_at", DateTime(timezone=True), server_default=func.now(), nullable=False),
            Column("vector", VECTOR(3)),
            Column("size", Integer, Computed("cardinality(shape)", persisted=True)),
            Column("item_id", ForeignKey("app.items.id", ondelete="CASCADE")),
            CheckConstraint("number > 0", name="ck_things_number"),
            comment="things: 100% of them",
        )


def column_dropped_below_a_function(items: Table, *, changed: bool) -> None:
    """Whose body is a string, so that PostgreSQL does not know what it uses."""
    if not changed:
        items.append_column(Column("note", Text))
    name = "name" if changed else "note"
    declare(
        items.metadata,
        f"CREATE FUNCTION app.any_note() RETURNS text LANGUAGE sql STABLE AS 'SELECT max({name}) FROM app.items'",
    )


def column_type(items: Table, *, changed: bool) -> None:
    """Below a view, a generated column with an index and a CHECK, a default, a trigger and a storage."""
    items.append_column(Column("size", BigInteger if changed else Integer, server_default="0"))
    items.append_column(
        Column("twice", BigInteger, Computed("((size)::bigint * 2)", persisted=True), comment="of size")
    )
    items.append_constraint(CheckConstraint("twice >= 0", name="ck_items_twice"))
    Index("ix_items_twice", items.c.twice)
    items.append_constraint(CheckConstraint("twice > size", name="ck_items_size"))
    CreateView(select(items.c.id, items.c.size, items.c.twice), "v_items", metadata=items.metadata, schema="app")
    declare(items.metadata, TOUCH, TOUCH_TRIGGER.format("UPDATE OF size", "items"))


def column_dropped_below_a_view(items: Table, *, changed: bool) -> None:
    columns = [items.c.id]
    if not changed:
        items.append_column(Column("note", Text))
        columns.append(items.c.note)
    CreateView(select(*columns), "v_items", metadata=items.metadata, schema="app")


def default(items: Table, *, changed: bool) -> None:
    items.append_column(Column("size", BigInteger, server_default=text("2") if changed else None))
    items.append_column(Column("label", Text, server_default=None if changed else "it's: 100%"))


def partitioned(metadata: MetaData) -> Table:
    table = Table(
        "events",
        metadata,
        Column("kind", Text, primary_key=True),
        Column("id", BigInteger, primary_key=True),
        Column("name", Text),
        Column("vector", VECTOR),
        postgresql_partition_by="LIST (kind)",
    )
    declare_partitions(
        table,
        "CREATE TABLE app.events_ab PARTITION OF app.events FOR VALUES IN ('a', 'b')",
        "CREATE TABLE app.events_rest PARTITION OF app.events DEFAULT",
    )
    return table


def partitioned_table(items: Table, *, changed: bool) -> None:
    """Also the target of a foreign key, for which PostgreSQL keeps one more constraint per partition."""
    if changed:
        partitioned(items.metadata)
        items.append_column(Column("kind", Text))
        items.append_column(Column("event_id", BigInteger))
        Table(
            "notes",
            items.metadata,
            Column("id", BigInteger, primary_key=True),
            Column("kind", Text),
            Column("event_id", BigInteger),
            comment="on events",
        ).append_constraint(ForeignKeyConstraint(["kind", "event_id"], ["app.events.kind", "app.events.id"]))


def nearest_index(items: Table, *, changed: bool) -> None:
    """HNSW parameters, operator class and predicate, on a partitioned parent."""
    table = partitioned(items.metadata)
    operators = "vector_l2_ops" if changed else "vector_cosine_ops"
    Index(
        "ix_events_vector_3",
        text(f"((vector::public.vector(3))) public.{operators}"),
        postgresql_using="hnsw",
        postgresql_with={"m": 8 if changed else 16},
        postgresql_where=text("kind = 'b'" if changed else "kind IN ('a', 'b')"),
        _table=table,
    )


def index(items: Table, *, changed: bool) -> None:
    """Method, operator class, predicate and WITH of indexes whose names stay."""
    items.append_column(Column("size", Integer))
    if changed:
        Index("ix_items_size", items.c.size, postgresql_using="brin", postgresql_with={"pages_per_range": 32})
        Index("ix_items_name", items.c.name, postgresql_ops={"name": "text_pattern_ops"})
        Index("ix_items_few", items.c.size, postgresql_where=text("size > 10"))
    else:
        Index("ix_items_size", items.c.size)
        Index("ix_items_name", items.c.name)
        Index("ix_items_few", items.c.size, postgresql_where=text("size > 1"))


def check(items: Table, *, changed: bool) -> None:
    allowed = "'a', 'b', '100%\\:x'" if changed else "'a', 'b'"
    items.append_constraint(CheckConstraint(f"name IN ({allowed})", name="ck_items_name"))


def generated_column(items: Table, *, changed: bool) -> None:
    """Its expression, with what stands on it: an index, a unique constraint with a foreign key to it, and a view."""
    length = "(length(name) + 1)" if changed else "length(name)"
    items.append_column(Column("length", Integer, Computed(length, persisted=True), nullable=False, comment="of name"))
    items.append_constraint(UniqueConstraint("length", name="uq_items_length"))
    Index("ix_items_length", items.c.length, postgresql_where=text("length > 3"))
    Table(
        "lengths",
        items.metadata,
        Column("length", ForeignKey("app.items.length"), primary_key=True, autoincrement=False),
    )
    CreateView(select(items.c.length), "v_lengths", metadata=items.metadata, schema="app")


def generated_column_with_new_things_on_it(items: Table, *, changed: bool) -> None:
    """It is made again, with its storage, before what Alembic makes on it."""
    said = "upper(name)" if changed else "lower(name)"
    items.append_column(Column("said", Text, Computed(said, persisted=True)))
    declare(items.metadata, "ALTER TABLE app.items ALTER COLUMN said SET STORAGE EXTERNAL")
    owners = Table("a_owners", items.metadata, Column("id", BigInteger, primary_key=True), Column("said", Text))
    if changed:
        items.append_constraint(UniqueConstraint("said", name="uq_items_said"))
        items.append_constraint(CheckConstraint("said <> 'A'", name="ck_items_said"))
        Index("ix_items_said", items.c.said, items.c.name)
        owners.append_constraint(ForeignKeyConstraint(["said"], ["app.items.said"]))


def unique_constraint(items: Table, *, changed: bool) -> None:
    items.append_constraint(
        UniqueConstraint("name", name="uq_items_name", **({"postgresql_nulls_not_distinct": True} if changed else {}))
    )


def primary_key(items: Table, *, changed: bool) -> None:
    """Alembic does not compare primary keys."""
    Table(
        "pairs",
        items.metadata,
        Column("a", BigInteger, nullable=False),
        Column("b", BigInteger, nullable=False),
        PrimaryKeyConstraint(*(("b", "a") if changed else ("a", "b")), name="pk_pairs"),
    )


def overlooked_constraints(items: Table, *, changed: bool) -> None:
    """A primary key under another name, with a foreign key to it; an exclusion constraint."""
    spans = Table(
        "spans",
        items.metadata,
        Column("id", BigInteger, nullable=False),
        Column("span", INT8RANGE),
        PrimaryKeyConstraint("id", name="pk_spans_new" if changed else "pk_spans"),
    )
    if changed:
        spans.append_constraint(ExcludeConstraint(("span", "&&"), name="ex_spans_span"))
    Table("uses", items.metadata, Column("id", ForeignKey("app.spans.id"), primary_key=True, autoincrement=False))


def storage(items: Table, *, changed: bool) -> None:
    items.append_column(Column("payload", Text))
    kind = "MAIN" if changed else "EXTERNAL"
    declare(items.metadata, f"ALTER TABLE app.items ALTER COLUMN payload SET STORAGE {kind}")


def comments(items: Table, *, changed: bool) -> None:
    items.comment = "it's \\ 100% changed" if changed else "of a table"
    items.c.name.comment = None if changed else "of a column"
    items.append_constraint(CheckConstraint("id > 0", name="ck_items_id", comment="new" if changed else "old"))


def dropped_table(items: Table, *, changed: bool) -> None:
    """With a trigger, a policy, a view and a storage on it."""
    if not changed:
        table = Table("old", items.metadata, Column("id", BigInteger, primary_key=True), Column("name", Text))
        CreateView(select(table.c.name), "v_old", metadata=items.metadata, schema="app")
        declare(
            items.metadata,
            TOUCH,
            TOUCH_TRIGGER.format("UPDATE", "old"),
            "ALTER TABLE app.old ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY own ON app.old USING (true)",
            "ALTER TABLE app.old ALTER COLUMN name SET STORAGE MAIN",
        )


def circular_references(items: Table, *, changed: bool) -> None:
    """Two new tables that refer to each other, and one to itself."""
    if changed:
        for name, other in (("hens", "eggs"), ("eggs", "hens")):
            Table(
                name,
                items.metadata,
                Column("id", BigInteger, primary_key=True),
                Column("other_id", ForeignKey(f"app.{other}.id", use_alter=name == "hens", name=f"fk_{name}_other")),
                Column("parent_id", ForeignKey(f"app.{name}.id", ondelete="SET NULL")),
            )


def quoted_names(items: Table, *, changed: bool) -> None:
    table = Table(
        "Odd 'Name'",
        items.metadata,
        Column("Größe %", BigInteger, primary_key=True, autoincrement=False),  # Alembic cannot read such a sequence
        Column("user", Text),
    )
    CreateView(
        select(table.c.user, *([table.c["Größe %"]] if changed else [])), "V odd", metadata=items.metadata, schema="app"
    )
    declare(
        items.metadata,
        'ALTER TABLE app."Odd \'Name\'" ALTER COLUMN "user" SET STORAGE ' + ("MAIN" if changed else "PLAIN"),
    )


def reference_to_a_new_column(items: Table, *, changed: bool) -> None:
    """From a new table, to what the revision adds to one that stands: a plain and a generated column."""
    if changed:
        items.append_column(Column("code", BigInteger))
        items.append_column(Column("twice", BigInteger, Computed("(code * 2)", persisted=True)))
        items.append_constraint(UniqueConstraint("code", name="uq_items_code"))
        items.append_constraint(UniqueConstraint("twice", name="uq_items_twice"))
        Table(
            "uses",
            items.metadata,
            Column("id", BigInteger, primary_key=True),
            Column("code", ForeignKey("app.items.code")),
            Column("twice", ForeignKey("app.items.twice")),
            Column("parent_id", ForeignKey("app.uses.id")),
        )


def reference_as_primary_key(items: Table, *, changed: bool) -> None:
    """A new table of which each row belongs to one of a table that stands: its key counts nothing."""
    if changed:
        key = Column("item", ForeignKey("app.items.id", name="fk_entries_item"), primary_key=True)
        Table("entries", items.metadata, key, schema="app")


def table_options(items: Table, *, changed: bool) -> None:
    options = {"fillfactor": 70, "autovacuum_enabled": "false"} if changed else {"fillfactor": 80}
    Table("packed", items.metadata, Column("id", BigInteger, primary_key=True), postgresql_with=options)
    plain = {"postgresql_with": {"fillfactor": 60}} if changed else {}
    Table("plain", items.metadata, Column("id", BigInteger, primary_key=True), **plain)


def compression(items: Table, *, changed: bool) -> None:
    """Of a column whose type changes as well, which resets it."""
    items.append_column(Column("payload", Text if changed else String(9)))
    compressed = ("payload", "name") if changed else ("payload",)
    for column in compressed:
        declare(items.metadata, f"ALTER TABLE app.items ALTER COLUMN {column} SET COMPRESSION pglz")
