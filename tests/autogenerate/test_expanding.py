"""A column is changed in revisions that autogenerate writes, while both columns are written."""

from __future__ import annotations

import pytest
from sqlalchemy import BigInteger, Column, Computed, Index, MetaData, Numeric, Table, Text, text

from arc_halo.autogenerate import renamed_from
from arc_halo.autogenerate.expanding import declare_expansion, is_filled, standing_expansions
from arc_halo.autogenerate.expanding.backfilling import backfill
from arc_halo.autogenerate.expanding.declaring import Expansion
from arc_halo.errors import ConfigurationError
from arc_halo.testing.migrations import assert_round_trip, assert_same

FORWARD, BACKWARD = "(price * 100)::bigint", "price_cents / 100.0"


def shop(*columns: Column, expands: bool = False, name: str = "items", **options) -> MetaData:
    """``app.items`` with its old price, or with the columns given."""
    metadata = MetaData(schema="app", naming_convention={"pk": "pk_%(table_name)s"})
    table = Table(name, metadata, Column("id", BigInteger, primary_key=True), *columns, **options)
    if expands:
        declare_expansion(table, "price", "price_cents", forward=FORWARD, backward=BACKWARD)
    return metadata


def price() -> Column:
    return Column("price", Numeric(12, 4), nullable=False, server_default="0", comment="in euros")


def cents(**options) -> Column:
    return Column("price_cents", BigInteger, **options)


def before() -> MetaData:
    return shop(price())


def expanded(**options) -> MetaData:
    return shop(price(), cents(**options), expands=True)


def after(name: str = "items", **options) -> MetaData:
    return shop(cents(**options), name=name)


@pytest.fixture
def expanding(project):
    """At the revision that expands, with two rows of before it."""
    project.migrate(before())
    project.execute("INSERT INTO app.items VALUES (1, 1.005), (2, 2.5)")
    project.migrate(expanded())
    return project


def rows(project):
    with project.engine.connect() as connection:
        return [
            tuple(row)
            for row in connection.execute(text("SELECT id, price::text, price_cents FROM app.items ORDER BY 1"))
        ]


@pytest.mark.parametrize("pair", [(before, expanded), (expanded, after)], ids=["expand", "contract"])
def test_the_way_there_and_back(project, pair):
    first, second = pair
    assert_round_trip(project, first(), second())


def test_an_expansion_is_found_in_the_database(expanding):
    with expanding.engine.connect() as connection:
        found = standing_expansions(connection)
        assert found == [Expansion("app", "items", "price", "price_cents", FORWARD, BACKWARD)]
        assert standing_expansions(connection, "neighbour") == []
        assert not is_filled(connection, found[0])


