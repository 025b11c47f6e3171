"""``arc-halo db backfill``."""

from __future__ import annotations

import psycopg
import pytest

from arc_halo.autogenerate.expanding import Expansion
from arc_halo.database.url import libpq_string
from tests.cli.command_line import CommandLine

EXPANSIONS = {
    "price": Expansion("shop", "items", "price", "cents", "(price * 100)::bigint", "cents / 100.0"),
    "name": Expansion("shop", "items", "name", "title", "upper(name)", "lower(title)"),
}


@pytest.fixture
def shop(database_url):
    """A database without anything of ours, and two columns to fill in it."""
    with psycopg.connect(libpq_string(database_url), autocommit=True) as connection:
        connection.execute("CREATE SCHEMA shop")
        connection.execute("CREATE TABLE shop.items (id bigint PRIMARY KEY, price numeric, name text)")
        connection.execute("INSERT INTO shop.items SELECT n, n, 'n' || n FROM generate_series(1, 1500) AS n")
        connection.execute("ALTER TABLE shop.items ADD cents bigint, ADD title text")
        for expansion in EXPANSIONS.values():
            for (statement,) in expansion.sources:
                connection.execute(statement.encode())
        yield connection


@pytest.fixture
def shopping(database_url):
    return CommandLine(database_url.render_as_string(hide_password=False))


def test_nothing_to_fill(arc_halo: CommandLine):
    assert arc_halo.says("db", "backfill").endswith(" has no column to fill\n")
    assert arc_halo.json("db", "backfill")["columns"] == []


def test_one_column_then_all(shopping, shop):
    assert shopping.says("db", "backfill", "shop.items.cents") == "shop.items.cents: filled 1,500 rows\n"
    assert shop.execute("SELECT count(*) FROM shop.items WHERE cents = price * 100").fetchone() == (1500,)
    said = shopping.json("db", "backfill", "--batch", "400", "--pause", "0")
    assert said["columns"] == [
        {"column": "shop.items.cents", "rows": 0, "is_filled": True},
        # The trigger of an expansion fills its column whatever else of a row is written.
        {"column": "shop.items.title", "rows": 0, "is_filled": True},
    ]


def test_a_check_fills_nothing(shopping, shop):
    assert shopping.run("db", "backfill", "--check", code=1).stdout.splitlines() == [
        "shop.items.cents: filled 0 rows; rows are left",
        "shop.items.title: filled 0 rows; rows are left",
    ]
    assert shop.execute("SELECT count(cents) + count(title) FROM shop.items").fetchone() == (0,)
    shopping.run("db", "backfill")
    assert shopping.json("db", "backfill", "--check")["columns"][0]["is_filled"]


def test_triggers_are_to_be_decided_on(shopping, shop):
    shop.execute("CREATE FUNCTION shop.other() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'")
    shop.execute("CREATE TRIGGER other BEFORE UPDATE ON shop.items FOR EACH ROW EXECUTE FUNCTION shop.other()")
    assert "other" in shopping.error("db", "backfill")
    assert shopping.json("db", "backfill", "--triggers", "silence")["columns"][0]["rows"] == 1500


@pytest.mark.usefixtures("shop")
def test_a_column_nobody_knows(shopping):
    said = shopping.error("db", "backfill", "shop.items.price")
    assert "those that are: shop.items.cents, shop.items.title" in said
