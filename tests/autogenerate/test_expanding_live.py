"""From one column to another while both versions of an application write, and nobody has to wait."""

from __future__ import annotations

import random
import threading
import time
from contextlib import ExitStack, contextmanager

import psycopg
import pytest
from sqlalchemy import BigInteger, Column, MetaData, Numeric, Table, text

from arc_halo.autogenerate.expanding import backfill, declare_expansion, standing_expansions
from arc_halo.autogenerate.linting import Limits, lint, temporary_database
from arc_halo.database.migrate import migration_engine
from arc_halo.database.url import libpq_string
from arc_halo.testing.migrations import assert_same

ROWS = 6000
WRITERS = 4
"""Each has rows of its own, those whose id leaves its number when divided: what it wrote last must be there."""


def before() -> MetaData:
    return shop(Column("price", Numeric(12, 2), nullable=False, server_default="0"))


def expanded(**options) -> MetaData:
    old = Column("price", Numeric(12, 2), nullable=False, server_default="0")
    metadata = shop(old, Column("price_cents", BigInteger, **options))
    declare_expansion(
        metadata.tables["app.items"],
        "price",
        "price_cents",
        forward="(price * 100)::bigint",
        backward="price_cents / 100.0",
    )
    return metadata


def after() -> MetaData:
    return shop(Column("price_cents", BigInteger, nullable=False))


def shop(*columns: Column) -> MetaData:
    metadata = MetaData(schema="app", naming_convention={"pk": "pk_%(table_name)s"})
    Table("items", metadata, Column("id", BigInteger, primary_key=True), *columns)
    return metadata


@pytest.fixture
def filled(project):
    """The former table, large for the linter."""
    project.migrate(before())
    project.execute(f"INSERT INTO app.items SELECT n, n / 100.0 FROM generate_series(1, {ROWS}) AS n")
    return project


