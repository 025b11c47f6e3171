"""A block may drop what holds no rows, and nothing else."""

from __future__ import annotations

import pytest

from arc_halo.autogenerate.downgrade import refuse_data_loss
from arc_halo.errors import DataLossRefused, LockTimeout

TABLES = """
CREATE TABLE app.filled (id bigint, name text, twice bigint GENERATED ALWAYS AS (id * 2) STORED);
INSERT INTO app.filled VALUES (1, 'a');
CREATE TABLE app.empty (id bigint);
CREATE VIEW app.v_filled AS SELECT id FROM app.filled;
CREATE TABLE app.parted (id bigint) PARTITION BY LIST (id);
CREATE TABLE app.parted_1 PARTITION OF app.parted FOR VALUES IN (1);
CREATE TABLE app.parted_2 PARTITION OF app.parted FOR VALUES IN (2);
INSERT INTO app.parted VALUES (1);
"""


def guarded(project, statement):
    with project.engine.begin() as connection, refuse_data_loss(connection, "app"):
        connection.exec_driver_sql(statement)


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("DROP TABLE app.filled CASCADE", r": app\.filled\. "),
        ("ALTER TABLE app.filled DROP COLUMN name", r": app\.filled\.name\."),
        ("ALTER TABLE app.filled RENAME TO other; ALTER TABLE app.other DROP COLUMN name", r"app\.filled\.name"),
        ("DROP TABLE app.parted", r": app\.parted_1\. "),
        ("DROP TABLE app.parted_1", r": app\.parted_1\. "),
        ("DROP SCHEMA app CASCADE", r": app\.filled, app\.parted_1\. "),
    ],
)
def test_rows_are_kept(project, statement, named):
    project.execute(TABLES)
    before = project.things()
    with pytest.raises(DataLossRefused, match=named):
        guarded(project, statement)
    assert project.things() == before


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE app.empty",
        "DROP VIEW app.v_filled",
        "ALTER TABLE app.filled DROP COLUMN twice",
        "ALTER TABLE app.filled RENAME COLUMN name TO other",
        "ALTER TABLE app.filled ALTER COLUMN name TYPE varchar(9)",
        "DROP TABLE app.parted_2",
        "DROP TABLE neighbour.items CASCADE",
    ],
)
def test_what_holds_no_rows_may_go(project, statement):
    project.execute(TABLES)
    with project.engine.connect() as connection, refuse_data_loss(connection, "app"):
        connection.exec_driver_sql(statement)


def test_nobody_writes_between_the_look_and_the_drop(project):
    project.execute(TABLES)
    with (
        project.engine.connect() as connection,
        refuse_data_loss(connection, "app"),
        pytest.raises(LockTimeout),
        project.engine.begin() as writer,
    ):
        writer.exec_driver_sql("SET LOCAL lock_timeout TO '50ms'; INSERT INTO app.empty VALUES (1)")
