"""Whatever members do, whatever the budget, and whenever it is cancelled: an operation ends whole, and is stored so."""

import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arc_halo.errors import OperationFailed
from arc_halo.fusion.members import Answer, TokenChoice
from arc_halo.fusion.operations.calls import Input
from arc_halo.fusion.plan import Budget
from arc_halo.fusion.reactor import Reactor
from arc_halo.schema import FusionOperation
from arc_halo.schema import Reactor as ReactorRow
from tests.fusion.reactors import store_reactor

NAMES = ("a", "b", "c", "judge")
OPTIONS = {
    "parallel": [{}, {"decide": "weight"}, {"on_failure": "fail"}, {"quorum": 2}],
    "ensemble": [{}, {"samples": 3}, {"method": "borda", "rank_by": "judges"}, {"method": "best_of_n"}],
    "cascade": [{}, {"threshold": 0.1}, {"measure": "self_agreement", "samples": 2}, {"measure": "margin"}],
    "hierarchical": [{}, {"max_rejections": 0}, {"on_failure": "fail"}],
    "routing": [{"method": "bandit", "epsilon": 0.5}, {"method": "bandit", "epsilon": 1.0, "fallbacks": 3}],
}
CHARACTERS = st.characters(codec=None) | st.sampled_from("\0\ud800 12>")
NUMBERS = st.floats(-5, 0) | st.sampled_from([float("nan"), float("-inf"), 1e9])
COUNTS = st.none() | st.integers(-3, 50)
CHOICES = st.lists(st.builds(TokenChoice, st.text(CHARACTERS, max_size=3), NUMBERS), max_size=3).map(tuple)
ANSWERS = st.builds(
    Answer,
    st.text(CHARACTERS, max_size=12),
    CHOICES,
    prompt_token_count=COUNTS,
    generated_token_count=COUNTS,
    cost=st.none() | st.floats(-1, 2) | st.just(float("nan")),
    details=st.dictionaries(st.text(CHARACTERS, max_size=3), NUMBERS | st.text(CHARACTERS, max_size=3), max_size=2),
)
DEEDS = ANSWERS | st.sampled_from(["fails", "hangs", "lingers", "gives nothing"])
BUDGETS = st.builds(
    Budget,
    seconds=st.none() | st.sampled_from([0.0, 0.01, 0.05, 5.0]),
    tokens=st.none() | st.integers(0, 60),
    cost=st.none() | st.floats(0, 3),
)


class Member:
    """Does one thing after another, and the last for ever."""

    level = "L"

    def __init__(self):
        self.deeds, self.over, self._lock = [""], threading.Event(), threading.Lock()

    def answer(self, _question):
        with self._lock:
            deed = self.deeds.pop(0) if len(self.deeds) > 1 else self.deeds[0]
        if deed == "fails":
            raise RuntimeError("\0 no more ink \ud800")
        if deed in ("hangs", "lingers"):
            self.over.wait(0.3 if deed == "hangs" else 0.005)
            return Answer("late")
        return None if deed == "gives nothing" else deed


@pytest.fixture
def members(database):
    columns = {"judge": {"role": "judge"}, "b": {"weight": 0.0, "priority": 1}, "c": {"role": "secondary"}}
    edges = [("a", "b", "feeds_into"), ("judge", "b", "validates"), ("c", "a", "augments")]
    config = {"member_seconds": 0.1}
    store_reactor(database, {name: columns.get(name, {}) for name in NAMES}, edges=edges, config=config)
    return {name: Member() for name in NAMES}


def check(database, outcome):
    with database.session() as session:
        row = session.get_one(FusionOperation, outcome.operation_id)
        calls = list(row.members)
    assert (row.status, row.error, row.trace, row.score) == (
        outcome.status,
        outcome.error,
        list(outcome.trace),
        outcome.score,
    )
    assert (row.output is None) == (outcome.fused is None) == (outcome.status != "completed")
    assert row.output is None or row.output["text"] == outcome.text
    assert row.quality == outcome.figures.quality
    assert [call.position for call in calls] == [call.position for call in outcome.calls] == list(range(len(calls)))
    for call, ours in zip(calls, outcome.calls, strict=True):
        assert call.status == ours.status is not None
        assert (call.status == "answered") == (call.answer is not None) == (call.error is None)
        assert call.answer == (None if ours.answer is None else ours.answer.to_json())
        assert (call.error, call.score, call.quality, call.propensity) == (
            ours.error,
            ours.score,
            ours.quality,
            ours.propensity,
        )
        assert call.latency_seconds >= 0


def run(reactor, budget, seed, cancelled_after):
    """An outcome, cancelled after so many events: None where nobody looks at it any more."""
    if cancelled_after is None:
        return reactor.run(Input("?", reference="1"), seed=seed, budget=budget, check=False)
    stream = reactor.stream(Input("?", reference="1"), seed=seed, budget=budget)
    for number, each in enumerate(stream):
        if each.outcome is not None:
            return each.outcome
        if number == cancelled_after:
            break
    stream.close()
    return None


WAYS = st.sampled_from([(name, each) for name, found in OPTIONS.items() for each in found])
DEEDS_OF_ALL = st.tuples(*[st.lists(DEEDS, min_size=1, max_size=3)] * len(NAMES))
ASKED = st.tuples(BUDGETS, st.integers(0, 2**63 - 1), st.none() | st.integers(0, 8))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(way=WAYS, deeds=DEEDS_OF_ALL, asked=ASKED, min_answers=st.integers(1, 3))
def test_an_operation_ends_whole(database, members, *, way, deeds, asked, min_answers):
    name, options = way
    for member, each in zip(members.values(), deeds, strict=True):
        member.deeds = list(each)

    def change(session):
        row = session.query(ReactorRow).one()
        row.strategy = name
        row.config = {"options": options, "member_seconds": 0.1, "min_answers": min_answers}

    database.transaction(change)
    reactor = Reactor(database, "reactor", members)
    with database.session() as session:
        before = session.query(FusionOperation).count()
    outcome = run(reactor, *asked)
    with database.session() as session:
        rows = session.query(FusionOperation).order_by(FusionOperation.id)
        assert rows.count() == before + 1
        newest = rows.all()[-1]
        assert all(call.status for call in newest.members)
        assert [call.position for call in newest.members] == list(range(len(newest.members)))
    if outcome is not None:
        check(database, outcome)
        if outcome.fused is None:
            with pytest.raises(OperationFailed):
                outcome.text  # noqa: B018  # it raises
