"""The first member that is sure enough has the answer."""

import math

import pytest

from arc_halo.errors import FusionError, OperationFailed
from arc_halo.fusion.creating import change_member
from arc_halo.fusion.members import Answer, CallableMember
from arc_halo.fusion.plan import Budget
from arc_halo.fusion.strategies.cascade import confidence
from tests.fusion.reactors import make_reactor, sure

ORDER = {"small": {"priority": 1}, "middle": {"priority": 2}, "large": {"priority": 3}}


def cascade(database, answers, *, config=(), **options):
    members = {name: ORDER[name] for name in answers}
    return make_reactor(
        database, answers, members=members, strategy="cascade", config={"options": options} | dict(config)
    )


def broken(_):
    raise RuntimeError("no more ink")


@pytest.mark.parametrize(
    ("small", "middle", "text", "calls"), [(0.9, 0.1, "s", 1), (0.7, 0.8, "m", 2), (0.7, 0.7, "l", 3)]
)
def test_members_are_asked_until_one_is_sure(database, small, middle, text, calls):
    answers = {"large": sure("l", 0.1), "middle": sure("m", middle), "small": sure("s", small)}
    outcome = cascade(database, answers, threshold=0.79999).run("?")
    assert (outcome.text, len(outcome.calls)) == (text, calls)
    assert outcome.score == pytest.approx(outcome.calls[-1].score)
    assert [each["accepted"] for each in outcome.trace] == [False] * (calls - 1) + [True]


def test_each_member_has_its_threshold(database):
    answers = {"small": sure("s", 0.5), "large": "l"}
    assert cascade(database, answers, thresholds={"small": 0.4}).run("?").text == "s"


def test_the_least_margin_counts(database):
    answers = {"small": sure("s", 0.99, 0.6), "large": "l"}
    outcome = cascade(database, answers, measure="margin", threshold=0.3).run("?")
    assert (outcome.text, outcome.calls[0].question.top_count) == ("l", 2)
    assert outcome.calls[0].score == pytest.approx(0.2)


def test_agreement_of_samples_counts(database):
    def by_seed(question):
        seen.append(question)
        return Answer(" Yes" if len(seen) % 4 else "no")

    seen = []
    answers = {"small": CallableMember(by_seed, whole_question=True), "large": "l"}
    outcome = cascade(database, answers, measure="self_agreement", samples=4, threshold=0.75, temperature=0.3).run("?")
    assert (outcome.text, outcome.score, len(outcome.calls)) == (" Yes", 0.75, 4)
    assert {question.temperature for question in seen} == {0.3}
    assert len({question.seed for question in seen}) == 4


def test_who_cannot_tell_or_fails_is_passed_by(database):
    outcome = cascade(database, {"small": "s", "middle": broken, "large": "l"}).run("?")
    assert outcome.text == "l"
    assert [each["value"] for each in outcome.trace] == [None, None, None]


def test_where_the_last_fails_the_last_answer_stands(database):
    answers = {"small": sure("s", 0.7), "middle": sure("m", 0.6), "large": broken}
    assert cascade(database, answers).run("?").text == "m"


def test_where_the_budget_ends_the_last_answer_stands(database):
    outcome = cascade(database, {"small": sure("s", 0.1), "large": "l"}).run("?", budget=Budget(tokens=1))
    assert (outcome.text, [call.status for call in outcome.calls]) == ("s", ["answered", "skipped"])


def test_where_all_fail_there_is_no_answer(database):
    with pytest.raises(OperationFailed, match="no member of the cascade"):
        cascade(database, {"small": broken, "large": broken}).run("?")


@pytest.mark.parametrize("options", [{"thresholds": {"tiny": 1}}, {"samples": 1}, {"temperature": 0}, {"measure": "x"}])
def test_options_that_cannot_be_are_refused(database, options):
    with pytest.raises(FusionError):
        cascade(database, {"small": "s"}, **options).run("?")


def test_confidence_is_a_function_of_calls(database):
    answers = {"small": sure("s", 0.9, 0.4), "middle": "m", "large": broken}
    calls = make_reactor(database, answers).run("?").calls
    by_name = {call.member.name: [call] for call in calls}
    assert confidence(by_name["small"], "mean_log_probability") == pytest.approx(math.sqrt(0.36))
    assert confidence(by_name["small"], "margin") == pytest.approx(0.2)  # the best of the second token is another
    assert confidence(by_name["middle"], "mean_log_probability") is None
    assert confidence(by_name["middle"], "margin") is None
    assert confidence(by_name["large"], "self_agreement") is None
    assert confidence(calls, "self_agreement") == pytest.approx(1 / 3)


def test_a_threshold_of_a_member_that_is_disabled_by_now_is_none_of_a_stranger(database):
    answers = {"small": sure("small", 0.5), "large": sure("large", 0.9)}
    config = {"options": {"thresholds": {"small": 0.4, "large": 0.1}}}
    reactor = make_reactor(database, answers, strategy="cascade", config=config)
    with database.session() as session, session.begin():
        change_member(session, "reactor", "small", enabled=False)
    assert reactor.run("?").text == "large"
