"""A reactor answers, and stores all of how it did."""

import threading
import time

import pytest
from sqlalchemy import func, select

from arc_halo.errors import ConfigurationError, FusionError, OperationFailed, ReactorNotFound
from arc_halo.fusion.creating import change_member
from arc_halo.fusion.members import Answer, CallableMember
from arc_halo.fusion.operations.calls import Input
from arc_halo.fusion.plan import Budget, ReactorConfig
from arc_halo.fusion.reactor import Reactor
from arc_halo.fusion.replay import replay
from arc_halo.schema import FusionOperation, FusionOperationMember
from tests.fusion.reactors import make_reactor, store_reactor


def operation_of(database, outcome):
    with database.session() as session:
        row = session.get_one(FusionOperation, outcome.operation_id)
        return row, list(row.members)


def test_an_operation_is_stored_with_all_its_calls(database):
    reactor = make_reactor(database, {"a": "yes", "b": "yes", "c": "no"}, members={"c": {"role": "secondary"}})
    outcome = reactor.run("Is it?", seed=7)
    assert outcome.text == "yes"
    row, calls = operation_of(database, outcome)
    assert (row.status, row.input, row.output["text"], row.seed) == ("completed", {"prompt": "Is it?"}, "yes", 7)
    assert [(call.position, call.role, call.status, call.answer["text"]) for call in calls] == [
        (0, "primary", "answered", "yes"),
        (1, "primary", "answered", "yes"),
        (2, "secondary", "answered", "no"),
    ]
    assert all(call.prompt["prompt"] == "Is it?" and call.latency_seconds >= 0 for call in calls)


def test_what_a_member_raises_is_the_outcome_of_its_call(database):
    def broken(_):
        raise RuntimeError("no more ink")

    outcome = make_reactor(database, {"a": broken, "b": "yes"}).run("?")
    assert outcome.text == "yes"
    _row, calls = operation_of(database, outcome)
    assert [call.status for call in calls] == ["failed", "answered"]
    assert calls[0].error == "RuntimeError: no more ink"


def test_an_operation_without_an_answer_is_stored_and_raised(database):
    reactor = make_reactor(database, {"a": lambda _: 1 / 0})
    with pytest.raises(OperationFailed) as caught:
        reactor.run("?")
    with database.session() as session:
        row = session.get_one(FusionOperation, caught.value.operation_id)
        assert (row.status, row.output) == ("failed", None)
    assert reactor.run("?", check=False).status == "failed"


def test_a_member_that_hangs_is_left(database):
    release = threading.Event()
    reactor = make_reactor(database, {"a": lambda _: str(release.wait(30)), "b": "yes"}, config={"member_seconds": 0.2})
    began = time.monotonic()
    outcome = reactor.run("?")
    assert time.monotonic() - began < 5
    release.set()
    assert [call.status for call in outcome.calls] == ["timed_out", "answered"]


def test_a_budget_of_time_ends_the_operation(database):
    release = threading.Event()
    reactor = make_reactor(database, {"a": lambda _: str(release.wait(30))})
    outcome = reactor.run("?", budget=Budget(seconds=0.2), check=False)
    release.set()
    assert (outcome.status, outcome.calls[0].status) == ("timed_out", "timed_out")


def test_events_come_as_they_happen_and_closing_cancels(database):
    release = threading.Event()
    reactor = make_reactor(database, {"a": "now", "b": lambda _: str(release.wait(30))})
    stream = reactor.stream("?")
    assert [next(stream).kind for _ in range(3)] == ["asked", "asked", "answered"]
    stream.close()
    release.set()
    with database.session() as session:
        assert session.scalar(select(FusionOperation.status)) == "cancelled"
        statuses = select(FusionOperationMember.status).order_by(FusionOperationMember.position)
        assert list(session.scalars(statuses)) == ["answered", "cancelled"]
    assert [event.kind for event in make_reactor(database, {"a": "x"}, name="other").stream("?")] == [
        "asked",
        "answered",
        "finished",
    ]


