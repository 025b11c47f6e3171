"""Changes of what stands beside tables: views, functions, triggers, policies."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
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

from arc_halo.autogenerate import declare
from tests.autogenerate.table_cases import TOUCH, TOUCH_TRIGGER, partitioned


def column_in_the_middle_of_a_view(items: Table, *, changed: bool) -> None:
    items.append_column(Column("note", Text))
    columns = [items.c.id, items.c.note, items.c.name] if changed else [items.c.id, items.c.name]
    view = CreateView(select(*columns), "v_items", metadata=items.metadata, schema="app").table
    view.comment = "a view's comment: 100%"
    view.c.name.comment = "a column's"
    CreateView(select(view.c.id), "v_ids", metadata=items.metadata, schema="app")


def column_at_the_end_of_a_view(items: Table, *, changed: bool) -> None:
    """OR REPLACE works forward, and not backward."""
    columns = [items.c.id, items.c.name] if changed else [items.c.id]
    CreateView(select(*columns), "v_items", metadata=items.metadata, schema="app")


def condition_of_a_view(items: Table, *, changed: bool) -> None:
    """OR REPLACE works both ways; the views on it stay."""
    query = select(items.c.id, items.c.name).where(items.c.name.like("100%" if changed else "a:b%"))
    view = CreateView(query, "v_items", metadata=items.metadata, schema="app").table
    CreateView(select(view.c.name), "v_names", metadata=items.metadata, schema="app")


def comment_of_a_view(items: Table, *, changed: bool) -> None:
    view = CreateView(select(items.c.id, items.c.name), "v_items", metadata=items.metadata, schema="app").table
    view.comment = None if changed else "gone later"
    view.c.id.comment = "it's new" if changed else "old"


def materialized(source: Table, name: str, *columns: Column[object]) -> Table:
    query = select(source.c.id, *columns)
    made = CreateView(query, name, metadata=source.metadata, schema="app", materialized=True)
    made.table.comment = "counted rarely"
    return made.table


def materialized_view(items: Table, *, changed: bool) -> None:
    """With an index, on a view, and with a view on it."""
    source = CreateView(select(items.c.id, items.c.name), "v_items", metadata=items.metadata, schema="app").table
    view = materialized(source, "mv_items", *([source.c.name] if changed else []))
    Index("ix_mv_items_id", view.c.id, unique=True)
    CreateView(select(view.c.id), "v_of_mv", metadata=items.metadata, schema="app")


def index_of_a_materialized_view(items: Table, *, changed: bool) -> None:
    view = materialized(items, "mv_items", items.c.name)
    Index("ix_mv_items_id", view.c.id, unique=True)
    if changed:
        Index("ix_mv_items_name", view.c.name)


def function(items: Table, *, changed: bool) -> None:
    body = f"SELECT count(*) + {int(changed)} FROM app.items WHERE name LIKE '100%'"
    declare(
        items.metadata,
        (
            f"CREATE FUNCTION app.counted() RETURNS bigint LANGUAGE sql STABLE BEGIN ATOMIC {body}; END",
            f"COMMENT ON FUNCTION app.counted() IS 'how many; version {int(changed)}'",
        ),
        "CREATE FUNCTION app.twice() RETURNS bigint LANGUAGE sql STABLE RETURN 2 * app.counted()",
    )
    CreateView(select(literal_column("app.twice()").label("twice")), "v_twice", metadata=items.metadata, schema="app")


def signature(items: Table, *, changed: bool) -> None:
    """Other result type: dropped and made again, with the default, the CHECK and the view that call it."""
    kind = "bigint" if changed else "integer"
    declare(items.metadata, f"CREATE FUNCTION app.start() RETURNS {kind} LANGUAGE sql IMMUTABLE RETURN 1::{kind}")
    items.append_column(Column("size", BigInteger, server_default=text("app.start()")))
    items.append_constraint(CheckConstraint("size >= app.start()", name="ck_items_size"))
    CreateView(select(literal_column("app.start()").label("start")), "v_start", metadata=items.metadata, schema="app")


def signature_used_by_what_goes(items: Table, *, changed: bool) -> None:
    """By a table and a column that are dropped in the same revision, and through a function that is."""
    kind = "bigint" if changed else "integer"
    declare(items.metadata, f"CREATE FUNCTION app.start() RETURNS {kind} LANGUAGE sql IMMUTABLE RETURN 1::{kind}")
    items.append_column(Column("first", BigInteger, server_default=text("app.start()")))
    CreateView(select(items.c.first), "v_first", metadata=items.metadata, schema="app")
    if not changed:
        declare(items.metadata, "CREATE FUNCTION app.next() RETURNS bigint LANGUAGE sql IMMUTABLE RETURN app.start()")
        items.append_column(Column("size", BigInteger, server_default=text("app.next()"), comment="with a\ttab"))
        Table(
            "counts",
            items.metadata,
            Column("id", BigInteger, primary_key=True, server_default=text("app.start()")),
            Column("next", BigInteger, Computed("(id + app.next())", persisted=True)),
        )


def function_called_by_a_string(items: Table, *, changed: bool) -> None:
    """PostgreSQL does not know who calls it, and calls it where a generated column is added."""
    kind, last = ("bigint", "") if changed else ("integer", "::integer")
    declare(
        items.metadata,
        f"CREATE FUNCTION app.a(n {kind}) RETURNS bigint LANGUAGE sql IMMUTABLE RETURN n",
        f"CREATE FUNCTION app.b() RETURNS bigint LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN app.a(1{last}); END'",
    )
    number = "app.b() + 1" if changed else "app.b()"
    items.append_column(Column("size", BigInteger, Computed(number, persisted=True)))


def default_by_a_new_function(items: Table, *, changed: bool) -> None:
    name = "app.second()" if changed else "app.first()"
    declare(items.metadata, f"CREATE FUNCTION {name} RETURNS bigint LANGUAGE sql IMMUTABLE RETURN 1")
    items.append_column(Column("size", BigInteger, server_default=text(name)))


def procedure(items: Table, *, changed: bool) -> None:
    body = f"DELETE FROM app.items WHERE id < before + {int(changed)}"
    declare(
        items.metadata,
        (
            f"CREATE PROCEDURE app.clean(before bigint) LANGUAGE sql AS $$ {body} $$",
            "COMMENT ON PROCEDURE app.clean(bigint) IS 'deletes'",
        ),
    )


def trigger_on_a_partitioned_table(items: Table, *, changed: bool) -> None:
    partitioned(items.metadata)
    declare(
        items.metadata,
        TOUCH.format(" again" if changed else ""),
        (
            TOUCH_TRIGGER.format("INSERT OR UPDATE" if changed else "UPDATE", "events"),
            "COMMENT ON TRIGGER touch ON app.events IS 'it touches'",
        ),
    )


def trigger_of_a_partition(items: Table, *, changed: bool) -> None:
    """Its own, beside the ones that every partition has of the table."""
    partitioned(items.metadata)
    declare(
        items.metadata,
        TOUCH,
        TOUCH_TRIGGER.format("UPDATE", "events"),
        f"CREATE TRIGGER counted AFTER {'INSERT' if changed else 'DELETE'} ON app.events_ab"
        " FOR EACH STATEMENT EXECUTE FUNCTION app.touch()",
    )


def policy(items: Table, *, changed: bool) -> None:
    setting = "'app.name', true" if changed else "'app.name'"
    declare(
        items.metadata,
        ("ALTER TABLE app.items ENABLE ROW LEVEL SECURITY", "ALTER TABLE app.items FORCE ROW LEVEL SECURITY"),
        (
            f"CREATE POLICY own ON app.items FOR SELECT USING (name = current_setting({setting}))",
            "COMMENT ON POLICY own ON app.items IS 'own rows'",
        ),
    )


def row_level_security(items: Table, *, changed: bool) -> None:
    enable = "ALTER TABLE app.items ENABLE ROW LEVEL SECURITY"
    declare(items.metadata, (enable, "ALTER TABLE app.items FORCE ROW LEVEL SECURITY") if changed else enable)


def table_that_becomes_a_view(items: Table, *, changed: bool) -> None:
    """One as SQLAlchemy declares it, and one that needs no table and could be made before them."""
    if changed:
        CreateView(select(items.c.id), "ids", metadata=items.metadata, schema="app")
        declare(items.metadata, "CREATE VIEW app.ones AS SELECT 1 AS id")
    else:
        for name in ("ids", "ones"):
            table = Table(name, items.metadata, Column("id", BigInteger, primary_key=True))
            Index(f"ix_{name}_id", table.c.id)


ADDING = (
    "CREATE FUNCTION app.add_{0}(bigint, bigint) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE"
    " RETURN $1 + {0} * $2"
)


def aggregate(items: Table, *, changed: bool) -> None:
    """With a view that uses it, which goes with it and comes back."""
    factor = 2 if changed else 1
    sfunc = ADDING.format(factor)
    parts = f"SFUNC = app.add_{factor}, STYPE = bigint, INITCOND = '0', PARALLEL = safe"
    made = f"CREATE AGGREGATE app.total(bigint) ({parts})"
    said = "COMMENT ON AGGREGATE app.total(bigint) IS 'it''s a sum'"
    declare(items.metadata, sfunc, (made, said))
    query = select(literal_column("app.total(id)").label("total")).select_from(items)
    CreateView(query, "v_total", metadata=items.metadata, schema="app")


def aggregate_without_arguments(items: Table, *, changed: bool) -> None:
    parts = f"SFUNC = pg_catalog.int8inc, STYPE = bigint, INITCOND = {int(changed)}"
    made = f"CREATE AGGREGATE app.counted(*) ({parts})"
    declare(items.metadata, (made, "COMMENT ON AGGREGATE app.counted(*) IS 'how many'"))


def statistics_object(items: Table, *, changed: bool) -> None:
    items.append_column(Column("length", BigInteger))
    kinds = "ndistinct, dependencies" if changed else "ndistinct"
    made = [f"CREATE STATISTICS app.st_items ({kinds}) ON name, length FROM app.items"]
    if changed:
        made.append("ALTER STATISTICS app.st_items SET STATISTICS 500")
    declare(items.metadata, tuple(made))


def disabled_trigger(items: Table, *, changed: bool) -> None:
    state = ["ALTER TABLE app.items DISABLE TRIGGER touch"] if changed else []
    declare(items.metadata, TOUCH, (TOUCH_TRIGGER.format("UPDATE", "items"), *state))


def constraint_trigger(items: Table, *, changed: bool) -> None:
    when = "INITIALLY DEFERRED" if changed else "INITIALLY IMMEDIATE"
    trigger = (
        f"CREATE CONSTRAINT TRIGGER later AFTER INSERT ON app.items DEFERRABLE {when} "
        "FOR EACH ROW EXECUTE FUNCTION app.touch()"
    )
    declare(items.metadata, TOUCH, trigger)


def unpopulated_view(items: Table, *, changed: bool) -> None:
    """Data is not compared: whoever refreshes it later has changed nothing of the schema."""
    columns = "id, name" if changed else "id"
    declare(items.metadata, f"CREATE MATERIALIZED VIEW app.mv_later AS SELECT {columns} FROM app.items WITH NO DATA")
