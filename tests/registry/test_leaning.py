from __future__ import annotations

import pytest
from sqlalchemy import text

from arc_halo.errors import ModelNotFound
from arc_halo.registry import create_model, delete_model, measure_storage
from arc_halo.registry.leaning import Leaning, measure_leaning
from tests.fixtures.tensors import trained, weights

BASE = {"w": weights((900, 400)), "v": weights((300, 300), 2), "b": weights((2000,), 3)}
TUNED = BASE | {"w": trained(BASE["w"])}


@pytest.fixture
def pair(session):
    create_model(session, "base", {}, BASE)
    create_model(session, "tuned", {}, TUNED, base="base")


@pytest.mark.usefixtures("pair")
def test_deltas_are_told_with_what_they_lean_on(session):
    saved = session.scalar(
        text("SELECT sum(raw_nbytes - stored_nbytes) FROM arc_halo.tensor_data WHERE base_digest IS NOT NULL")
    )
    assert measure_leaning(session, "tuned") == Leaning(1, saved, ["base@1"], 0, [])
    assert 0 < saved < measure_storage(session, "tuned").compressed_nbytes


@pytest.mark.usefixtures("pair")
def test_what_others_lean_on_is_told(session):
    own = measure_storage(session, "base").own_nbytes
    assert measure_leaning(session, "base") == Leaning(0, 0, [], own, ["tuned@1"])


@pytest.mark.usefixtures("pair")
def test_what_another_model_uses_too_stays_whoever_leans_on_it(session):
    create_model(session, "copy", {}, BASE)
    assert measure_leaning(session, "base") == Leaning(0, 0, [], 0, [])
    assert measure_leaning(session, "tuned").base_models == ["base@1", "copy@1"]


@pytest.mark.usefixtures("pair")
def test_what_is_leaned_on_by_way_of_a_model_that_is_gone(session):
    last = BASE | {"w": trained(BASE["w"], 2)}
    create_model(session, "last", {}, last, base="tuned", compression="dense")
    delete_model(session, "tuned")
    assert measure_leaning(session, "base").leaning_models == ["last@1"]
    assert measure_leaning(session, "last").base_models == []


def test_a_model_alone_leans_on_nothing(session):
    create_model(session, "alone", {}, BASE)
    assert measure_leaning(session, "alone") == Leaning(0, 0, [], 0, [])
    with pytest.raises(ModelNotFound):
        measure_leaning(session, "nobody")
