"""A backfill fills every row once, beside writers, and goes on where it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from arc_halo.autogenerate.expanding import backfilling
from arc_halo.autogenerate.expanding.backfilling import backfill, is_filled
from arc_halo.autogenerate.expanding.declaring import Expansion
from arc_halo.database.migrate import migration_engine
from arc_halo.database.url import libpq_string
from arc_halo.errors import ConfigurationError, LockTimeout, PermissionDenied

EXPANSION = Expansion("app", "items", "price", "price_cents", "(price * 100)::bigint", "price_cents / 100.0")
COUNTING = """
CREATE FUNCTION app.count_updates() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN NEW.updates := OLD.updates + 1; RETURN NEW; END';
CREATE TRIGGER count_updates BEFORE UPDATE ON app.items FOR EACH ROW EXECUTE FUNCTION app.count_updates()
"""


class Table:
    """``app.items`` with a key as asked for, expanded when its rows are there."""

    def __init__(self, project, columns: str, suffix: str = "") -> None:
        self.engine = project.engine
        self.project = project
        project.execute(f"CREATE TABLE app.items ({columns}, price numeric){suffix}")

    def fill(self, values: str) -> None:
        self.project.execute(f"INSERT INTO app.items {values}")

    def expand(self) -> None:
        self.project.execute("ALTER TABLE app.items ADD price_cents bigint")
        for statements in EXPANSION.sources:
            self.project.execute(*statements)

    def ask(self, query: str):
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    @property
    def agrees(self) -> bool:
        ((differing,),) = self.ask("SELECT count(*) FROM app.items WHERE price_cents IS DISTINCT FROM (price * 100)")
        return differing == 0


@pytest.fixture
def items(project):
    """Five hundred rows by a number."""
    table = Table(project, "id bigint PRIMARY KEY")
    table.fill("SELECT n, n FROM generate_series(1, 500) AS n")
    table.expand()
    return table


KEYS = {
    "uuid": ("id uuid PRIMARY KEY", "gen_random_uuid()"),
    "composite": ("a text, b integer, PRIMARY KEY (b, a)", "'k' || n % 7, n / 7"),
    "another collation": ('a text COLLATE "C", b text, PRIMARY KEY (a, b)', "chr(65 + n % 50), 'é' || n"),
    "time without end": (
        "a timestamptz PRIMARY KEY",
        "CASE n WHEN 1 THEN timestamptz 'infinity' WHEN 2 THEN '-infinity' ELSE now() + n * interval '1 us' END",
    ),
    "floating point": ("a float8 PRIMARY KEY", "CASE n WHEN 1 THEN 'NaN' ELSE n / 7.0 END"),
    "padded text": ("a char(9) PRIMARY KEY", "n::text"),
    "bytes": ("a bytea PRIMARY KEY", "decode(lpad(to_hex(n), 8, '0'), 'hex')"),
    "array of an enum": ("a app.colour[] PRIMARY KEY", "array_fill('red'::app.colour, ARRAY[n])"),
    "one of several unique keys": ("a integer UNIQUE, b integer NOT NULL UNIQUE", "NULLIF(n, 5), n"),
    "descending": ("a integer NOT NULL, b integer NOT NULL", "n % 5, n"),
    "a constraint that carries more": ("a integer, b text, PRIMARY KEY (a) INCLUDE (b)", "n, 'b'"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_any_type(project, kind):
    columns, values = KEYS[kind]
    project.execute("CREATE TYPE app.colour AS ENUM ('red')")
    table = Table(project, f"{columns}, updates integer DEFAULT 0")
    if kind == "descending":
        project.execute("CREATE UNIQUE INDEX items_key ON app.items (a DESC, b)")
    table.fill(f"SELECT {values}, 0, n FROM generate_series(1, 100) AS n")
    table.expand()
    project.execute(*COUNTING.split(";\n"))
    done = backfill(table.engine, EXPANSION, batch=7, triggers="fire")
    assert (done.rows, done.batches) == (100, 15)
    assert table.agrees
    assert table.ask("SELECT DISTINCT updates FROM app.items") == [(1,)]


@pytest.fixture
def numbered(project):
    """A table with a key of text and number, whose rows count how often they are updated."""
    table = Table(project, "a text, b numeric, updates integer DEFAULT 0, PRIMARY KEY (a, b)")
    table.expand()
    project.execute(*COUNTING.split(";\n"))
    return table


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.sets(
        st.tuples(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=3),
            st.decimals(allow_infinity=False, allow_nan=False, places=2, min_value=-9, max_value=9),
        ),
        max_size=20,
    ),
    batch=st.integers(1, 7),
)
def test_every_row_is_filled_exactly_once(numbered, keys, batch):
    with numbered.engine.begin() as connection:
        connection.execute(text("TRUNCATE app.items"))
        connection.execute(text("SET LOCAL session_replication_role TO replica"))  # as rows of before the trigger
        for a, b in keys:
            row = {"a": a, "b": b}
            connection.execute(text("INSERT INTO app.items (a, b, price) VALUES (:a, :b, 1)"), row)
    done = backfill(numbered.engine, EXPANSION, batch=batch, triggers="fire")
    assert done.rows == len(keys)
    assert done.batches == len(keys) // batch + 1
    assert numbered.ask("SELECT count(*) FROM app.items WHERE updates = 1 AND price_cents = 100") == [(len(keys),)]
    assert backfill(numbered.engine, EXPANSION, batch=batch, triggers="fire").rows == 0


def test_nulls_want_no_value_and_a_value_may_be_made_of_them(project):
    table = Table(project, "id bigint PRIMARY KEY")
    table.fill("VALUES (1, NULL), (2, 2)")
    table.expand()
    before = table.ask("SELECT xmin FROM app.items WHERE id = 1")
    assert backfill(table.engine, EXPANSION).rows == 1
    assert table.ask("SELECT xmin FROM app.items WHERE id = 1") == before
    with table.engine.connect() as connection:
        assert is_filled(connection, EXPANSION)


def test_partitions_are_walked_through_their_parent(project):
    table = Table(project, "id bigint, at date, PRIMARY KEY (at, id)", " PARTITION BY RANGE (at)")
    for year in (2020, 2021):
        project.execute(
            f"CREATE TABLE app.items_{year} PARTITION OF app.items FOR VALUES FROM ('{year}-1-1') TO ('{year + 1}-1-1')"
        )
    table.fill("SELECT n, date '2020-06-01' + n, n FROM generate_series(1, 300) AS n")
    table.expand()
    assert backfill(table.engine, EXPANSION, batch=70).rows == 300
    assert table.agrees


def test_progress_is_told_and_ends_at_the_end(items):
    told = []
    done = backfill(items.engine, EXPANSION, batch=200, report=lambda *figures: told.append(figures))
    assert done.rows == 500
    assert [each[0] for each in told[:-1]] == [200, 400]
    assert told[-1][0] == told[-1][1]


def test_a_batch_is_a_transaction(items):
    backfill(items.engine, EXPANSION, batch=100)
    assert items.ask("SELECT count(DISTINCT xmin::text), min(price) FROM app.items") == [(5, 1)]


@contextmanager
def holding(table, statement):
    """Somebody who has done something, and has not ended it."""
    with psycopg.connect(libpq_string(table.engine.url)) as other:
        other.execute(statement)
        yield other


def test_rows_that_somebody_holds_are_waited_for(items, monkeypatch):
    with holding(items, "SELECT FROM app.items WHERE id IN (7, 250) FOR UPDATE") as other:
        waits = []

        def let_go(seconds):
            waits.append(seconds)
            other.rollback()

        monkeypatch.setattr(backfilling.time, "sleep", let_go)
        assert backfill(items.engine, EXPANSION, batch=100).rows == 500
    assert len([each for each in waits if each]) == 1
    assert items.agrees


def test_a_row_that_is_deleted_or_filled_meanwhile_is_no_matter(items, monkeypatch):
    with holding(items, "UPDATE app.items SET price = 8 WHERE id = 7; DELETE FROM app.items WHERE id = 8") as other:
        monkeypatch.setattr(backfilling.time, "sleep", lambda _: other.commit())
        assert backfill(items.engine, EXPANSION, batch=100).rows == 498
    assert items.ask("SELECT price_cents FROM app.items WHERE id = 7") == [(800,)]
    assert items.agrees


def test_who_holds_a_row_for_ever_is_told_of(items, monkeypatch):
    monkeypatch.setattr(backfilling, "_ATTEMPTS", 2)
    monkeypatch.setattr(backfilling, "_LOCK_TIMEOUT", "50ms")
    with (
        holding(items, "SELECT FROM app.items WHERE id = 7 FOR UPDATE"),
        pytest.raises(LockTimeout, match="run this again"),
    ):
        backfill(items.engine, EXPANSION, batch=100)
    assert items.ask("SELECT count(*) FROM app.items WHERE price_cents IS NOT NULL") == [(99,)]
    assert backfill(items.engine, EXPANSION).rows == 401


def test_holding_a_key_of_a_row_for_a_foreign_key_is_in_nobodys_way(items):
    with holding(items, "SELECT FROM app.items FOR KEY SHARE"):
        assert backfill(items.engine, EXPANSION).rows == 500


def test_triggers_of_others_are_fired_or_silenced_as_it_is_said(items):
    items.project.execute("ALTER TABLE app.items ADD updates integer DEFAULT 0", *COUNTING.split(";\n"))
    with pytest.raises(ConfigurationError, match=r"triggers of app\.items: count_updates\. Say whether"):
        backfill(items.engine, EXPANSION)
    items.project.execute("UPDATE app.items SET price = 1 WHERE id = 1")
    assert backfill(items.engine, EXPANSION, triggers="silence").rows == 499
    assert items.agrees
    assert items.ask("SELECT sum(updates) FROM app.items") == [(1,)]


@pytest.mark.parametrize(
    "trigger",
    [
        "CREATE TRIGGER other BEFORE UPDATE OF price ON app.items FOR EACH ROW EXECUTE FUNCTION app.count_updates()",
        "CREATE TRIGGER other BEFORE INSERT ON app.items FOR EACH ROW EXECUTE FUNCTION app.count_updates()",
        "ALTER TABLE app.items DISABLE TRIGGER count_updates",
    ],
)
def test_triggers_that_are_not_fired_are_no_matter(items, trigger):
    items.project.execute("ALTER TABLE app.items ADD updates integer DEFAULT 0", *COUNTING.split(";\n"))
    if not trigger.startswith("ALTER"):
        items.project.execute("DROP TRIGGER count_updates ON app.items")
    items.project.execute(trigger)
    assert backfill(items.engine, EXPANSION).rows == 500


def test_a_foreign_key_is_not_silenced(items):
    items.project.execute(
        "CREATE TABLE app.prices (cents bigint PRIMARY KEY)",
        "ALTER TABLE app.items ADD FOREIGN KEY (price_cents) REFERENCES app.prices",
    )
    with pytest.raises(ConfigurationError, match="part of a foreign key"):
        backfill(items.engine, EXPANSION, triggers="silence")


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DROP TRIGGER zz_expand_items_price_cents ON app.items", "run the revision that expands"),
        ("ALTER TABLE app.items DROP CONSTRAINT items_pkey", "no primary key and no other"),
    ],
)
def test_what_cannot_be_filled(items, statement, message):
    items.project.execute(statement)
    with pytest.raises(ConfigurationError, match=message):
        backfill(items.engine, EXPANSION)


@pytest.mark.parametrize("options", [{"batch": 0}, {"pause": -1}])
def test_figures_that_make_no_sense(items, options):
    with pytest.raises(ConfigurationError):
        backfill(items.engine, EXPANSION, **options)


def test_rows_that_a_policy_hides_are_an_error(items):
    role = f"{items.engine.url.database}_reader"
    items.project.execute(
        f"CREATE ROLE {role}",
        f"GRANT USAGE ON SCHEMA app TO {role}",
        f"GRANT SELECT, UPDATE ON app.items TO {role}",
        "ALTER TABLE app.items ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY even ON app.items TO {role} USING (id % 2 = 0)",
    )
    url = items.engine.url.update_query_dict({"options": f"-c role={role}"})
    try:
        with pytest.raises(PermissionDenied):
            backfill(migration_engine(url), EXPANSION)
    finally:
        items.project.execute(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_it_goes_on_where_it_was_killed(project):
    table = Table(project, "id bigint PRIMARY KEY")
    table.fill("SELECT n, n FROM generate_series(1, 5000) AS n")
    table.expand()
    url = project.engine.url.render_as_string(hide_password=False)
    words = [sys.executable, "-m", "arc_halo", "--url", url, "db", "backfill", "--batch", "50", "--pause", "0.05"]
    killed = subprocess.Popen(words, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    filled = "FROM app.items WHERE price_cents IS NOT NULL"
    try:
        while table.ask(f"SELECT count(*) {filled}") < [(300,)]:
            assert killed.poll() is None
            time.sleep(0.02)
        killed.send_signal(signal.SIGKILL)
    finally:
        killed.kill()
        killed.wait()
    while table.ask("SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"):
        time.sleep(0.02)
    before = table.ask(f"SELECT id, xmin::text {filled} ORDER BY id")
    assert 300 <= len(before) < 5000
    assert backfill(project.engine, EXPANSION).rows == 5000 - len(before)
    assert table.agrees
    assert table.ask(f"SELECT id, xmin::text {filled} AND id <= {before[-1][0]} ORDER BY id") == before
