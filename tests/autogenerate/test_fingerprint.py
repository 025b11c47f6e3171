"""The fingerprint sees every difference that was planted, and nothing else."""

from __future__ import annotations

import pytest

from arc_halo.autogenerate import difference, fingerprint
from tests.autogenerate.object_cases import column_in_the_middle_of_a_view, policy
from tests.autogenerate.project import new_metadata
from tests.autogenerate.table_cases import check, comments, generated_column, nearest_index, storage

PLANTED = {
    "column": "ALTER TABLE app.items ADD COLUMN more text",
    "type": "ALTER TABLE app.lengths ALTER COLUMN length TYPE bigint",
    "nullability": "ALTER TABLE app.items ALTER COLUMN name DROP NOT NULL",
    "default": "ALTER TABLE app.items ALTER COLUMN name SET DEFAULT 'x'",
    "identity": "ALTER TABLE app.lengths ALTER COLUMN length ADD GENERATED ALWAYS AS IDENTITY",
    "compression": "ALTER TABLE app.items ALTER COLUMN payload SET COMPRESSION pglz",
    "storage": "ALTER TABLE app.items ALTER COLUMN payload SET STORAGE DEFAULT",
    "check": "ALTER TABLE app.items DROP CONSTRAINT ck_items_name, ADD CONSTRAINT ck_items_name CHECK (name IN ('a'))",
    "validity": "ALTER TABLE app.items ADD CONSTRAINT later CHECK (id > 1) NOT VALID",
    "table option": "ALTER TABLE app.items SET (fillfactor = 50)",
    "unlogged": "ALTER TABLE app.lengths SET UNLOGGED",
    "index": "DROP INDEX app.ix_items_length; CREATE INDEX ix_items_length ON app.items (length) WHERE length > 4",
    "invalid index": "CREATE INDEX broken ON ONLY app.events (name)",
    "table comment": "COMMENT ON TABLE app.items IS 'other'",
    "column comment": "COMMENT ON COLUMN app.items.id IS 'other'",
    "constraint comment": "COMMENT ON CONSTRAINT ck_items_id ON app.items IS 'other'",
    "index comment": "COMMENT ON INDEX app.ix_items_length IS 'other'",
    "view comment": "COMMENT ON VIEW app.v_ids IS 'other'",
    "policy comment": "COMMENT ON POLICY own ON app.items IS 'other'",
    "matview index": "DROP INDEX app.ix_mv_items_id",
    "view option": "ALTER VIEW app.v_ids SET (security_barrier)",
    "function": "CREATE FUNCTION app.more() RETURNS integer LANGUAGE sql RETURN 1",
    "policy": "ALTER POLICY own ON app.items USING (true)",
    "row-level security": "ALTER TABLE app.items NO FORCE ROW LEVEL SECURITY",
    "disabled trigger": "ALTER TABLE app.lengths DISABLE TRIGGER still",
    "sequence": "CREATE SEQUENCE app.numbers",
    "enum": "CREATE TYPE app.mood AS ENUM ('fine')",
    "domain": "CREATE DOMAIN app.positive AS integer CHECK (VALUE > 0)",
}
UNSEEN = {
    "partition": "CREATE TABLE app.events_c PARTITION OF app.events FOR VALUES IN ('c')",
    "row": "INSERT INTO app.items (id, name) VALUES (1, 'a')",
    "revision": "UPDATE app.alembic_version SET version_num = 'other'",
    "neighbour": "CREATE SCHEMA elsewhere; CREATE VIEW elsewhere.v_items AS SELECT 1 AS one",
}


@pytest.fixture
def built(project):
    metadata = new_metadata()
    items = metadata.tables["app.items"]
    for case in (check, comments, generated_column, nearest_index, policy, storage):
        case(items, changed=False)
    column_in_the_middle_of_a_view(items, changed=True)
    project.migrate(metadata)
    project.execute(
        "CREATE FUNCTION app.still() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "CREATE TRIGGER still BEFORE INSERT ON app.lengths FOR EACH ROW EXECUTE FUNCTION app.still()",
        "CREATE MATERIALIZED VIEW app.mv_items AS SELECT id FROM app.items",
        "CREATE INDEX ix_mv_items_id ON app.mv_items (id)",
    )
    return project


def lines(project):
    with project.engine.connect() as connection:
        return fingerprint(connection, "app")


@pytest.mark.parametrize("name", PLANTED)
def test_planted_difference(built, name):
    before = lines(built)
    built.execute(PLANTED[name])
    assert difference(before, lines(built))


@pytest.mark.parametrize("name", UNSEEN)
def test_data_is_no_difference(built, name):
    before = lines(built)
    built.execute(UNSEEN[name])
    assert difference(before, lines(built)) == []


def test_difference_says_whose():
    assert difference(["a", "b"], ["b", "c"]) == ["- a", "+ c"]
