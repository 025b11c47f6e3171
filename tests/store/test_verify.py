from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import text

from arc_halo.registry import create_model
from arc_halo.schema import Verification
from arc_halo.store import verify as store_verify
from arc_halo.store.verify import verify_database
from arc_halo.testing.tiers import create
from tests.fixtures.tensors import count, weights
from tests.store.test_deltas import trained

TENSORS = {"a": weights((900, 700)), "b": weights((500, 500), 3), "ids": np.arange(200_000), "e": np.empty(0, np.int8)}


@pytest.fixture
def filled(database):
    create(database, "m", TENSORS)
    create(database, "m", {name: trained(array) for name, array in TENSORS.items() if array.dtype == np.float32})
    return database


def change(database, statement):
    with database.session() as session:
        session.execute(text("SET LOCAL session_replication_role TO replica"))  # neither foreign keys nor triggers
        session.execute(text(statement))
        session.commit()


def kinds(found):
    return sorted({fault["kind"] for fault in found.faults})


def test_a_sound_database_is_read_once_each_chunk(filled):
    found = verify_database(filled)
    with filled.session() as session:
        assert (found.chunk_count, found.tensor_count, found.model_count) == (
            count(session, "tensor_data"), count(session, "tensor_metadata"), 2,
        )  # fmt: skip
        assert found.nbytes == session.scalar(text("SELECT sum(raw_nbytes) FROM arc_halo.tensor_data"))
    assert found.faults == []


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("UPDATE arc_halo.tensor_data SET payload = set_bit(payload, 77, 1 - get_bit(payload, 77))", "chunk"),
        ("UPDATE arc_halo.tensor_data SET digest = set_bit(digest, 7, 1 - get_bit(digest, 7))", "chunk"),
        ("DELETE FROM arc_halo.tensor_data WHERE base_digest IS NOT NULL", "chunk"),
        ("UPDATE arc_halo.tensor_data SET base_digest = NULL, base_depth = NULL", "chunk"),
        ("UPDATE arc_halo.tensor_chunks SET chunk_index = chunk_index + 100", "tensor"),
        ("UPDATE arc_halo.tensor_chunks SET first_row = first_row + 1", "tensor"),
        ("UPDATE arc_halo.tensor_chunks SET raw_offset = raw_offset + 4", "tensor"),
        ("UPDATE arc_halo.tensor_metadata SET digest = set_bit(digest, 7, 1 - get_bit(digest, 7))", "tensor"),
        ("UPDATE arc_halo.model_weights SET name = name || 'x'", "model"),
        ("UPDATE arc_halo.models SET weights_digest = sha256(weights_digest)", "model"),
    ],
)  # fmt: skip
def test_what_was_changed_is_found(filled, statement, kind):
    change(filled, statement)
    assert kind in kinds(verify_database(filled))


def test_a_sample_is_always_the_same(filled):
    chunks = [verify_database(filled, percent=50).chunk_count for _ in range(2)]
    assert chunks[0] == chunks[1]
    whole = verify_database(filled).chunk_count
    assert 0 <= chunks[0] < whole
    assert verify_database(filled, percent=0.001).chunk_count < whole


@pytest.mark.parametrize("percent", [0, -1, 101, float("nan")])
def test_shares_that_are_none_are_refused(filled, percent):
    with pytest.raises(ValueError, match="percent"):
        verify_database(filled, percent=percent)


def test_a_check_goes_on_where_it_was_interrupted(filled, monkeypatch):
    change(filled, "UPDATE arc_halo.tensor_data SET payload_checksum = 0")
    monkeypatch.setattr(store_verify, "BATCH_NBYTES", 1 << 20)

    def interrupt(_phase, done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify_database(filled, progress=interrupt)
    seen = []
    found = verify_database(filled, progress=lambda _phase, done, total: seen.append(done / total))
    assert seen[0] > 0.5
    assert len(found.faults) == found.chunk_count
    with filled.session() as session:
        assert session.get_one(Verification, found.verification_id).finished_at
        assert count(session, "verifications") == 1
    assert verify_database(filled).verification_id != found.verification_id


def test_a_check_may_begin_anew(filled, monkeypatch):
    monkeypatch.setattr(store_verify, "_check_manifests", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        verify_database(filled)
    monkeypatch.undo()
    assert verify_database(filled, resume=False).chunk_count > 0
    with filled.session() as session:
        assert count(session, "verifications") == 2


def test_an_empty_database_is_sound(database):
    found = verify_database(database)
    assert (found.chunk_count, found.faults) == (0, [])


def test_models_without_a_root_are_no_fault(database):
    with database.session() as session:
        create_model(session, "m", {}, {"w": weights((3, 3))})
        session.execute(text("UPDATE arc_halo.models SET weights_digest = NULL"))
        session.commit()
    assert verify_database(database).faults == []