class Writer(threading.Thread):
    """A client of one version of the application, which fails if it has to wait for a lock for two seconds."""

    def __init__(self, url, column: str, number: int, patience: str) -> None:
        super().__init__()
        self.patience = patience
        self.url, self.column, self.number = libpq_string(url), column, number
        self.factor = 1 if column == "price_cents" else 100
        self.stopped = threading.Event()
        self.failure: Exception | None = None
        self.wrote = 0
        self.values: dict[int, int | None] = {}  # cents of what it wrote last; None is deleted
        self.random = random.Random(number)
        self.next_id = ROWS + number + WRITERS - ROWS % WRITERS

    def run(self) -> None:
        try:
            with psycopg.connect(self.url) as connection:
                connection.execute(f"SET lock_timeout TO '{self.patience}'")
                connection.execute("SET deadlock_timeout TO '100ms'")
                connection.commit()
                while not self.stopped.is_set():
                    self.write(connection)
                    time.sleep(0.002)
        except psycopg.Error as error:
            self.failure = error

    def write(self, connection: psycopg.Connection) -> None:
        """Some rows of its own in one transaction, in any order."""
        done: dict[int, int | None] = {}
        with connection.transaction():
            for _ in range(self.random.randint(1, 4)):
                id_, cents = self.random.randrange(ROWS // WRITERS) * WRITERS + self.number, self.random.randrange(9999)
                kind = self.random.random()
                if kind < 0.2:
                    id_, self.next_id = self.next_id, self.next_id + WRITERS
                    connection.execute(
                        f"INSERT INTO app.items (id, {self.column}) VALUES (%s, %s / %s::numeric)",
                        (id_, cents, self.factor),
                    )
                    done[id_] = cents
                elif kind < 0.25:
                    connection.execute("DELETE FROM app.items WHERE id = %s", (id_,))
                    done[id_] = None
                else:
                    written = connection.execute(
                        f"UPDATE app.items SET {self.column} = %s / %s::numeric WHERE id = %s",
                        (cents, self.factor, id_),
                    )
                    if written.rowcount:
                        done[id_] = cents
        self.values |= done
        self.wrote += 1

    def check(self, standing: dict[int, int]) -> None:
        assert self.failure is None
        assert self.wrote > 20
        assert {id_: standing.get(id_) for id_ in self.values} == self.values


@contextmanager
def writing(project, column: str, *numbers: int, patience: str = "2s"):
    writers = [Writer(project.engine.url, column, number, patience) for number in numbers]
    with ExitStack() as stack:
        for writer in writers:
            writer.start()
            stack.callback(writer.join)
            stack.callback(writer.stopped.set)
        yield writers


def cents(project) -> dict[int, int]:
    with project.engine.connect() as connection:
        return {row[0]: row[1] for row in connection.execute(text("SELECT id, price_cents FROM app.items"))}


def pause_for(*writers: Writer) -> None:
    """Until each has written some more."""
    wanted = [(writer, writer.wrote + 25) for writer in writers]
    while any(writer.wrote < least and writer.failure is None for writer, least in wanted):
        time.sleep(0.01)


def test_the_whole_way_under_writers_of_both_versions(filled):
    with writing(filled, "price", 0, 1) as old:
        pause_for(*old)
        filled.migrate(expanded())
        with writing(filled, "price_cents", 2, 3) as new:
            pause_for(*old, *new)
            with filled.engine.connect() as connection:
                (expansion,) = standing_expansions(connection)
            done = backfill(filled.engine, expansion, batch=200, pause=0.01)
            assert 0 < done.rows < ROWS
            filled.migrate(expanded(nullable=False))
            pause_for(*old, *new)
            for writer in old:
                writer.stopped.set()
                writer.join()
            assert rows(filled, "SELECT count(*) FROM app.items WHERE price_cents IS DISTINCT FROM price * 100") == [
                (0,)
            ]
            filled.migrate(after())
            pause_for(*new)
    standing = cents(filled)
    for writer in (*old, *new):
        writer.check(standing)
    untouched = set(range(1, ROWS + 1)) - {id_ for writer in (*old, *new) for id_ in writer.values}
    assert {id_: standing[id_] for id_ in untouched} == {id_: id_ for id_ in untouched}
    assert_same(filled.things(), filled.built())


def rows(project, query):
    with project.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def test_the_way_back_under_a_writer(filled):
    filled.migrate(expanded())
    with filled.engine.connect() as connection:
        (expansion,) = standing_expansions(connection)
    backfill(filled.engine, expansion)
    filled.migrate(after())
    with writing(filled, "price_cents", 2, patience="1min") as writers:  # all rows are updated under a lock
        pause_for(*writers)
        filled.downgrade()
        pause_for(*writers)
        with writing(filled, "price", 1) as old:
            pause_for(*old)
    for writer in (*old, *writers):
        writer.check(cents(filled))
    assert rows(filled, "SELECT count(*) FROM app.items WHERE price_cents IS DISTINCT FROM price * 100") == [(0,)]


def test_two_backfills_at_once_share_the_work(filled):
    filled.migrate(expanded())
    with filled.engine.connect() as connection:
        (expansion,) = standing_expansions(connection)
    done = []
    threads = [
        threading.Thread(target=lambda: done.append(backfill(filled.engine, expansion, batch=100))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(each.rows for each in done) == ROWS
    assert rows(filled, "SELECT count(*) FROM app.items WHERE price_cents IS NULL") == [(0,)]


def test_no_revision_of_it_is_dangerous_for_a_large_table(filled):
    filled.execute("ANALYZE app.items")
    filled.migrate(expanded())
    with filled.engine.connect() as connection:
        (expansion,) = standing_expansions(connection)
    backfill(filled.engine, expansion)
    filled.revise(expanded(nullable=False))
    filled.upgrade()
    filled.revise(after())
    with (
        temporary_database(filled.engine) as url,
        migration_engine(url).connect() as scratch,
        filled.engine.connect() as live,
    ):
        report = lint(filled.config, live, scratch, revisions="0001:0004", limits=Limits(strict=True))
    found = [each for revision in report.revisions for judged in revision.statements for each in judged.findings]
    assert [revision.revision for revision in report.revisions] == ["0002", "0003", "0004"]
    assert [each for each in found if each.severity == "danger"] == []
    assert {each.rule for each in found if not each.rule.startswith("squawk:")} == {"check-scan", "drop"}
