"""What must hold for every table, view and function, asked of PostgreSQL's catalog."""

import pytest
from sqlalchemy import text

from arc_halo.schema import Base

# alembic_version is Alembic's own.
OURS = "n.nspname = 'arc_halo' AND NOT c.relispartition AND c.relname <> 'alembic_version'"


@pytest.fixture
def ask(session):
    return lambda query: session.scalars(text(query)).all()


def test_every_declared_table_and_view_exists(ask):
    there = ask(
        f"SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        f" WHERE {OURS} AND c.relkind IN ('r', 'p', 'v', 'm')"
    )
    assert {table.name for table in Base.metadata.tables.values()} == set(there)


def test_every_table_and_view_has_a_comment(ask):
    silent = ask(
        f"SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        f" WHERE {OURS} AND c.relkind IN ('r', 'p', 'v', 'm') AND obj_description(c.oid, 'pg_class') IS NULL"
    )
    assert silent == []


def test_every_function_has_a_comment(ask):
    silent = ask(
        "SELECT p.proname FROM pg_proc p WHERE p.pronamespace = 'arc_halo'::regnamespace"
        " AND obj_description(p.oid, 'pg_proc') IS NULL"
    )
    assert silent == []


def test_every_constraint_is_named_by_the_convention(ask):
    stray = ask(
        f"SELECT k.conname FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid"
        f" JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {OURS} AND k.contype IN ('p', 'f', 'u', 'c', 'x')"
        " AND NOT starts_with(k.conname, CASE k.contype WHEN 'p' THEN 'pk_' WHEN 'f' THEN 'fk_' WHEN 'u' THEN 'uq_'"
        " ELSE 'ck_' END || c.relname)"
    )
    assert stray == []


def test_every_index_is_named_by_the_convention(ask):
    stray = ask(
        "SELECT x.relname FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid"
        f" JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {OURS}"
        " AND x.relname !~ ('^(pk|uq|ix)_' || c.relname)"
    )
    assert stray == []


def test_no_name_was_cut_to_what_postgresql_allows():
    named = [
        constraint for table in Base.metadata.tables.values() for constraint in (*table.constraints, *table.indexes)
    ]
    assert all(len(str(item.name)) <= 63 for item in named if item.name)


def test_every_foreign_key_has_an_index_that_begins_with_its_columns(ask):
    # What refers to a row must be found fast when that row is deleted; some of the columns are enough to find it.
    bare = ask(
        f"SELECT k.conname FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid"
        f" JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {OURS} AND k.contype = 'f' AND NOT EXISTS ("
        " SELECT FROM pg_index i WHERE i.indrelid = k.conrelid AND i.indpred IS NULL"
        " AND (i.indkey::smallint[])[0:LEAST(i.indnkeyatts, cardinality(k.conkey)) - 1] <@ k.conkey)"
    )
    assert bare == ["fk_tensor_data_tenant_id_base_digest_base_depth"]  # its index holds deltas only


def test_every_table_with_updated_at_has_the_trigger(ask):
    triggered = ask(
        "SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgfoid = 'arc_halo.update_updated_at_column'::regproc"
    )
    stamped = [t.fullname for t in Base.metadata.tables.values() if "updated_at" in t.c]
    assert sorted(triggered) == sorted(stamped)


def test_functions_say_whether_they_read_or_write(ask):
    pure = ask(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'arc_halo'::regnamespace AND provolatile = 's'"
        " AND proparallel = 's' ORDER BY proname"
    )
    assert pure == [
        "attempt_line",
        "calculate_model_parameters",
        "compare_weights",
        "get_latest_checkpoint",
        "is_servable",
        "metric_history",
        "summarize_metric_parts",
    ]


def test_nobody_can_write_through_the_views(ask):
    # PostgreSQL would let simple ones through; these are not simple, whatever client comes.
    writable = ask(
        "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'arc_halo'::regnamespace AND c.relkind = 'v'"
        " AND pg_relation_is_updatable(c.oid, false) <> 0"
    )
    assert writable == []
