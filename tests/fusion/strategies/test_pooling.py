"""Members write one answer token by token, and those that cannot go on are left."""

import math
import threading
import time

import numpy as np
import pytest
from sqlalchemy import select

from arc_halo.errors import FusionError, OperationFailed
from arc_halo.fusion.metrics.coherence import divergence_coherence
from arc_halo.fusion.operations import Input, hanging
from arc_halo.fusion.plan import Budget
from arc_halo.fusion.replay import replay
from arc_halo.schema import FusionOperationMember
from tests.fusion.predicting import TableMember
from tests.fusion.reactors import make_reactor

WORDS = ["yes", "no", "!"]
YES = {"<q>": {"yes": 0.8, "no": 0.2}, "yes": {"!": 0.6, "<end>": 0.4}}
NO = {"<q>": {"yes": 0.3, "no": 0.7}, "yes": {"!": 0.9, "<end>": 0.1}}


def pooled(database, members, *, method="linear_pool", options=(), **config):
    name = {"name": config.pop("name")} if "name" in config else {}
    given = {"config": {"options": {"method": method} | dict(options)} | config} | name
    return make_reactor(database, members, strategy="ensemble", **given)


def pair(**options):
    return {"a": TableMember(YES, WORDS), "b": TableMember(NO, WORDS, **options)}


def test_each_member_is_one_call_with_its_own_probabilities(database):
    outcome = pooled(database, pair(), question={"top_count": 2}).run("?")
    assert outcome.text == "yes!"
    assert outcome.score == pytest.approx((0.55 * 0.75 * 1) ** (1 / 3))
    assert [call.status for call in outcome.calls] == ["answered", "answered"]
    assert outcome.calls[1].score == pytest.approx(math.sqrt(0.3 * 0.9))
    with database.session() as session:
        stored = list(session.scalars(select(FusionOperationMember).order_by(FusionOperationMember.position)))
        assert [(each.prompt_token_count, each.generated_token_count) for each in stored] == [(1, 2), (1, 2)]
        text, log_probability, top = stored[0].answer["choices"][0]
        assert (text, math.exp(log_probability)) == ("yes", pytest.approx(0.8))
        assert {word: math.exp(each) for word, each in top.items()} == pytest.approx({"yes": 0.8, "no": 0.2})


@pytest.mark.parametrize(
    ("method", "score"), [("linear_pool", 0.55), ("log_pool", math.sqrt(0.24) / (math.sqrt(0.24) + math.sqrt(0.14)))]
)
def test_the_pool_is_the_one_that_is_asked_for(database, method, score):
    outcome = pooled(database, pair(), method=method, question={"max_tokens": 1}).run("?")
    assert (outcome.text, outcome.score) == ("yes", pytest.approx(score, rel=1e-5))
    assert outcome.calls[0].answer.finish_reason == "length"


@pytest.mark.parametrize("gate", ["entropy", "confidence"])
@pytest.mark.parametrize("gated_pool", ["linear", "log"])
def test_a_gate_hears_who_is_sure(database, gate, gated_pool):
    members = {
        "a": TableMember({"<q>": {"yes": 0.34, "no": 0.33, "!": 0.33}}, WORDS),
        "b": TableMember({"<q>": {"no": 0.98, "yes": 0.01, "!": 0.01}}, WORDS),
    }
    options = {"gate": gate, "gated_pool": gated_pool}
    outcome = pooled(database, members, method="gated", options=options, question={"max_tokens": 1}).run("?")
    assert outcome.text == "no"
    assert outcome.fused.details["weights"]["b"] > 0.7


def test_different_vocabularies_are_pooled_by_their_texts(database):
    members = {
        "a": TableMember({"<q>": {"yes!": 0.9, "no": 0.1}}, ["yes!", "no"]),
        "b": TableMember({"<q>": {"yes": 0.6, "no": 0.4}, "yes": {"!": 1.0}, "!": {"<end>": 1}}, WORDS),
    }
    outcome = pooled(database, members).run("?")
    assert (outcome.text, outcome.fused.details["vocabularies"]) == ("yes!", "union")
    assert [choice.text for choice in outcome.calls[1].answer.choices] == ["yes!"]


def test_an_answer_can_be_told_where_to_stop(database):
    outcome = pooled(database, pair(), question={"stop": ["s!"]}).run("?")
    assert (outcome.text, outcome.calls[0].answer.finish_reason) == ("ye", "stop")


def test_draws_are_repeated_by_their_seed(database):
    reactor = pooled(database, pair(), question={"temperature": 1.5})
    texts = [reactor.run("?", seed=seed).text for seed in range(12)]
    assert len(set(texts)) > 1
    assert texts == [reactor.run("?", seed=seed).text for seed in range(12)]


def test_who_raises_is_left_and_the_others_go_on(database):
    def break_after_one(token_ids):
        if len(token_ids) > 1:
            raise RuntimeError("no more ink")

    outcome = pooled(database, pair(before=break_after_one)).run("?")
    assert outcome.text == "yes!"
    assert [call.status for call in outcome.calls] == ["answered", "failed"]
    assert outcome.calls[1].error == "RuntimeError: no more ink"
    assert {"kind": "left_out", "member": "b", "position": 1, "status": "failed"} in outcome.trace


