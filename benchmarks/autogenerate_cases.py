"""Changes that every library is put to: the same SQL for each, and one metadata as large as databases get."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    CreateView,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    select,
)

from arc_halo.autogenerate import declare

if TYPE_CHECKING:
    from collections.abc import Callable

TOUCH = "CREATE FUNCTION app.touch() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NEW; END$$"
ADD = "CREATE FUNCTION app.added(n integer) RETURNS integer LANGUAGE sql IMMUTABLE AS $$SELECT n + {}$$"
TRICKY = """SELECT (ARRAY['a', 'b'])[1:n]::text || ' :name %s %% \\n it''s "q" {{x}}' /* \t \"""three\""" */ || {}"""


def new_metadata() -> MetaData:
    """A schema with one table."""
    metadata = MetaData(schema="app", naming_convention={"pk": "pk_%(table_name)s"})
    Table("items", metadata, Column("id", BigInteger, primary_key=True), Column("name", Text))
    return metadata


def declared(case: str, *, changed: bool) -> MetaData:
    """The metadata of a case, before or after the change."""
    metadata = new_metadata()
    CASES[case](metadata.tables["app.items"], changed)
    return metadata


def tables_only(metadata: MetaData) -> MetaData:
    """Its tables, without what is declared beside them."""
    bare = MetaData(schema=metadata.schema, naming_convention=metadata.naming_convention)
    for table in metadata.tables.values():
        table.to_metadata(bare)
    return bare


def _sql(*declarations: str | tuple[str, ...]) -> Callable[[Table, bool], None]:
    """Declarations in which ``<<A|B>>`` is A, or B when changed."""

    def declare_all(items: Table, changed: bool) -> None:
        for each in declarations:
            statements = (each,) if isinstance(each, str) else each
            declare(items.metadata, tuple(_chosen(sql, changed=changed) for sql in statements))

    return declare_all


def _chosen(sql: str, *, changed: bool) -> str:
    while "<<" in sql:
        first, _, rest = sql.partition("<<")
        choice, _, last = rest.partition(">>")
        sql = first + choice.split("|")[changed] + last
    return sql


def _retyped(items: Table, changed: bool) -> None:
    items.append_column(Column("size", BigInteger if changed else Integer))
    declare(items.metadata, "CREATE VIEW app.sizes AS SELECT id, size FROM app.items")


CASES: dict[str, Callable[[Table, bool], None]] = {
    "function, other body": _sql(ADD.format("<<1|2>>")),
    "function, other result, with a view on it": _sql(
        "CREATE FUNCTION app.counted() RETURNS <<integer|bigint>> LANGUAGE sql AS $$SELECT 1::<<integer|bigint>>$$",
        "CREATE VIEW app.counts AS SELECT app.counted() AS n",
    ),
    "function, body of odd characters": _sql(
        f"CREATE FUNCTION app.odd(n integer) RETURNS text LANGUAGE sql AS $body${TRICKY.format('<<1|2>>')}$body$",
    ),
    "procedure": _sql("CREATE PROCEDURE app.clean() LANGUAGE sql AS $$DELETE FROM app.items WHERE id < <<1|2>>$$"),
    "view, other condition": _sql("CREATE VIEW app.few AS SELECT id, name FROM app.items WHERE id > <<1|2>>"),
    "view, column in the middle, with a view on it": _sql(
        "CREATE VIEW app.few AS SELECT id, <<|1 AS n, >>name FROM app.items",
        "CREATE VIEW app.few_names AS SELECT name FROM app.few",  # also the order of the names: one sorts by them
    ),
    "column type below a view": _retyped,
    "materialized view, other columns": _sql(
        "CREATE MATERIALIZED VIEW app.kept AS SELECT id<<|, name>> FROM app.items"
    ),
    "trigger, other events": _sql(
        TOUCH,
        "CREATE TRIGGER touch BEFORE <<UPDATE|INSERT OR UPDATE>> ON app.items"
        " FOR EACH ROW EXECUTE FUNCTION app.touch()",
    ),
    "policy": _sql("CREATE POLICY own ON app.items FOR SELECT USING (id > <<1|2>>)"),
    "row-level security": _sql(
        "ALTER TABLE app.items ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY own ON app.items FOR SELECT USING (id > <<1|2>>)",
    ),
    "comment on a function": _sql((ADD.format("1"), "COMMENT ON FUNCTION app.added IS 'version <<1|2>>'")),
    "aggregate": _sql(
        "CREATE AGGREGATE app.total(bigint) (SFUNC = int8pl, STYPE = bigint, INITCOND = '<<0|1>>')",
    ),
    "statistics": _sql("CREATE STATISTICS app.st (ndistinct<<|, dependencies>>) ON id, name FROM app.items"),
}


def large(tables: int, views: int, functions: int) -> MetaData:
    """Many of each; tables of eight columns that refer to each other, views of SQLAlchemy's on tables."""
    metadata = MetaData(schema="app", naming_convention={"pk": "pk_%(table_name)s", "fk": "fk_%(table_name)s"})
    made = [_large_table(metadata, number) for number in range(tables)]
    for number in range(views):
        table = made[number % tables]
        query = select(table.c.id, table.c.name, table.c.a).where(table.c.a > number)
        CreateView(query, f"v_{number}", metadata=metadata, schema="app")
    for number in range(functions):
        body = f"SELECT max(a) + {number} FROM app.t_{number % tables} WHERE id > n"
        declare(
            metadata,
            f"CREATE FUNCTION app.f_{number}(n bigint) RETURNS bigint LANGUAGE sql STABLE BEGIN ATOMIC {body}; END",
        )
    return metadata


def _large_table(metadata: MetaData, number: int) -> Table:
    reference = [ForeignKey(f"app.t_{number - 1}.id")] if number else []
    table = Table(
        f"t_{number}",
        metadata,
        Column("id", BigInteger, primary_key=True),
        Column("name", Text, nullable=False, server_default="new"),
        *(Column(name, BigInteger) for name in "abcde"),
        Column("other_id", BigInteger, *reference),
        CheckConstraint("a > 0", name=f"ck_t_{number}_a"),
    )
    Index(f"ix_t_{number}_name", table.c.name)
    return table
