"""Rehearsals of upgrades on clones."""

from __future__ import annotations

import psycopg
import pytest

from arc_halo.autogenerate import fingerprint
from arc_halo.cli.db.rehearsing import _description
from arc_halo.database.migrate import current, heads, migration_engine
from arc_halo.database.rehearsal import dumping
from arc_halo.database.rehearsal.cloning import clean, clone_name, cloned
from arc_halo.database.rehearsal.rehearsing import Loss, _rows, rehearse
from arc_halo.database.rehearsal.watching import watching
from arc_halo.database.url import libpq_string
from arc_halo.errors import ConfigurationError, DatabaseError, SchemaNotAtHead
from tests.fixtures.rehearsals import KEY


@pytest.fixture
def description():
    return _description()


def seen(url):
    with migration_engine(url).connect() as connection:
        return current(url), fingerprint(connection, "arc_halo"), _rows(url)


def execute(url, statement):
    with psycopg.connect(libpq_string(url), autocommit=True) as connection:
        connection.execute(statement)


@pytest.mark.parametrize("method", ["template", "dump"])
def test_a_clone_holds_what_its_source_does_and_is_dropped(older_url, clones, method):
    before = seen(older_url)
    with cloned(older_url, by=method) as clone:
        assert clones() == [clone.name]
        assert clone.method == method
        assert clone.nbytes > 1_000_000
        assert seen(clone.url) == before
    assert clones() == []


def test_a_template_is_taken_while_nobody_is_connected_else_a_dump(older_url):
    told = []
    with cloned(older_url, report=lambda *each: told.append(each)) as clone:
        assert clone.method == "template"
    with psycopg.connect(libpq_string(older_url), application_name="a notebook") as client:
        with cloned(older_url) as clone:
            assert clone.method == "dump"
        with (
            pytest.raises(DatabaseError, match=rf"pid {client.info.backend_pid} \(a notebook\): .*--by dump"),
            cloned(older_url, by="template"),
        ):
            pass
    assert {phase for phase, _, _ in told} == {"clone"}
    assert told[-1][1] == told[-1][2] > 1_000_000


def test_a_dump_is_told_by_bytes(older_url):
    told = []
    with cloned(older_url, by="dump", report=lambda *each: told.append(each)):
        done = [each[1] for each in told]
        assert done == sorted(done)
        assert done[-1] > 100_000


def test_rows_may_stay_behind(older_url):
    with cloned(older_url, schema_only=True) as clone:
        assert clone.method == "dump"
        revision, things, rows = seen(clone.url)
        assert (revision, things) == seen(older_url)[:2]
        assert set(rows.values()) == {0}


def test_a_clone_on_another_server(older_url, database_server, clones):
    with cloned(older_url, on=database_server.url) as clone:
        assert (clone.method, clones()) == ("dump", [clone.name])
        assert seen(clone.url) == seen(older_url)


@pytest.mark.parametrize("options", [{"by": "template", "schema_only": True}, {"by": "neon", "on": "there"}])
def test_ways_that_do_not_go_together(older_url, database_server, options):
    if "on" in options:
        options = options | {"on": database_server.url}
    with pytest.raises(ConfigurationError), cloned(older_url, **options):
        pass


def test_a_pg_dump_that_is_too_old(older_url, monkeypatch, clones):
    monkeypatch.setattr(dumping, "major", lambda: "11")
    monkeypatch.setattr(dumping.shutil, "which", lambda _: None)
    with pytest.raises(ConfigurationError, match="pg_dump is of PostgreSQL 11"), cloned(older_url, by="dump"):
        pass
    assert clones() == []


def test_names_of_clones_fit():
    assert len(clone_name("ü" * 40).encode()) <= 63
    assert clone_name("a").startswith("a_rehearsal_")


def test_each_revision_is_told_and_the_source_stays_as_it_is(older_url, description, clones):
    before = seen(older_url)
    rehearsal = rehearse(older_url, description)
    assert seen(older_url) == before
    assert clones() == []
    assert rehearsal.is_good
    assert (rehearsal.before, rehearsal.after, rehearsal.differences) == (("0003",), heads(), [])
    assert [step.revision for step in rehearsal.steps] == ["0004", "0005"]
    for step in rehearsal.steps:
        assert step.watched.seconds > 0
        assert step.watched.wal_nbytes > 0
        assert step.watched.locks[0].words == "ACCESS EXCLUSIVE"
        assert {lock.table.partition(".")[0] for lock in step.watched.locks} == {"arc_halo"}


def test_rows_that_go_are_counted(older_url, description):
    had = _rows(older_url)
    (fewer, *_) = rehearse(older_url, description, to="0004").fewer_rows
    assert fewer.table.startswith("arc_halo.")
    assert fewer.before == had[fewer.table.removeprefix("arc_halo.")] > (fewer.after or 0)


def test_up_to_a_revision_and_back(older_url, description):
    rehearsal = rehearse(older_url, description, to="0004", and_back=True)
    assert (rehearsal.after, rehearsal.differences) == (("0004",), None)
    assert [(step.revision, step.direction) for step in rehearsal.steps] == [("0004", "up"), ("0004", "down")]
    assert rehearsal.differences_back == []


def test_from_nothing_and_back(database_url, description):
    rehearsal = rehearse(database_url, description, and_back=True)
    assert rehearsal.is_good
    assert len(rehearsal.steps) == 10
    assert rehearsal.differences_back == []
    assert current(database_url) == ()


def test_nothing_to_do(migrated_url, description):
    assert rehearse(migrated_url, description).clone is None
    with pytest.raises(SchemaNotAtHead, match="ffff"):
        rehearse(migrated_url, description, to="ffff")


