"""A project in a schema ``app``, with neighbours of equal names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import BigInteger, Column, MetaData, Table, Text

from arc_halo.testing.migrations import Project, assert_same

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import URL

NEIGHBOUR = """
CREATE TABLE {0}.items (id bigint PRIMARY KEY, name text, total bigint DEFAULT 1 CHECK (total > 0));
CREATE INDEX ix_items_name ON {0}.items (name);
CREATE TABLE {0}.alembic_version (version_num varchar(32) PRIMARY KEY);
INSERT INTO {0}.alembic_version VALUES ('theirs');
CREATE VIEW {0}.v_items AS SELECT id, name FROM {0}.items;
CREATE MATERIALIZED VIEW {0}.mv_items AS SELECT id, name FROM {0}.items;
CREATE FUNCTION {0}.answer() RETURNS integer LANGUAGE sql RETURN 1;
CREATE FUNCTION {0}.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER touch BEFORE UPDATE ON {0}.items FOR EACH ROW EXECUTE FUNCTION {0}.touch();
"""
NEIGHBOURS = ("neighbour", "public")
PREREQUISITES = (
    "CREATE EXTENSION vector WITH SCHEMA public",
    "CREATE SCHEMA neighbour",
    *(NEIGHBOUR.format(schema) for schema in NEIGHBOURS),
)


def new_metadata() -> MetaData:
    """A metadata of schema ``app`` with one table, ``items``."""
    metadata = MetaData(
        schema="app", naming_convention={"pk": "pk_%(table_name)s", "fk": "fk_%(table_name)s_%(column_0_N_name)s"}
    )
    Table("items", metadata, Column("id", BigInteger, primary_key=True), Column("name", Text, nullable=False))
    return metadata


@pytest.fixture
def project(tmp_path: Path, database_url: URL) -> Iterator[Project]:
    """A project without revisions; at the end its neighbours must be as they were."""
    with Project(tmp_path / "project", database_url, "app", prerequisites=PREREQUISITES) as project:
        project.use(new_metadata())
        neighbours = [project.things(schema) for schema in NEIGHBOURS]
        yield project
        for schema, before in zip(NEIGHBOURS, neighbours, strict=True):
            assert_same(project.things(schema), before, f"{schema} was touched")
