"""Edit a declaration of ours: the revision is right both ways, and a second one is empty."""

from __future__ import annotations

import pytest
from sqlalchemy import Column, Index, Text, literal, text

from arc_halo.autogenerate import declare, difference
from tests.migrations.own import change_view, copy_of_ours, rewrite


def column(metadata):
    metadata.tables["arc_halo.models"].append_column(Column("note", Text, comment="what's 100% new"))


def index(metadata):
    Index("ix_models_created_at", metadata.tables["arc_halo.models"].c.created_at)


def nearest_index(metadata):
    (changed,) = [i for i in metadata.tables["arc_halo.embeddings"].indexes if i.name == "ix_embeddings_vector_384"]
    changed.dialect_options["postgresql"]["with"] = {"m": 32}


def check_constraint(metadata):
    (changed,) = [c for c in metadata.tables["arc_halo.models"].constraints if c.name == "ck_models_status"]
    changed.sqltext = text(str(changed.sqltext).replace("'archived'", "'archived', 'lost'"))


def view(metadata):
    change_view(metadata, "arc_halo.v_model_architecture", literal("100%").label("more"))


def materialized_view(metadata):
    (name,) = [key for key, table in metadata.tables.items() if getattr(table._creator_ddl, "materialized", False)]
    indexes = [(index.name, [column.name for column in index.columns]) for index in metadata.tables[name].indexes]
    changed = change_view(metadata, name, literal(1).label("more"))
    for index_name, columns in indexes:
        Index(index_name, *(changed.c[column] for column in columns), unique=True)
    Index("ix_more", changed.c.more)


def function(metadata):
    rewrite(metadata, "NEW.updated_at := pg_catalog.now()", "NEW.updated_at := pg_catalog.clock_timestamp()")


def trigger_on_a_partitioned_table(metadata):
    declare(
        metadata,
        "CREATE TRIGGER touch BEFORE UPDATE ON arc_halo.embeddings"
        " FOR EACH ROW EXECUTE FUNCTION arc_halo.update_updated_at_column()",
    )


CHANGES = (
    column,
    index,
    nearest_index,
    check_constraint,
    view,
    materialized_view,
    function,
    trigger_on_a_partitioned_table,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_round_trip(migrated, change):
    before = migrated.fingerprint()
    changed = copy_of_ours()
    change(changed)
    migrated.revise(changed)
    migrated.upgrade()
    migrated.check()
    assert difference(migrated.fingerprint(), migrated.built(changed)) == []
    migrated.downgrade()
    assert difference(before, migrated.fingerprint()) == []


def test_a_copy_is_no_change(migrated):
    assert difference(migrated.fingerprint(), migrated.built(copy_of_ours())) == []