def test_a_revision_that_fails(older_url, description, revisions, clones):
    number = revisions.add("op.execute('UPDATE arc_halo.models SET created_at = created_at'); op.execute('SELECT 1/0')")
    rehearsal = rehearse(older_url, description, and_back=True)
    assert rehearsal.failed.revision == number
    assert rehearsal.failed.watched.statement == "SELECT 1/0"
    assert rehearsal.failed.failure == "division by zero [22012]"
    assert (rehearsal.is_good, rehearsal.after, clones()) == (False, ("0005",), [])


def test_a_revision_that_fails_by_itself(older_url, description, revisions):
    revisions.add("raise ValueError('not so')")
    assert rehearse(older_url, description).failed.failure == "ValueError: not so"


def test_an_interruption_leaves_no_clone(older_url, description, revisions, clones):
    revisions.add("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        rehearse(older_url, description)
    assert clones() == []


@pytest.mark.parametrize("by", ["template", "dump"])
def test_an_interruption_while_it_is_cloned(older_url, clones, by):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), cloned(older_url, by=by, keep=True, report=interrupt):
        pass
    assert clones() == []


def test_a_schema_that_is_not_as_declared(older_url, description, revisions):
    revisions.add("op.execute('CREATE TABLE arc_halo.planted (id bigint)')")
    rehearsal = rehearse(older_url, description)
    assert not rehearsal.is_good
    assert ("table", "extra") in {(each.kind, each.change) for each in rehearsal.differences}


def test_marked_losses_are_told_and_done(older_url, description, revisions):
    number = revisions.add(
        "op.execute('DROP TABLE arc_halo.tags_planted')",
        above="# DATA LOSS: table arc_halo.tags_planted\n",
    )
    execute(older_url, "CREATE TABLE arc_halo.tags_planted AS SELECT generate_series(1, 7)")
    rehearsal = rehearse(older_url, description)
    assert rehearsal.steps[-1].revision == number
    assert rehearsal.steps[-1].losses == [Loss("table arc_halo.tags_planted", {"tags_planted": 7})]
    assert ("arc_halo.tags_planted", 7, None) in {(x.table, x.before, x.after) for x in rehearsal.fewer_rows}


def test_kept_clones_are_dropped_later_unless_somebody_is_there(older_url, clones):
    with cloned(older_url, keep=True) as first, cloned(older_url, keep=True) as second:
        assert [each.is_dropped for each in clean(older_url)] == [False, False]  # rehearsals go on in them
    with psycopg.connect(libpq_string(first.url)):
        assert {each.name: each.is_dropped for each in clean(older_url)} == {first.name: False, second.name: True}
    assert clones() == [first.name]
    assert [each.is_dropped for each in clean(older_url)] == [True]
    assert clean(older_url) == []


def test_tables_written_anew_and_how_long_a_lock_is_held(database_url):
    execute(database_url, "CREATE TABLE public.planted AS SELECT generate_series(1, 1000) AS id")
    with watching(database_url) as watched, migration_engine(database_url).begin() as connection:
        connection.exec_driver_sql("ALTER TABLE public.planted ALTER id TYPE bigint")
        connection.exec_driver_sql("SELECT pg_sleep(0.2)")
    assert watched.rewritten == ["public.planted"]
    assert watched.wal_nbytes > 0
    (lock,) = watched.locks
    assert (lock.table, lock.words) == ("public.planted", "ACCESS EXCLUSIVE")
    assert 0.1 < lock.seconds < watched.seconds


def test_a_branch_at_neon(older_url, neon, description):
    rehearsal = rehearse(older_url, description, by="neon")
    assert rehearsal.is_good
    assert rehearsal.clone.method == "neon"
    assert neon.keys == {f"Bearer {KEY}"}
    assert [each[:2] for each in neon.asked] == [
        ("GET", "/endpoints"), ("POST", "/branches"), ("GET", "/operations/op-1"), ("DELETE", "/branches/br-2"),
    ]  # fmt: skip
    branch = neon.asked[1][2]["branch"]
    assert branch["parent_id"] == "br-1"
    assert branch["name"] == rehearsal.clone.name
    assert branch["expires_at"].endswith("Z")
    assert current(older_url) == ("0003",)


def test_a_branch_that_is_kept(older_url, neon):
    with cloned(older_url, by="neon", keep=True, schema_only=True):
        pass
    assert neon.asked[1][2]["branch"]["init_source"] == "schema-only"
    assert "DELETE" not in {each[0] for each in neon.asked}


def test_neon_refuses(older_url, neon):
    neon.refuses = True
    with pytest.raises(DatabaseError, match="423 the project is locked") as refused, cloned(older_url, by="neon"):
        pass
    assert KEY not in str(refused.value)
    neon.refuses, neon.host = False, "another"
    with pytest.raises(ConfigurationError, match="ARC_HALO_NEON_PROJECT"), cloned(older_url, by="neon"):
        pass


def test_neon_wants_a_key_and_a_link_that_nobody_reads(older_url, monkeypatch):
    with pytest.raises(ConfigurationError, match="ARC_HALO_NEON_API_KEY"), cloned(older_url, by="neon"):
        pass
    monkeypatch.setenv("ARC_HALO_NEON_API_KEY", KEY)
    monkeypatch.setenv("ARC_HALO_NEON_PROJECT", "p")
    monkeypatch.setenv("ARC_HALO_NEON_API_URL", "http://example.org/")
    with pytest.raises(ConfigurationError, match="https"), cloned(older_url, by="neon"):
        pass
