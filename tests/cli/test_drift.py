"""``arc-halo db fingerprint`` and ``drift``."""

from __future__ import annotations

import psycopg
import pytest

from arc_halo.database.url import libpq_string
from tests.cli.command_line import CommandLine

# Each with the kind, the name and the change that are told; some things have parts of their own.
PLANTED = [
    ("ALTER TABLE {0}.models ADD COLUMN planted text", "column", "models.planted", "extra"),
    (
        "ALTER TABLE {0}.upload_leases ALTER COLUMN description TYPE varchar(99)",
        "column",
        "upload_leases.description",
        "changed",
    ),
    (
        "ALTER TABLE {0}.tensor_chunks ALTER COLUMN raw_nbytes DROP NOT NULL",
        "column",
        "tensor_chunks.raw_nbytes",
        "changed",
    ),
    ("ALTER TABLE {0}.model_files SET (fillfactor = 50)", "options", "model_files", "extra"),
    ("COMMENT ON TABLE {0}.model_lineage IS 'planted'", "table", "model_lineage", "changed"),
    ("ALTER TABLE {0}.model_aliases SET UNLOGGED", "table", "model_aliases", "changed"),
    ("CREATE TABLE {0}.planted (id bigint)", "table", "planted", "extra"),
    ("CREATE INDEX planted_index ON {0}.models (created_at)", "index", "planted_index", "extra"),
    (
        "ALTER TABLE {0}.reactor_models DROP CONSTRAINT ck_reactor_models_weight_finite",
        "constraint",
        "weight_finite",
        "missing",
    ),
    ("ALTER TABLE {0}.reactor_models ADD CONSTRAINT planted CHECK (true)", "constraint", "planted ON", "extra"),
    ("CREATE SEQUENCE {0}.planted_numbers", "sequence", "planted_numbers", "extra"),
    ("CREATE TYPE {0}.mood AS ENUM ('fine')", "type", "mood", "extra"),
    ("DROP VIEW {0}.v_reactor_status", "view", "v_reactor_status", "missing"),
    ("COMMENT ON VIEW {0}.v_cache_status IS 'planted'", "view", "v_cache_status", "changed"),
    ("CREATE FUNCTION {0}.planted() RETURNS integer LANGUAGE sql RETURN 1", "function", "planted()", "extra"),
    ("ALTER FUNCTION {0}.ensure_time_partitions COST 7", "function", "ensure_time_partitions", "changed"),
    ("ALTER TABLE {0}.training_sessions ENABLE ROW LEVEL SECURITY", "rls", "training_sessions", "extra"),
    ("CREATE POLICY planted ON {0}.models USING (true)", "policy", "planted ON", "extra"),
    ("ALTER TABLE {0}.tensor_data ALTER COLUMN digest SET STORAGE MAIN", "storage", "tensor_data.digest", "extra"),
    ("ALTER TABLE {0}.models ALTER COLUMN status SET DEFAULT 'planted'", "default", "models.status", "changed"),
]


@pytest.fixture
def plant(migrated_url):
    def plant(statement):
        with psycopg.connect(libpq_string(migrated_url), autocommit=True) as connection:
            connection.execute(statement.format("arc_halo"))

    return plant


def test_a_database_at_head_is_as_the_code_declares_it(arc_halo: CommandLine):
    assert arc_halo.says("db", "drift").endswith(" holds the same as the code\n")
    assert arc_halo.json("db", "drift") | {"url": ""} == {"url": "", "with": None, "is_equal": True, "differences": []}


def test_so_is_one_that_was_restored_from_a_dump(older_url):
    restored = CommandLine(older_url.render_as_string(hide_password=False))
    restored.run("db", "upgrade")
    assert restored.json("db", "drift")["differences"] == []


def test_each_of_twenty_planted_differences_is_named(arc_halo: CommandLine, plant):
    for statement, *_ in PLANTED:
        plant(statement)
    found = arc_halo.json("db", "drift", code=1)["differences"]
    told = {(each["kind"], each["name"], each["change"]) for each in found}
    for statement, kind, name, change in PLANTED:
        assert any(each[0] == kind and name in each[1] and each[2] == change for each in told), statement
    assert len(PLANTED) == 20
    # Nothing else: the column and the table that were planted are told once more by their own parts at most.
    assert {each[1] for each in told if not any(name in each[1] for _, _, name, _ in PLANTED)} == set()
    said = arc_halo.run("db", "drift", code=1).stdout
    assert "+ column arc_halo.models.planted" in said
    assert "- view arc_halo.v_reactor_status" in said
    assert "~ table arc_halo.model_lineage" in said


def test_two_databases_are_compared(arc_halo: CommandLine, plant, database_server):
    other = database_server.create(database_server.template())
    try:
        url = other.render_as_string(hide_password=False)
        digests = {each.json("db", "fingerprint")["digest"] for each in (arc_halo, CommandLine(url))}
        assert len(digests) == 1
        plant("DROP VIEW {0}.v_reactor_status")
        (difference,) = arc_halo.json("db", "drift", "--with", url, code=1)["differences"]
        assert (difference["kind"], difference["change"]) == ("view", "missing")
        (difference,) = CommandLine(url).json("db", "drift", "--with", arc_halo.url, code=1)["differences"]
        assert (difference["kind"], difference["change"]) == ("view", "extra")
        assert arc_halo.json("db", "fingerprint")["digest"] not in digests
    finally:
        database_server.drop(other)


def test_the_fingerprint_says_what_it_is_made_of(arc_halo: CommandLine):
    full = arc_halo.json("db", "fingerprint", "--full")
    assert full["count"] == len(full["things"]) > 500
    said = arc_halo.says("db", "fingerprint", "--full").splitlines()
    assert said[-1].startswith(f"{full['digest']}  {full['count']:,} things in ")


def test_nobody_waits_while_it_looks(arc_halo: CommandLine, migrated_url):
    with psycopg.connect(libpq_string(migrated_url)) as reader:
        assert reader.execute("SELECT count(*) FROM arc_halo.models").fetchone() == (0,)  # its lock stays till the end
        assert arc_halo.json("db", "drift")["is_equal"]
        held = "SELECT count(*) FROM pg_locks WHERE relation = 'arc_halo.models'::regclass AND pid <> pg_backend_pid()"
        assert reader.execute(held).fetchone() == (0,)
