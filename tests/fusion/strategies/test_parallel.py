"""All answer; judges choose, a synthesizer writes, or weight decides."""

import re

import pytest

from arc_halo.errors import FusionError, OperationFailed
from tests.fusion.reactors import make_reactor

JUDGE, SYNTHESIZER = {"role": "judge"}, {"role": "synthesizer"}


def parallel(database, answers, *, members=None, **options):
    return make_reactor(database, answers, members=members or {}, config={"options": options})


def prefers(text):
    """A judge that finds an answer wherever it is shown."""
    return lambda prompt: re.search(rf"\[(\d+)\] {re.escape(text)}", prompt)[1]


def broken(_):
    raise RuntimeError("no more ink")


def test_what_has_most_weight_is_the_answer(database):
    outcome = parallel(
        database, {"a": "No.", "b": " YES", "c": "yes"}, members={"a": {"weight": 3}, "c": {"weight": 2.5}}
    ).run("?")
    assert (outcome.text, outcome.score) == (" YES", 3.5 / 6.5)
    assert [call.score for call in outcome.calls] == [3 / 6.5, 3.5 / 6.5, 3.5 / 6.5]


def test_of_equals_the_first_in_priority_is_the_answer(database):
    members = {"a": {"priority": 2}, "b": {"priority": 1}}
    assert parallel(database, {"a": "one", "b": "two"}, members=members).run("?").text == "two"


def test_the_heaviest_member_may_decide_alone(database):
    members = {"b": {"weight": 1.5}}
    outcome = parallel(database, {"a": "x", "b": "y", "c": "x"}, members=members, decide="weight").run("?")
    assert outcome.text == "y"


def test_judges_choose_by_their_weights(database):
    answers = {"a": "one", "b": "two", "j": prefers("one"), "k": prefers("two"), "v": prefers("one")}
    members = {"j": JUDGE, "k": JUDGE | {"weight": 5}, "v": {"role": "validator"}}
    outcome = parallel(database, answers, members=members).run("?", seed=3)
    assert (outcome.text, outcome.score) == ("two", 5 / 7)
    assert [call.score for call in outcome.calls[:2]] == [2 / 7, 5 / 7]


def test_judges_see_answers_in_an_order_by_chance_that_is_repeated(database):
    answers = {name: name for name in "abcd"} | {"judge": "1"}
    reactor = parallel(database, answers, members={"judge": JUDGE})
    texts = [reactor.run("?", seed=seed).text for seed in range(10)]
    assert len(set(texts)) > 1
    assert texts == [reactor.run("?", seed=seed).text for seed in range(10)]


def test_no_judge_is_asked_where_all_say_the_same(database):
    outcome = parallel(
        database, {"a": "x", "b": "X", "judge": broken}, members={"judge": JUDGE}, on_failure="fail"
    ).run("?")
    assert (outcome.text, len(outcome.calls)) == ("x", 2)


@pytest.mark.parametrize("judge", ["I like all of them", broken])
def test_without_a_verdict_agreement_decides_or_nothing(database, judge):
    answers = {"a": "x", "b": "y", "c": "y", "judge": judge}
    assert parallel(database, answers, members={"judge": JUDGE}).run("?").text == "y"
    reactor = make_reactor(
        database, answers, members={"judge": JUDGE}, config={"options": {"on_failure": "fail"}}, name="strict"
    )
    with pytest.raises(OperationFailed, match="no judge"):
        reactor.run("?")


def test_a_synthesizer_writes_one_answer_of_all(database):
    answers = {"a": "x", "b": broken, "c": "y", "s": broken, "t": lambda prompt: f"<{prompt}>"}
    members = {"s": SYNTHESIZER, "t": SYNTHESIZER}
    outcome = parallel(database, answers, members=members, synthesis_template="{question}|{answers}|{count}").run(
        "{count}?"
    )
    assert outcome.text == "<{count}?|[1] x\n\n[2] y|2>"
    assert [call.status for call in outcome.calls] == ["answered", "failed", "answered", "failed", "answered"]
    assert [each["kind"] for each in outcome.trace] == ["left_out", "synthesized", "synthesized"]


@pytest.mark.parametrize(
    ("options", "message"), [({"on_failure": "fail"}, "1 of 3"), ({"quorum": 3}, "the quorum is 3")]
)
def test_failures_of_some_may_fail_all(database, options, message):
    answers = {"a": "x", "b": broken, "c": "x"}
    with pytest.raises(OperationFailed, match=message):
        parallel(database, answers, **options).run("?")


def test_failures_of_some_are_noted(database):
    outcome = parallel(database, {"a": "x", "b": broken, "c": " "}, quorum=2).run("?")
    assert (outcome.text, outcome.score) == ("x", 1.0)
    assert [(each["member"], each["status"]) for each in outcome.trace] == [
        ("b", "failed"),
        ("c", "nothing to compare"),
    ]


@pytest.mark.parametrize("options", [{"decide": "judge"}, {"decide": "synthesizer"}, {"quorum": 0}, {"extract": "("}])
def test_options_that_cannot_be_are_refused(database, options):
    with pytest.raises(FusionError):
        parallel(database, {"a": "x"}, **options).run("?")


def test_somebody_must_answer(database):
    with pytest.raises(FusionError, match="primary or secondary"):
        parallel(database, {"judge": "1"}, members={"judge": JUDGE}).run("?")