def test_who_hangs_is_left_and_forgotten_once_it_ends(database):
    release = threading.Event()
    members = pair(before=lambda token_ids: len(token_ids) > 1 and release.wait(30))
    began = time.monotonic()
    outcome = pooled(database, members, member_seconds=0.3).run("?")
    assert time.monotonic() - began < 5
    assert (outcome.text, [call.status for call in outcome.calls]) == ("yes!", ["answered", "timed_out"])
    assert hanging.count_of(members["b"]) == 1
    release.set()
    until = time.monotonic() + 10
    while hanging.count_of(members["b"]) and time.monotonic() < until:
        time.sleep(0.01)
    assert hanging.count_of(members["b"]) == 0


def test_where_all_raise_there_is_no_answer(database):
    member = TableMember(YES, WORDS, before=lambda _: 1 / 0)
    with pytest.raises(OperationFailed, match="no member could predict"):
        pooled(database, {"a": member}).run("?")


def test_a_budget_of_time_ends_it_between_tokens(database):
    release = threading.Event()
    reactor = pooled(database, pair(before=lambda _: release.wait(30)))
    outcome = reactor.run("?", budget=Budget(seconds=0.3), check=False)
    release.set()
    assert (outcome.status, {call.status for call in outcome.calls}) == ("timed_out", {"timed_out"})


def test_closing_the_stream_cancels_it(database):
    release, reached = threading.Event(), threading.Event()

    def hang(_):
        reached.set()
        release.wait(30)

    stream = pooled(database, pair(before=hang)).stream("?")
    assert [next(stream).kind for _ in range(2)] == ["asked", "asked"]
    assert reached.wait(10)
    stream.close()
    release.set()
    with database.session() as session:
        assert set(session.scalars(select(FusionOperationMember.status))) == {"cancelled"}


@pytest.mark.parametrize(("tokens", "text"), [(4, "yes"), (6, "yes!"), (2, None)])
def test_a_budget_of_tokens_is_kept(database, tokens, text):
    outcome = pooled(database, pair()).run("?", budget=Budget(tokens=tokens), check=False)
    assert (outcome.fused.text if outcome.fused else None) == text
    assert outcome.token_count <= tokens


def test_members_without_logits_are_refused(database):
    with pytest.raises(FusionError, match="level N"):
        pooled(database, {"a": TableMember(YES, WORDS), "b": "yes"}).run("?")


def test_a_question_that_nobody_can_read_leaves_nothing_behind(database):
    member = TableMember(YES, WORDS)
    reactor = pooled(database, {"a": member})
    with pytest.raises(OperationFailed):
        reactor.run("no such word")
    assert hanging.count_of(member) == 0
    assert reactor.run("?", budget=Budget(tokens=0), check=False).calls[0].status == "skipped"


def test_a_member_that_leaves_the_thread_is_left_at_once(database):
    def leave(_):
        raise SystemExit(3)

    members = pair(before=leave)
    began = time.monotonic()
    outcome = pooled(database, members, member_seconds=20).run("?")
    assert time.monotonic() - began < 10
    assert outcome.calls[1].error == "SystemExit: 3"
    assert hanging.count_of(members["b"]) == 0


def test_gain_is_counted_from_what_members_say_alone(database):
    reactor = pooled(database, pair())
    given = Input("?", reference="no")
    reactor.run(given)
    outcome = reactor.run(given)
    assert outcome.text == "yes!"
    assert [(call.text, call.quality) for call in outcome.calls] == [
        ("yes!", None),
        ("yes!", None),
        ("yes!", 0.0),
        ("no", 1.0),
    ]
    assert (outcome.figures.quality, outcome.figures.gain, outcome.figures.oracle_gap) == (0, -1, 1)
    assert replay(reactor, outcome.operation_id).is_equal


def test_what_a_member_says_alone_need_not_be_asked_for(database):
    outcome = pooled(database, pair(), measure_alone=False).run(Input("?", reference="no"))
    assert (len(outcome.calls), outcome.figures.quality, outcome.figures.gain) == (2, 0, None)


def test_time_for_measuring_is_not_the_answers(database):
    members = pair(before=lambda _: time.sleep(0.1))
    outcome = pooled(database, members).run(Input("?", reference="no"))
    alone = outcome.calls[3]
    assert outcome.seconds <= alone.began_seconds + 0.05


def test_coherence_is_that_of_the_distributions(database):
    outcome = pooled(database, pair(), question={"max_tokens": 1}).run("?")
    expected = divergence_coherence(np.array([[0.8, 0.2], [0.3, 0.7]]), [1, 1])
    assert outcome.figures.coherence == pytest.approx(expected, rel=1e-5)
    same = {"a": TableMember(YES, WORDS), "b": TableMember(YES, [*WORDS, "more"])}
    assert pooled(database, same, name="union").run("?").figures.coherence == pytest.approx(1)
    assert pooled(database, {"a": TableMember(YES, WORDS)}, name="one").run("?").figures.coherence is None


def test_what_is_recorded_of_logits_cannot_be_decided_on_anew(database):
    reactor = pooled(database, pair())
    operation_id = reactor.run("?").operation_id
    with pytest.raises(FusionError, match="live"):
        replay(reactor, operation_id, members="recorded")
    assert replay(reactor, operation_id).is_equal