def test_many_are_answered_in_their_order(database):
    reactor = make_reactor(database, {"a": lambda prompt: f"<{prompt}>"})
    outcomes = list(reactor.run_many([str(number) for number in range(20)], concurrency=4, seed=100))
    assert [outcome.text for outcome in outcomes] == [f"<{number}>" for number in range(20)]
    assert [outcome.seed for outcome in outcomes] == list(range(100, 120))
    with database.session() as session:
        assert session.scalar(select(func.count()).select_from(FusionOperation)) == 20


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"budge": {}}, "budge"),
        ({"options": {"nothing": 1}}, "nothing"),
        ({"budget": {"tokens": -1}}, "-1 tokens"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(database, config, message):
    with pytest.raises(FusionError, match=message):
        make_reactor(database, {"a": "x"}, config=config).run("?")


def test_nothing_is_run_that_is_not_there(database):
    with pytest.raises(ReactorNotFound, match="nobody"):
        Reactor(database, "nobody", {})
    reactor = make_reactor(database, {"a": "x"})
    with pytest.raises(FusionError, match="nothing answers for the member 'a'"):
        Reactor(database, reactor.id, {}).run("?")


def test_who_answers_is_asked_for_once_however_many_operations_begin_at_once(database):
    store_reactor(database, {"a": {}})
    made = []

    def members(plan):
        time.sleep(0.1)
        made.append(plan.name)
        return lambda _: "yes"

    outcomes = list(Reactor(database, "reactor", members).run_many(["?"] * 8, concurrency=4))
    assert ({outcome.text for outcome in outcomes}, made) == ({"yes"}, ["a"])


def test_closing_many_early_cancels_those_that_run(database):
    release, reached = threading.Event(), threading.Event()

    def answer(prompt):
        if prompt == "quick":
            return "yes"
        reached.set()
        return str(release.wait(30))

    outcomes = make_reactor(database, {"a": answer}).run_many(["quick", "slow", "slow", "slow"], concurrency=2)
    assert next(outcomes).text == "yes"
    assert reached.wait(10)
    began = time.monotonic()
    outcomes.close()
    assert time.monotonic() - began < 10
    release.set()
    with database.session() as session:
        statuses = list(session.scalars(select(FusionOperation.status).order_by(FusionOperation.id)))
    assert statuses[0] == "completed"
    assert set(statuses[1:]) == {"cancelled"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"question": {"max_token": 5}}, "max_token"),
        ({"question": {"prompt": "?"}}, "prompt"),
        ({"question": {"temperature": -1}}, "temperature"),
        ({"member_seconds": float("nan")}, "member_seconds"),
        ({"member_seconds": 0}, "member_seconds"),
        ({"min_answers": -1}, "min_answers"),
    ],
)
def test_a_config_that_no_operation_could_run_by_is_refused(config, message):
    with pytest.raises(FusionError, match=message):
        ReactorConfig.of(config)


def test_a_member_may_have_as_much_time_as_it_wants(database):
    config = {"member_seconds": 1e300}
    assert make_reactor(database, {"a": lambda _: time.sleep(0.05) or "yes"}, config=config).run("?").text == "yes"


@pytest.mark.parametrize("given", [{"prompt": "?", "reference": 5}, {"prompt": "?", "system": ["be brief"]}])
def test_an_input_is_of_texts(given):
    with pytest.raises(FusionError, match="text"):
        Input.of(given)


def test_members_that_answer_at_once_share_the_tokens_that_are_left(database):
    def talk(question):
        return Answer("x" * question.max_tokens, prompt_token_count=0, generated_token_count=question.max_tokens)

    members = {name: CallableMember(talk, whole_question=True) for name in "abc"}
    reactor = make_reactor(database, members, config={"question": {"max_tokens": 100}})
    outcome = reactor.run("?", budget=Budget(tokens=100))
    assert [call.question.max_tokens for call in outcome.calls] == [34, 33, 33]
    assert outcome.token_count == 100
    few = reactor.run("?", budget=Budget(tokens=2))
    assert [call.status for call in few.calls] == ["answered", "answered", "skipped"]


def test_a_member_that_cannot_be_opened_is_left_out(database):
    def members(plan):
        if plan.name == "a":
            raise ConfigurationError("a has no tokenizer")
        return lambda _: "yes"

    make_reactor(database, {"a": "no", "b": "yes"}, members={"a": {"weight": 9}})
    outcome = Reactor(database, "reactor", members).run("?", seed=1)
    assert outcome.text == "yes"
    assert outcome.trace[0] == {"kind": "left_out", "member": "a", "reason": "ConfigurationError: a has no tokenizer"}
    again = replay(Reactor(database, "reactor", members), outcome.operation_id)
    assert again.is_equal, again.differences
    with database.session() as session, session.begin():
        change_member(session, "reactor", "b", enabled=False)
    with pytest.raises(FusionError, match="no member of the reactor reactor can be asked: a: Conf"):
        Reactor(database, "reactor", members).run("?")


@pytest.mark.parametrize("given", [5, None, [1], b"x"])
def test_what_is_no_question_is_refused(database, given):
    reactor = make_reactor(database, {"a": "yes"})
    with pytest.raises(FusionError, match="is asked is a text"):
        reactor.run(given)
    with pytest.raises(FusionError, match="members are a mapping"):
        Reactor(database, "reactor", given)


def test_an_outcome_is_shown_in_a_line(database):
    outcome = make_reactor(database, {"a": "yes"}).run({"prompt": "?", "reference": "yes"}, seed=1)
    assert repr(outcome).startswith(f"<Outcome {outcome.operation_id}: completed, 'yes', ")
    assert "quality 1, gain 0, 1 calls" in repr(outcome)