# What a statement leaves of (price, price_cents) in the row that it writes.
WRITES = {
    "old inserts": ("INSERT INTO app.items (id, price) VALUES (9, 3.5)", ("3.5000", 350)),
    "new inserts": ("INSERT INTO app.items (id, price_cents) VALUES (9, 350)", ("3.5000", 350)),
    "neither inserts": ("INSERT INTO app.items (id) VALUES (9)", ("0.0000", 0)),
    "both insert alike": ("INSERT INTO app.items VALUES (9, 1.0049, 100)", ("1.0049", 100)),
    "both insert unlike": ("INSERT INTO app.items VALUES (9, 7, 350)", ("3.5000", 350)),
    "old updates what is not filled": ("UPDATE app.items SET price = 3.5, id = 9 WHERE id = 1", ("3.5000", 350)),
    "new updates what is not filled": ("UPDATE app.items SET price_cents = 350, id = 9 WHERE id = 1", ("3.5000", 350)),
    "another column of what is not filled": ("UPDATE app.items SET id = 9 WHERE id = 1", ("1.0050", 101)),
    "both update alike": (
        "UPDATE app.items SET price = 4.0049, price_cents = 400, id = 9 WHERE id = 1",
        ("4.0049", 400),
    ),
    "both update unlike": ("UPDATE app.items SET price = 7, price_cents = 350, id = 9 WHERE id = 1", ("3.5000", 350)),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_writer_of_one_column_fills_the_other(expanding, write):
    statement, wanted = WRITES[write]
    expanding.execute(statement)
    assert rows(expanding)[-1][1:] == wanted


def test_what_is_filled_is_changed_by_either(expanding):
    backfill(expanding.engine, one(expanding))
    expanding.execute(
        "UPDATE app.items SET price = 8.004 WHERE id = 1", "UPDATE app.items SET price_cents = 9 WHERE id = 2"
    )
    assert rows(expanding) == [(1, "8.0040", 800), (2, "0.0900", 9)]
    expanding.execute("UPDATE app.items SET price = price")
    assert rows(expanding) == [(1, "8.0040", 800), (2, "0.0900", 9)]


def one(project) -> Expansion:
    with project.engine.connect() as connection:
        (found,) = standing_expansions(connection)
    return found


def test_a_backfill_leaves_the_old_column_as_it_is(expanding):
    done = backfill(expanding.engine, one(expanding))
    assert done.rows == 2
    assert rows(expanding) == [(1, "1.0050", 101), (2, "2.5000", 250)]
    with expanding.engine.connect() as connection:
        assert is_filled(connection, one(expanding))


def test_the_contract_refuses_until_every_row_is_filled(expanding):
    text = expanding.revise(after())
    assert "# DATA LOSS: column app.items.price, with its values" in text
    with pytest.raises(Exception, match=r"app\.items has rows whose price_cents is not filled yet"):
        expanding.upgrade()
    backfill(expanding.engine, one_of(expanded()))
    expanding.upgrade()
    expanding.execute("INSERT INTO app.items VALUES (3, 350)")


def with_another(metadata: MetaData, name: str) -> MetaData:
    other = Table(name, metadata, Column("id", BigInteger))
    return metadata if name == "other" else renamed_from(other, "other").metadata


@pytest.mark.parametrize("what", ["the table", "another"])
def test_it_refuses_in_a_revision_that_renames(project, what):
    project.migrate(with_another(before(), "other"))
    project.execute("INSERT INTO app.items VALUES (1, 1.005), (2, 2.5)")
    project.migrate(with_another(expanded(), "other"))
    stood = project.things()
    if what == "the table":
        contracted = with_another(after(name="things"), "other")
        renamed_from(contracted.tables["app.things"], "items")
    else:
        contracted = with_another(after(), "others")
    project.revise(contracted)
    with pytest.raises(Exception, match=r"app\.items has rows whose price_cents is not filled yet"):
        project.upgrade()
    backfill(project.engine, one(project))
    project.upgrade()
    assert_same(project.things(), project.built())
    project.downgrade()
    assert_same(project.things(), stood)
    assert rows(project) == [(1, "1.0100", 101), (2, "2.5000", 250)]


def one_of(metadata: MetaData) -> Expansion:
    return metadata.info["arc_halo.autogenerate.expanding"][0]


def test_the_downgrade_of_the_contract_fills_the_old_column_again(expanding):
    backfill(expanding.engine, one(expanding))
    stood = expanding.things()
    expanding.migrate(after())
    expanding.execute("INSERT INTO app.items VALUES (3, 350)")
    expanding.downgrade()
    assert_same(expanding.things(), stood)
    assert rows(expanding) == [(1, "1.0100", 101), (2, "2.5000", 250), (3, "3.5000", 350)]
    expanding.execute("INSERT INTO app.items (id, price) VALUES (4, 1)")
    assert rows(expanding)[-1] == (4, "1.0000", 100)


def test_indexes_of_the_old_column_come_back_when_it_is_filled(project):
    def indexed(*columns, expands):
        metadata = shop(*columns, expands=expands)
        table = metadata.tables["app.items"]
        Index("ix_items_price", table.c.price, unique=True)
        return metadata

    project.migrate(indexed(price(), expands=False))
    project.execute("INSERT INTO app.items VALUES (1, 1), (2, 2)")
    project.migrate(indexed(price(), cents(), expands=True))
    backfill(project.engine, one(project))
    stood = project.things()
    project.migrate(after())
    project.downgrade()
    assert_same(project.things(), stood)
    assert rows(project) == [(1, "1.0000", 100), (2, "2.0000", 200)]


def test_not_null_is_proved_beside_writers(expanding):
    early = expanding.revise(expanded(nullable=False))
    with pytest.raises(Exception, match=r"app\.items has rows whose price_cents is null"):
        expanding.upgrade()
    backfill(expanding.engine, one(expanding))
    expanding.upgrade()
    assert early.index("NOT VALID") < early.index("autocommit_block") < early.index("VALIDATE CONSTRAINT")
    assert early.index("VALIDATE CONSTRAINT") < early.index("alter_column")
    assert_same(expanding.things(), expanding.built())
    expanding.downgrade()
    expanding.upgrade()
    assert_same(expanding.things(), expanding.built())


def test_not_null_and_contract_in_one_revision(expanding):
    backfill(expanding.engine, one(expanding))
    expanding.migrate(after(nullable=False))
    assert_same(expanding.things(), expanding.built())
    expanding.downgrade()
    assert rows(expanding)[0] == (1, "1.0100", 101)


def test_a_new_column_that_may_not_be_null_is_refused(project):
    project.migrate(before())
    with pytest.raises(ConfigurationError, match="declare it nullable until"):
        project.revise(expanded(nullable=False))


def test_an_expansion_is_given_up(expanding):
    stood = expanding.things()
    text = expanding.migrate(before())
    assert "DATA LOSS: column app.items.price_cents" in text
    assert "not filled yet" not in text
    assert rows_of(expanding, "SELECT price::text FROM app.items ORDER BY id") == [("1.0050",), ("2.5000",)]
    expanding.downgrade()
    assert_same(expanding.things(), stood)


def rows_of(project, query):
    with project.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def test_a_name_is_split_and_put_together(project):
    def people(*names):
        metadata = MetaData(schema="app", naming_convention={"pk": "pk_%(table_name)s"})
        columns = [Column(name, Text) for name in names]
        table = Table("people", metadata, Column("id", BigInteger, primary_key=True), *columns)
        if len(names) == 3:
            whole = "concat_ws(' ', first, last)"
            declare_expansion(table, "name", "first", forward="split_part(name, ' ', 1)", backward=whole)
            declare_expansion(table, "name", "last", forward="split_part(name, ' ', 2)", backward=whole)
        return metadata

    project.migrate(people("name"))
    project.execute("INSERT INTO app.people VALUES (1, 'Ada Byron')")
    project.migrate(people("name", "first", "last"))
    with project.engine.connect() as connection:
        both = standing_expansions(connection)
    for each in both:
        backfill(project.engine, each)
    project.execute(
        "INSERT INTO app.people (id, name) VALUES (2, 'Grace Hopper')",
        "INSERT INTO app.people (id, first, last) VALUES (3, 'Mary', 'Somerville')",
        "UPDATE app.people SET last = 'Lovelace' WHERE id = 1",
        "UPDATE app.people SET name = 'Grace Murray' WHERE id = 2",
    )
    assert rows_of(project, "SELECT name, first, last FROM app.people ORDER BY id") == [
        ("Ada Lovelace", "Ada", "Lovelace"),
        ("Grace Murray", "Grace", "Murray"),
        ("Mary Somerville", "Mary", "Somerville"),
    ]
    project.migrate(people("first", "last"))
    project.downgrade()
    assert rows_of(project, "SELECT name FROM app.people WHERE id = 3") == [("Mary Somerville",)]


ODD = "\"new\" || ': 100%\\' || 'ü'"


def test_names_and_texts_of_odd_characters(project):
    def odd(*columns, expands=False):
        metadata = MetaData(schema="app", naming_convention={"pk": "pk_%(table_name)s"})
        table = Table("Odd table", metadata, Column("key:id", BigInteger, primary_key=True), *columns)
        if expands:
            declare_expansion(table, "new", "old % :x", forward=ODD, backward='left("old % :x", 1)')
        return metadata

    old, new = Column("new", Text), Column("old % :x", Text)
    assert_round_trip(project, odd(old._copy()), odd(old._copy(), new._copy(), expands=True))
    project.execute("INSERT INTO app.\"Odd table\" VALUES (1, 'a'), (2, 'b')")
    project.upgrade("0002")
    assert backfill(project.engine, one(project), batch=1).rows == 2
    project.execute('UPDATE app."Odd table" SET "new" = \'c\' WHERE "key:id" = 2')
    assert rows_of(project, 'SELECT * FROM app."Odd table" ORDER BY 1') == [
        (1, "a", "a: 100%\\ü"),
        (2, "c", "c: 100%\\ü"),
    ]


def test_json_has_no_equality_and_is_expanded(project):
    project.execute(
        "CREATE TABLE app.documents (id integer PRIMARY KEY, body json)",
        "INSERT INTO app.documents VALUES (1, '{\"a\": 1}')",
        "ALTER TABLE app.documents ADD COLUMN content jsonb",
    )
    expansion = Expansion("app", "documents", "body", "content", "body::jsonb", "content::json")
    for statements in expansion.sources:
        project.execute(*statements)
    backfill(project.engine, expansion)
    project.execute(
        "UPDATE app.documents SET body = '[1]'", "INSERT INTO app.documents (id, content) VALUES (2, '[2]')"
    )
    assert rows_of(project, "SELECT body::text, content::text FROM app.documents ORDER BY id") == [
        ("[1]", "[1]"),
        ("[2]", "[2]"),
    ]


REFUSED = {
    "no such column": ((price(),), "needs two columns"),
    "a default": ((price(), cents(server_default="1")), "has a default"),
    "generated": ((Column("price", Numeric, Computed("id", persisted=True)), cents()), "is generated"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_expanded(what):
    columns, message = REFUSED[what]
    with pytest.raises(ConfigurationError, match=message):
        shop(*(each._copy() for each in columns), expands=True)


def test_what_is_no_table_and_what_has_too_long_a_name():
    table = Table("items", MetaData(), Column("id", BigInteger))
    with pytest.raises(ConfigurationError, match="no table of a metadata with a schema"):
        declare_expansion(table, "a", "b", forward="a", backward="b")
    table = Table("t" * 50, MetaData(schema="app"), Column("a", BigInteger), Column("b" * 20, BigInteger))
    with pytest.raises(ConfigurationError, match="too long"):
        declare_expansion(table, "a", "b" * 20, forward="a", backward="1")
