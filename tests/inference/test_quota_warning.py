"""What a quota has no room for is told once for each cache, and changes no answer."""

import numpy as np
import pytest
from sqlalchemy import update

from arc_halo.inference.activations import ActivationCache
from arc_halo.inference.kv import KVCache
from arc_halo.inference.kv.keeping import set_quota
from arc_halo.inference.responses import ResponseCache
from arc_halo.schema import Model
from tests.inference.kv import LAYOUT, make_layers, make_namespace
from tests.schema.rows import add_model, digest

TEXT = list(range(100, 110))
OUTPUTS = {"layer": np.ones(64, np.float32)}


def use_keys(db, namespace):
    with KVCache(db, namespace, LAYOUT) as cache:
        for _ in range(2):
            assert cache.get_or_compute(TEXT, lambda _layers, _hit: make_layers(TEXT))[1] == 0
            assert cache.store(TEXT, make_layers(TEXT)).token_count == 0


def use_responses(db, namespace):
    with ResponseCache(db, namespace) as cache:
        for _ in range(2):
            assert cache.get_or_compute("2 + 2 =", {}, lambda: "4").response == "4"
            assert not cache.put("2 + 2 =", {}, "4")


def use_activations(db, namespace):
    with ActivationCache(db, namespace) as cache:
        for number in range(2):
            inputs = {"x": np.array([number])}
            assert cache.get_or_compute(inputs, ["layer"], lambda: OUTPUTS).keys() == OUTPUTS.keys()
            assert not cache.put(inputs, OUTPUTS)


USES = {"kv": use_keys, "response": use_responses, "activation": use_activations}


def limit(database, kind, nbytes):
    with database.session() as session, session.begin():
        set_quota(session, kind, nbytes)


def namespace_of(kind, **changes):
    return make_namespace(kind=kind, **({} if kind == "kv" else {"block_token_count": None}), **changes)


@pytest.mark.parametrize("kind", USES)
def test_what_does_not_fit_is_told_once(database, caplog, kind):
    limit(database, kind, 1)
    USES[kind](database, namespace_of(kind))
    (said,) = [each.message for each in caplog.records if "quota" in each.message]
    assert f"a quota of 1 bytes for the cache {kind!r}" in said
    assert "set_quota(session" in said


@pytest.mark.parametrize("kind", USES)
def test_of_a_registered_model_it_is_told_too(database, caplog, kind):
    with database.session() as session, session.begin():
        model_id = add_model(session, weights_digest=digest("weights")).id
    limit(database, kind, 1)
    USES[kind](database, namespace_of(kind, is_registered=True, model_id=model_id))
    assert sum("quota" in each.message for each in caplog.records) == 1


def test_what_is_retired_is_not_the_quotas_fault(database, caplog):
    with database.session() as session, session.begin():
        add_model(session, weights_digest=digest("weights"))
        session.execute(update(Model).values(status="archived"))
    limit(database, "activation", 1 << 20)
    use_activations(database, namespace_of("activation", is_registered=True))
    assert not caplog.records


def test_with_room_nothing_is_told(database, caplog):
    limit(database, "kv", 1 << 20)
    with KVCache(database, make_namespace(), LAYOUT) as cache:
        assert cache.store(TEXT, make_layers(TEXT)).has_room
    assert not caplog.records
