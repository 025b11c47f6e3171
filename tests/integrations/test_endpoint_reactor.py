"""A reactor of endpoints answers by its policy, whatever some of them do, and stores what they did."""

import time

import pytest
from sqlalchemy import select, text

from arc_halo.errors import FusionError, OperationFailed
from arc_halo.fusion.reactor import Reactor
from arc_halo.integrations.openai_endpoints import endpoint_members, transport
from arc_halo.schema import FusionOperationMember
from tests.fixtures.endpoint_server import KEY, chat, configure, hang, make_server, says
from tests.fusion.reactors import store_reactor

__all__ = ["configure", "make_server"]

ROWS = select(FusionOperationMember).order_by(FusionOperationMember.position)


@pytest.fixture
def endpoints(make_server, configure, monkeypatch):
    """One that answers, one that breaks, one that hangs."""
    monkeypatch.setattr(transport, "_BACKOFF_SECONDS", 0.01)
    usage = {"prompt_tokens": 5, "completion_tokens": 1}
    acts = {"good": says(chat("yes", usage=usage)), "broken": says({"error": f"bad key {KEY}"}, 500), "slow": hang}
    servers = {name: make_server(act) for name, act in acts.items()}
    for name, server in servers.items():
        configure(name, server, prompt_price=2, answer_price=10, seconds=1 if name == "slow" else 30)
    return servers


def test_what_hangs_and_what_breaks_is_stored_and_left(database, endpoints):
    store_reactor(database, {name: {} for name in endpoints})
    began = time.monotonic()
    outcome = Reactor(database, "reactor", endpoint_members()).run("Is it?", seed=1)
    assert time.monotonic() - began < 10
    assert (outcome.text, outcome.status, outcome.token_count) == ("yes", "completed", 6)
    assert outcome.cost == pytest.approx(20e-6)
    with database.session() as session:
        rows = {row.prompt["prompt"] + row.status: row for row in session.scalars(ROWS)}
        assert {*rows} == {"Is it?answered", "Is it?failed", "Is it?timed_out"}
        assert rows["Is it?failed"].error.endswith("HTTP 500: bad key *** (asked 4 times)")
        assert "endpoint 'slow' (1 s)" in rows["Is it?timed_out"].error
        stored = session.execute(text("SELECT string_agg(m::text, '') FROM arc_halo.fusion_operation_members AS m"))
        assert KEY not in stored.scalar_one()
    assert [len(endpoints[name].asked) for name in ("good", "broken", "slow")] == [1, 4, 1]


def test_with_less_answers_than_must_be_the_operation_has_failed(database, endpoints):
    store_reactor(database, {name: {} for name in endpoints}, config={"min_answers": 2})
    with pytest.raises(OperationFailed, match="1 members answered, and 2 must"):
        Reactor(database, "reactor", endpoint_members()).run("Is it?")


def test_the_reactors_own_patience_comes_first(database, endpoints):
    store_reactor(database, {name: {} for name in endpoints}, config={"member_seconds": 0.3})
    outcome = Reactor(database, "reactor", endpoint_members()).run("Is it?")
    assert {call.member.name: call.status for call in outcome.calls}["slow"] == "timed_out"


def test_an_endpoint_that_is_not_configured_is_named(database):
    store_reactor(database, {"nowhere": {}})
    with pytest.raises((FusionError, ValueError), match="ARC_HALO_ENDPOINT_NOWHERE_URL"):
        Reactor(database, "reactor", endpoint_members()).run("?")
