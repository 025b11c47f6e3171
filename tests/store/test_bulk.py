from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import text

from arc_halo.registry import add_embeddings, search_embeddings
from tests.fixtures.tensors import count, counts, get, put, same, weights

TABLES = ("tensor_data", "tensor_metadata", "tensor_chunks", "embeddings")


@pytest.fixture
def restricted(session):
    """A session of a role that row-level security applies to, so that PostgreSQL refuses COPY FROM."""
    session.execute(text("CREATE ROLE arc_halo_restricted"))
    session.execute(text("GRANT USAGE ON SCHEMA arc_halo TO arc_halo_restricted"))
    session.execute(text("GRANT ALL ON ALL TABLES IN SCHEMA arc_halo TO arc_halo_restricted"))
    for table in TABLES:
        session.execute(text(f"ALTER TABLE arc_halo.{table} ENABLE ROW LEVEL SECURITY"))
        session.execute(text(f"CREATE POLICY everybody ON arc_halo.{table} USING (tenant_id = 0)"))
    session.execute(text("SET LOCAL ROLE arc_halo_restricted"))
    return session


def test_tensors_are_stored_under_row_level_security(restricted):
    given = [weights((900, 700)), np.full((3,), np.nan, np.float32), np.empty((0, 2)), np.float16(3)]
    for wanted, array in zip(put(restricted, *map(np.asarray, given)), given, strict=True):
        assert same(get(restricted, wanted), np.asarray(array))


def test_content_is_shared_under_row_level_security(restricted):
    put(restricted, weights((50, 50)))
    before = counts(restricted)
    put(restricted, weights((50, 50)))
    assert counts(restricted) == before


def test_embeddings_are_stored_under_row_level_security(restricted):
    labels = ["plain", 'comma, "quote" and {brace}', None, "\\backslash", "naïve ☃"]
    vectors = weights((5, 8))
    add_embeddings(restricted, "text", vectors, labels=labels)
    assert count(restricted, "embeddings") == 5
    for vector, label in zip(vectors, labels, strict=True):
        (match,) = search_embeddings(restricted, "text", vector, 1)
        assert match.label == label
        assert match.similarity == pytest.approx(1)


def test_both_ways_of_writing_store_the_same(session, restricted):
    statement = text("SELECT * FROM arc_halo.tensor_metadata WHERE id = :id")
    array = weights((64, 64))
    (slow,) = put(restricted, array)
    by_unnest = restricted.execute(statement, {"id": slow.tensor_id}).mappings().one()
    session.execute(text("RESET ROLE"))
    session.execute(text("DELETE FROM arc_halo.tensor_metadata"))
    (fast,) = put(session, array)
    by_copy = session.execute(statement, {"id": fast.tensor_id}).mappings().one()
    assert {**by_copy, "id": None} == {**by_unnest, "id": None}
