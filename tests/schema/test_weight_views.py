from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import select, text

from arc_halo.registry import add_lineage, create_model, measure_storage
from arc_halo.schema import DuplicateTensor, ModelFamily, ModelStorage, UnsoundLayer
from tests.fixtures.tensors import weights
from tests.store.test_deltas import trained


@pytest.fixture
def family(session):
    """A base, a fine-tune that shares one tensor and leans with the other, and its copy under another name."""
    first = {"w": weights((900, 400)), "b": weights((2000,), 3)}
    base = create_model(session, "base", {}, first)
    tuned = create_model(session, "tuned", {}, first | {"w": trained(first["w"])}, base="base")
    again = create_model(session, "again", {}, first | {"w": trained(first["w"])})
    add_lineage(session, tuned, base, "finetune")
    add_lineage(session, again, tuned, "copy")
    return base, tuned, again


def storage(session, model):
    return session.scalars(select(ModelStorage).where(ModelStorage.model_id == model.id)).one()


def test_storage_is_what_measure_storage_says(session, family):
    for model in family:
        seen, measured = storage(session, model), measure_storage(session, model)
        for name in ("raw_nbytes", "chunk_count", "distinct_nbytes", "stored_nbytes", "shared_nbytes", "own_nbytes"):
            assert getattr(seen, name) == getattr(measured, name), name


def test_deltas_and_depths_are_seen(session, family):
    base, tuned, _ = (storage(session, model) for model in family)
    assert (base.delta_nbytes, base.max_depth, tuned.max_depth, tuned.blob_nbytes) == (0, 0, 1, 0)
    assert 0 < tuned.delta_nbytes < tuned.stored_nbytes


def test_a_model_without_weights_takes_nothing(session):
    empty = storage(session, create_model(session, "empty", {}, {}))
    assert (empty.raw_nbytes, empty.stored_nbytes, empty.own_nbytes, empty.max_depth) == (0, 0, 0, 0)


@pytest.mark.usefixtures("family")
def test_each_member_of_a_family_adds_what_those_above_do_not_have(session):
    found = session.scalars(select(ModelFamily).order_by(ModelFamily.depth)).all()
    assert [(each.name, each.kind, each.depth) for each in found] == [
        ("base", None, 0), ("tuned", "finetune", 1), ("again", "copy", 2),
    ]  # fmt: skip
    base, tuned, again = found
    assert base.added_nbytes == base.stored_nbytes
    assert 0 < tuned.added_nbytes < tuned.stored_nbytes
    assert again.added_nbytes == 0


@pytest.mark.usefixtures("family")
def test_duplicates_name_who_uses_them(session):
    found = {each.nbytes: each for each in session.scalars(select(DuplicateTensor))}
    shared = found[8000]
    assert (shared.weight_count, shared.model_count, shared.saved_nbytes) == (3, 3, 16_000)
    assert shared.used_as == ["again@1 b", "base@1 b", "tuned@1 b"]


def test_layers_with_nan_are_found(session):
    bad = np.array([1, np.nan, np.inf, np.nan], np.float32)
    model = create_model(session, "m", {}, {"layer.w": bad, "layer.v": weights((3,))})
    (found,) = session.scalars(select(UnsoundLayer))
    assert (found.model_id, found.nan_count, found.inf_count, found.weights) == (model.id, 2, 1, ["layer.w"])


def test_weights_that_moved_are_listed_with_how_far(session):
    before = create_model(session, "m", {}, {"a": np.ones(4, np.float32), "gone": weights((2,)), "same": weights((3,))})
    after = create_model(
        session, "m", {}, {"a": np.full(4, 2, np.float32), "new": weights((5,)), "same": weights((3,))}
    )
    rows = session.execute(
        text("SELECT name, change, norm_before, norm_after, norm_moved FROM arc_halo.compare_weights(:a, :b)"),
        {"a": before.id, "b": after.id},
    ).all()
    assert {row.name: row.change for row in rows} == {"a": "changed", "gone": "removed", "new": "added"}
    moved = next(row for row in rows if row.name == "a")
    assert (moved.norm_before, moved.norm_after, moved.norm_moved) == (2, 4, 2)
