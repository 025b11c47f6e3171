"""Where a namespace is made: for weights that the tenant has, and with a salt of bytes."""

import numpy as np
import pytest
from sqlalchemy import func, select

from arc_halo.errors import CacheError
from arc_halo.inference.activations import ActivationCache
from arc_halo.inference.kv import KVCache
from arc_halo.inference.namespaces import ensure_namespace
from arc_halo.inference.responses import ResponseCache
from arc_halo.schema import CacheNamespace
from tests.inference.kv import LAYOUT, make_layers, make_namespace
from tests.schema.rows import add_model, digest

TEXT = list(range(100, 110))
INPUTS = {"x": np.arange(3)}
OUTPUTS = {"layer": np.ones(4, np.float32)}
NO_MODEL = "has no model with these weights"


def elsewhere(kind="kv", **changes):
    """For a tenant who has no models; activations are the first tenant's alone, so of weights that nobody has."""
    if kind == "activation":
        changes |= {"tenant_id": 0, "weights_digest": digest("of nobody")}
    block = {} if kind == "kv" else {"block_token_count": None}
    return make_namespace(**{"kind": kind, "is_registered": True, "tenant_id": 11, **block, **changes})


@pytest.fixture(autouse=True)
def model(database):
    """Of another tenant."""
    with database.session() as session, session.begin():
        return add_model(session, weights_digest=digest("weights"))


def namespace_count(database):
    with database.session() as session:
        return session.scalar(select(func.count()).select_from(CacheNamespace))


def test_nothing_is_kept_that_no_model_of_the_tenant_would_be_served(database):
    with (
        KVCache(database, elsewhere(), LAYOUT) as keys,
        ResponseCache(database, elsewhere("response")) as responses,
        ActivationCache(database, elsewhere("activation")) as activations,
    ):
        with pytest.raises(CacheError, match=f"tenant 11 {NO_MODEL}"):
            keys.store(TEXT, make_layers(TEXT))
        with pytest.raises(CacheError, match="by the salt"):
            responses.put("2 + 2 =", {}, "4")
        with pytest.raises(CacheError, match=NO_MODEL):
            activations.put(INPUTS, OUTPUTS)
    assert namespace_count(database) == 0


def test_what_was_computed_is_given_where_it_is_not_kept(database, caplog):
    with (
        KVCache(database, elsewhere(), LAYOUT) as keys,
        ResponseCache(database, elsewhere("response")) as responses,
        ActivationCache(database, elsewhere("activation")) as activations,
    ):
        assert keys.get_or_compute(TEXT, lambda _layers, _hit: make_layers(TEXT))[1] == 0
        assert responses.get_or_compute("2 + 2 =", {}, lambda: "4").response == "4"
        assert activations.get_or_compute(INPUTS, ["layer"], lambda: OUTPUTS).keys() == OUTPUTS.keys()
    assert sum(NO_MODEL in each.message for each in caplog.records) == 3


@pytest.mark.parametrize("status", ["trained", "archived"])
def test_a_version_of_any_status_has_its_namespace(session, status):
    add_model(session, "theirs", weights_digest=digest("theirs"), tenant_id=11, status=status)
    assert ensure_namespace(session, elsewhere(weights_digest=digest("theirs"))) > 0


def test_a_namespace_that_is_there_costs_one_statement(database, count_statements):
    ours = make_namespace(is_registered=True)
    with database.session() as session, session.begin():
        made = ensure_namespace(session, ours)
    with count_statements(database.engine) as statements, database.session() as session:
        assert ensure_namespace(session, ours) == made
    assert len(statements) == 1


@pytest.mark.parametrize("salt", ["alice", None, 7])
def test_a_salt_is_of_bytes(salt):
    with pytest.raises(CacheError, match=r'give bytes, as b"alice"'):
        make_namespace(salt=salt)
