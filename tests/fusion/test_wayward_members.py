"""Whatever members do or say, the reactor answers by its policy, and the operation is stored and can be read."""

import datetime as dt
import math
import threading
import time

import numpy as np
import pytest

from arc_halo.errors import FusionError
from arc_halo.fusion.members import Answer, CallableMember, TokenChoice
from arc_halo.fusion.operations.calls import Input
from arc_halo.fusion.reactor import Reactor
from arc_halo.fusion.replay import replay
from arc_halo.integrations.openai_endpoints import endpoint_members, transport
from arc_halo.schema import FusionOperation
from tests.fixtures.endpoint_server import (
    chat,
    configure,
    drip_body,
    hang,
    hang_up,
    lie_about_length,
    make_server,
    no_http,
    says,
)
from tests.fusion.reactors import make_reactor, store_reactor

__all__ = ["configure", "make_server"]

RELEASE = threading.Event()
STRATEGIES = {
    "parallel": {},
    "ensemble": {"config": {"options": {"method": "vote"}}},
    "best_of_n": {"strategy": "ensemble", "config": {"options": {"method": "best_of_n"}}},
    "cascade": {"config": {"options": {"threshold": 0.5}}},
    "hierarchical": {"edges": [("wayward", "good", "feeds_into")]},
    "routing": {"config": {"options": {"method": "bandit", "epsilon": 0.0}}},
}
strategies = pytest.mark.parametrize("strategy", STRATEGIES)


class Rude(Exception):
    def __str__(self):
        raise RuntimeError("not even this")


def raises(error):
    def answer(_):
        raise error

    return CallableMember(answer)


def says_that(*said, **more):
    return CallableMember(lambda _: Answer(*said, **more), level="L")


def returns(value):
    member = CallableMember(lambda _: "")
    member.answer = lambda _: value
    return member


def choices(*values, **top):
    return tuple(TokenChoice(f"t{at}", value, top) for at, value in enumerate(values))


circle: dict = {}
circle["itself"] = circle
NO_ANSWER = {
    "raises": raises(RuntimeError("no more ink")),
    "raises_nul": raises(ValueError("\0 and \ud800")),
    "raises_much": raises(ValueError("x" * 5_000_000)),
    "raises_rudely": raises(Rude()),
    "exits": raises(SystemExit(1)),
    "interrupts": raises(KeyboardInterrupt()),
    "hangs": CallableMember(lambda _: str(RELEASE.wait(20))),
    "none": returns(None),
    "bytes": returns(b"yes"),
    "text_of_bytes": says_that(b"yes"),
    "text_of_none": says_that(None),
    "endless": CallableMember(lambda _: "x" * (1 << 24) + "y"),
}
ANSWERS = {
    "empty": says_that(""),
    "nul": says_that("y\0s", choices=(TokenChoice("\0", -0.1, {"\ud800": -0.1, "\0": -3.0}),)),
    "surrogate": says_that("\ud83d alone", finish_reason="\udc00"),
    "huge": CallableMember(lambda _: "word and " * 400_000),
    "numpy": says_that(
        "n",
        choices=choices(np.float32(-0.5), best=np.float64(-0.5)),
        generated_token_count=np.int64(3),
        cost=np.float32(1),
    ),
    "numpy_details": says_that("n", details={"array": np.arange(3), "number": np.float32(2), np.int64(1): np.nan}),
    "no_json": says_that(
        "d", details={"when": dt.datetime.now(dt.UTC), "object": object(), "\0": {1, 2}, ("a",): b"\0"}
    ),
    "circle": says_that("c", details=circle),
    "wide": says_that("w", details={"list": list(range(200_000)), "number": 10**6000}),
    "no_details": says_that("d", details=None),
    "nan": says_that("l", choices=choices(math.nan, -0.1)),
    "infinite": says_that("l", choices=choices(-math.inf, best=-math.inf)),
    "above_zero": says_that("l", choices=choices(1e6, best=1e6, other=1e6)),
    "wrong_choices": says_that("l", choices=[("t", -0.1)]),
    "words_for_numbers": says_that("l", choices=choices("-0.1")),
    "negative": says_that("c", prompt_token_count=-1, generated_token_count=2**40, cached_token_count=True, cost=-3.0),
    "odd_costs": says_that("c", generated_token_count=1.5, cost=math.nan),
    "wrong_finish": says_that("f", finish_reason=None),
}


def reactor_of(database, strategy, name, wayward):
    options = {"strategy": strategy} | STRATEGIES[strategy]
    config = {"member_seconds": 0.5 if name == "hangs" else 30.0} | options.pop("config", {})
    members = {"wayward": {"weight": 0.5}, "good": {"priority": 1}}
    good = CallableMember(lambda _: Answer("yes", (TokenChoice("yes", -0.01),)), level="L")
    answers = {"wayward": wayward, "good": good}
    return make_reactor(database, answers, members=members, config=config, name=name, **options)


def stored(database, operation_id):
    with database.session() as session:
        row = session.get_one(FusionOperation, operation_id)
        return row, list(row.members)


def check(database, outcome):
    """What is stored is what was returned."""
    row, calls = stored(database, outcome.operation_id)
    assert (row.status, row.error, row.trace) == (outcome.status, outcome.error, list(outcome.trace))
    assert row.output is not None
    assert row.output["text"] == outcome.text
    assert [call.position for call in calls] == list(range(len(outcome.calls)))
    for call, ours in zip(calls, outcome.calls, strict=True):
        assert (call.status, call.error) == (ours.status, ours.error)
        assert call.answer == (None if ours.answer is None else ours.answer.to_json())
        assert (call.cost, call.score) == (None if ours.answer is None else ours.answer.cost, ours.score)
    return row, calls


