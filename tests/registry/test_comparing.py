from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import text

from arc_halo.errors import ModelNotFound
from arc_halo.registry import compare_models, create_model, delete_model, measure_storage
from tests.fixtures.tensors import count, weights

BASE = {"a": weights((1000, 600), 1), "b": weights((300,), 2), "c": weights((50, 50), 3)}


@pytest.fixture
def pair(session):
    changed = BASE["a"].copy()
    changed[0, 0] += 1  # the first of three chunks
    create_model(session, "before", {}, BASE)
    create_model(session, "after", {}, {"a": changed, "c": BASE["c"].reshape(-1), "d": weights((7,), 4)})


@pytest.mark.usefixtures("pair")
def test_differences_are_named_with_their_bytes(session):
    comparison = compare_models(session, "before", "after")
    found = {each.name: each for each in comparison.differences}
    assert {name: each.change for name, each in found.items()} == {
        "a": "changed", "b": "removed", "c": "reshaped", "d": "added"
    }  # fmt: skip
    assert {name: each.changed_nbytes for name, each in found.items()} == {"a": 436 * 2400, "b": 0, "c": 0, "d": 28}
    assert (comparison.equal_count, comparison.equal_nbytes) == (0, 0)
    assert found["b"].l2_norm_before == pytest.approx(np.linalg.norm(BASE["b"]), rel=1e-6)
    assert found["d"].l2_norm_before is None


@pytest.mark.usefixtures("pair")
def test_a_model_equals_itself(session):
    comparison = compare_models(session, "before", "before")
    assert comparison.differences == []
    assert (comparison.equal_count, comparison.equal_nbytes) == (3, sum(array.nbytes for array in BASE.values()))


def test_comparing_needs_two_models(session):
    create_model(session, "one", {}, BASE)
    with pytest.raises(ModelNotFound, match="two"):
        compare_models(session, "one", "two")


def assert_adds_up(session, name):
    storage = measure_storage(session, name)
    assert storage.raw_nbytes == storage.deduplicated_nbytes + storage.distinct_nbytes
    assert storage.distinct_nbytes == storage.compressed_nbytes + storage.stored_nbytes
    assert storage.stored_nbytes == storage.own_nbytes + storage.shared_nbytes
    return storage


@pytest.mark.usefixtures("pair")
def test_storage_adds_up(session):
    before, after = assert_adds_up(session, "before"), assert_adds_up(session, "after")
    assert before.raw_nbytes == sum(array.nbytes for array in BASE.values())
    assert before.chunk_count == 5
    assert before.shared_nbytes == after.shared_nbytes > 0
    stored = session.scalar(text("SELECT sum(stored_nbytes) FROM arc_halo.tensor_data"))
    assert before.own_nbytes + after.own_nbytes + before.shared_nbytes == stored


def test_what_a_model_repeats_is_told(session):
    create_model(session, "twice", {}, {"a": BASE["a"], "b": BASE["a"], "zeros": np.zeros((2048, 1024), np.float32)})
    storage = assert_adds_up(session, "twice")
    assert storage.deduplicated_nbytes == BASE["a"].nbytes + 7 * 2**20
    assert storage.shared_nbytes == 0


def test_a_deleted_model_leaves_no_row_of_its_own(session):
    model = create_model(session, "one", {}, BASE)
    create_model(session, "two", {}, BASE)
    delete_model(session, model)
    assert (count(session, "models"), count(session, "model_weights")) == (1, 3)
    assert measure_storage(session, "two").shared_nbytes == 0
    with pytest.raises(ModelNotFound):
        delete_model(session, "one")
