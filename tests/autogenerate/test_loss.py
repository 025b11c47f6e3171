"""What a revision loses is told in it, and it is refused until that is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import CheckConstraint, Column, Index
from sqlalchemy import types as t

from arc_halo.autogenerate.loss import marks, values_gone
from tests.autogenerate.project import new_metadata


def of_type(kind):
    metadata = new_metadata()
    metadata.tables["app.items"].append_column(Column("value", kind))
    return metadata


def written(project, before, after):
    """What the revision from one to the other says that it loses; there and back again it does as it should."""
    project.migrate(before)
    project.migrate(after)
    project.downgrade()
    project.upgrade()
    newest = ScriptDirectory.from_config(project.config).get_revision("head")
    return marks(Path(newest.path))


NARROWER = {
    "length": (t.String(20), t.String(10)),
    "no length": (t.Text(), t.String(10)),
    "integer": (t.BigInteger(), t.Integer()),
    "precision": (t.Numeric(12, 2), t.Numeric(10, 2)),
    "scale": (t.Numeric(12, 4), t.Numeric(12, 2)),
    "digits before the point": (t.Numeric(12, 2), t.Numeric(12, 4)),
    "float": (t.Double(), t.REAL()),
    "dimension": (VECTOR(3), VECTOR(4)),
    "time": (t.DateTime(timezone=True), t.Date()),
}
WIDER = {
    "length": (t.String(10), t.String(20)),
    "no length": (t.String(10), t.Text()),
    "integer": (t.Integer(), t.BigInteger()),
    "precision": (t.Numeric(10, 2), t.Numeric(12, 2)),
    "scale": (t.Numeric(10, 2), t.Numeric(12, 4)),
    "float": (t.REAL(), t.Double()),
}


@pytest.mark.parametrize("name", NARROWER)
def test_a_narrower_type_is_marked(project, name):
    before, after = NARROWER[name]
    (said,) = written(project, of_type(before), of_type(after))
    assert said.startswith("values of app.items.value that ")


@pytest.mark.parametrize("name", WIDER)
def test_a_wider_type_is_not(project, name):
    before, after = WIDER[name]
    assert written(project, of_type(before), of_type(after)) == []


def test_a_column_and_a_table_that_go_are_marked(project):
    assert written(project, of_type(t.Text()), new_metadata()) == ["column app.items.value, with its values"]


def one_of(*values):
    metadata = new_metadata()
    listed = ", ".join(f"'{each}'" for each in values)
    metadata.tables["app.items"].append_constraint(CheckConstraint(f"name IN ({listed})", name="ck_items_name"))
    return metadata


def test_values_that_a_check_allows_no_longer_are_marked(project):
    said = written(project, one_of("a", "b", "it''s"), one_of("a", "c"))
    assert said == ["constraint ck_items_name ON app.items no longer allows b, it''s"]


def test_values_that_a_check_allows_as_well_are_not(project):
    assert written(project, one_of("a", "b"), one_of("a", "b", "c")) == []


def test_what_is_no_list_of_values_is_not_read_as_one():
    assert values_gone("CHECK (a <> 'x')", "CHECK (a <> 'y')") == []


def test_an_index_that_goes_loses_nothing(project):
    metadata = new_metadata()
    Index("ix_items_name", metadata.tables["app.items"].c.name)
    assert written(project, metadata, new_metadata()) == []