@strategies
def test_without_its_answer_the_other_one_counts(database, strategy):
    for name, wayward in NO_ANSWER.items():
        began = time.monotonic()
        outcome = reactor_of(database, strategy, name, wayward).run("Is it?", seed=1)
        assert time.monotonic() - began < 10, name
        assert outcome.text == "yes", name
        _row, calls = check(database, outcome)
        call = next(each for each, ours in zip(calls, outcome.calls, strict=True) if ours.member.name == "wayward")
        assert call.status == ("timed_out" if name == "hangs" else "failed"), name
        assert len(call.error) <= 2000, name


@strategies
def test_what_it_says_is_stored_as_far_as_it_can_be(database, strategy):
    for name, wayward in ANSWERS.items():
        reactor = reactor_of(database, strategy, name, wayward)
        began = time.monotonic()
        outcome = reactor.run(Input("Is it?", reference="yes"), seed=1)
        assert time.monotonic() - began < 10, name
        _row, calls = check(database, outcome)
        assert all(call.status == "answered" for call in calls), name
        again = replay(reactor, outcome.operation_id, members="recorded")
        assert again.is_equal, (name, again.differences)


def test_what_was_altered_is_noted(database):
    names = ("nul", "numpy_details", "no_json", "nan", "negative", "numpy", "infinite")
    outcome = make_reactor(database, {each: ANSWERS[each] for each in sorted(names)}).run("?")
    altered = {each["member"]: each["what"] for each in outcome.trace if each["kind"] == "altered"}
    assert altered == {
        "nul": ["text"],
        "numpy_details": ["details"],  # NaN
        "no_json": ["details"],
        "nan": ["choices"],
        "negative": ["prompt_token_count", "generated_token_count", "cached_token_count", "cost"],
    }
    said = {call.member.name: call.answer for call in outcome.calls}
    assert said["nul"].text == "y\ufffds"
    assert said["numpy_details"].details == {"array": [0, 1, 2], "number": 2.0, "1": "nan"}
    assert said["no_json"].details["object"] == "<object>"
    assert (said["numpy"].generated_token_count, said["numpy"].cost) == (3, 1.0)
    assert outcome.cost == 1.0
    check(database, outcome)


def test_a_question_that_cannot_be_stored_is_asked_as_it_is(database):
    asked = []
    reactor = make_reactor(database, {"a": lambda prompt: asked.append(prompt) or "yes"})
    outcome = reactor.run(Input("a\0b\ud800", system="\0", reference="\0"))
    assert asked == ["a\0b\ud800"]
    row, calls = stored(database, outcome.operation_id)
    assert row.input == {"prompt": "a\ufffdb\ufffd", "system": "\ufffd", "reference": "\ufffd"}
    assert calls[0].prompt["prompt"] == row.input["prompt"]
    assert replay(reactor, outcome.operation_id, members="recorded").is_equal


@pytest.mark.parametrize("vector", [np.zeros((1, 0)), np.zeros((1, 16_001)), np.full((1, 3), np.nan), [], "no", None])
def test_vectors_that_cannot_be_stored_are_left_out(database, vector):
    outcome = make_reactor(database, {"a": "yes", "b": "no"}, embed=lambda _: vector).run("?")
    assert {each["what"] for each in outcome.trace if each["kind"] == "not_measured"} >= {"input_vector"}
    check(database, outcome)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_cannot_be_stored_is_refused_before_anybody_is_asked(database, seed):
    asked = []
    with pytest.raises(FusionError, match="a seed is"):
        make_reactor(database, {"a": lambda prompt: asked.append(prompt) or "yes"}).run("?", seed=seed)
    assert not asked


BROKEN = {
    "hang": hang,
    "drip": drip_body,
    "lie": lie_about_length,
    "hang_up": hang_up,
    "no_http": no_http,
    "broken_json": says(b'{"choices": [{"mess'),
    "no_choices": says({"choices": []}),
    "list": says([]),
    "429": says({"error": {"message": "slow down"}}, 429),
    "500": says({"error": "no"}, 500),
}


@strategies
def test_an_endpoint_that_breaks_is_recorded_and_left(database, make_server, configure, monkeypatch, strategy):
    monkeypatch.setattr(transport, "_BACKOFF_SECONDS", 0.01)
    configure("good", make_server(says(chat("yes"))), seconds=30)
    options = {"strategy": strategy} | STRATEGIES[strategy]
    if strategy == "best_of_n":  # endpoints give no log-probabilities to mark by
        options["config"] = {"options": {"method": "borda", "rank_by": "judges"}}
    for name, act in BROKEN.items():
        configure("wayward", make_server(act), seconds=0.5)
        store_reactor(database, {"wayward": {}, "good": {"priority": 1}}, name=name, **options)
        began = time.monotonic()
        outcome = Reactor(database, name, endpoint_members()).run("Is it?", seed=1)
        assert time.monotonic() - began < 10, name
        assert outcome.text == "yes", name
        _row, calls = check(database, outcome)
        statuses = {ours.member.name: call.status for call, ours in zip(calls, outcome.calls, strict=True)}
        assert statuses["good"] == "answered", name
        assert statuses["wayward"] in ("failed", "timed_out"), name
