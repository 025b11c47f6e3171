"""Votes, rankings and marks make one answer of many."""

import re

import pytest

from arc_halo.errors import FusionError, OperationFailed
from arc_halo.fusion.members import Answer, CallableMember
from tests.fusion.predicting import TableMember
from tests.fusion.reactors import make_reactor, sure

JUDGE = {"role": "judge"}


def ensemble(database, answers, *, members=None, question=None, **options):
    config = {"options": options, "question": question or {}}
    return make_reactor(database, answers, members=members or {}, strategy="ensemble", config=config)


def orders(*texts):
    """A judge that has its order of texts, wherever they are shown."""
    return lambda prompt: " > ".join(re.search(rf"\[(\d+)\] {text}\b", prompt)[1] for text in texts)


def broken(_):
    raise RuntimeError("no more ink")


def test_a_vote_goes_by_weight_of_what_is_extracted(database):
    answers = {"a": "Because 1. Answer: 7", "b": "Answer: seven", "c": "answer: 7", "d": broken}
    outcome = ensemble(database, answers, members={"b": {"weight": 1.5}}, extract=r"(?i)answer: (\w+)").run("?")
    assert (outcome.text, outcome.score) == ("Because 1. Answer: 7", 2 / 3.5)
    assert outcome.fused.details["scores"] == {"7": 2 / 3.5, "seven": 1.5 / 3.5}
    assert [call.score for call in outcome.calls] == [2 / 3.5, 1.5 / 3.5, 2 / 3.5, None]


def test_ties_go_to_the_first_in_priority(database):
    members = {"a": {"priority": 2}, "b": {"priority": 1}}
    assert ensemble(database, {"a": "x", "b": "y"}, members=members).run("?").text == "y"


def test_each_sample_has_its_share_of_the_weight_and_its_seed(database):
    def by_seed(question):
        return Answer("x" if question.seed % 2 else "y")

    answers = {"a": CallableMember(by_seed, whole_question=True), "b": "x"}
    reactor = ensemble(database, answers, samples=5)
    outcome = reactor.run("?", seed=1)
    odd = sum(call.question.seed % 2 for call in outcome.calls[:5])
    assert outcome.score == pytest.approx((odd + 5) / 10)
    assert len({call.question.seed for call in outcome.calls[:5]}) == 5
    again = reactor.run("?", seed=1)
    assert [call.question.seed for call in again.calls] == [call.question.seed for call in outcome.calls]


def test_samples_of_a_member_with_logits_are_asked_one_after_another(database):
    member = TableMember({"<q>": {"x": 0.5, "y": 0.5}}, ["x", "y"])
    outcome = ensemble(database, {"a": member, "b": "z"}, samples=8, temperature=1.0).run("?", seed=2)
    assert sorted(call.text for call in outcome.calls if call.member.name == "a")[::7] == ["x", "y"]
    assert len(outcome.calls) == 16


# The greater weight puts x above each other one, but the lesser one puts it last: the rules differ.
ELECTION = {"j": orders("x", "y", "z"), "k": orders("y", "z", "x")}


@pytest.mark.parametrize(("method", "text", "score"), [("borda", "y", 10 / 14), ("copeland", "x", 1.0)])
def test_judges_rank_all_answers(database, method, text, score):
    answers = {"a": "x", "b": "y", "c": "z"} | ELECTION
    members = {"j": JUDGE | {"weight": 4}, "k": JUDGE | {"weight": 3}}
    outcome = ensemble(database, answers, members=members, method=method).run("?", seed=5)
    assert (outcome.text, outcome.score) == (text, pytest.approx(score))


def test_judges_that_give_no_order_are_left_out(database):
    answers = {"a": "x", "b": "y", "j": broken, "k": "all good", "l": orders("y")}
    members = dict.fromkeys("jkl", JUDGE)
    assert ensemble(database, answers, members=members, method="borda").run("?").text == "y"
    with pytest.raises(OperationFailed, match="nobody ranked"):
        make_reactor(
            database,
            {"a": "x", "b": "y", "j": "none"},
            members={"j": JUDGE},
            strategy="ensemble",
            config={"options": {"method": "borda"}},
            name="other",
        ).run("?")


def test_members_with_logits_rank_answers_of_others(database):
    def follows(**probabilities):
        return TableMember({"<q>": probabilities}, ["x", "y", "z"])

    answers = {"a": follows(x=0.6, y=0.4), "b": follows(z=0.5, y=0.4, x=0.1), "c": follows(y=0.9, z=0.1)}
    outcome = ensemble(database, answers, method="borda").run({"prompt": "?", "reference": "y"})
    # x y z; z y x; y z x
    assert (outcome.text, outcome.score) == ("y", pytest.approx(4 / 6))
    assert outcome.calls[3].text == "1 > 3 > 2"
    assert [call.quality for call in outcome.calls] == [0, 0, 1, None, None, None]  # marks are no answers
    assert outcome.fused.details["scores"] == pytest.approx({"x": 2 / 6, "z": 3 / 6, "y": 4 / 6})


def test_the_best_of_all_by_log_probability(database):
    answers = {"a": sure("x", 0.5), "b": sure("y", 0.9, 0.8), "c": "z"}
    outcome = ensemble(database, answers, method="best_of_n").run("?")
    assert (outcome.text, outcome.score) == ("y", pytest.approx(0.72**0.5))


def test_the_best_of_all_by_the_mean_mark_of_judges(database):
    def marks(**given):
        return lambda prompt: next(mark for text, mark in given.items() if f"Answer:\n{text}\n" in prompt)

    answers = {
        "a": "x",
        "b": "y",
        "c": "y",
        "j": marks(x="8/10", y="Good: 6"),
        "k": marks(x="2", y="none"),
        "l": broken,
    }
    members = {"j": JUDGE, "k": {"role": "validator", "weight": 2}, "l": JUDGE}
    outcome = ensemble(database, answers, members=members, method="best_of_n").run("?")
    assert (outcome.text, outcome.score) == ("y", pytest.approx(0.6))
    assert [call.score for call in outcome.calls[:3]] == pytest.approx([0.4, 0.6, 0.6])
    assert len(outcome.calls) == 3 + 2 * 3


def test_without_marks_there_is_no_best(database):
    with pytest.raises(OperationFailed, match="could be marked"):
        ensemble(database, {"a": "x"}, method="best_of_n").run("?")


@pytest.mark.parametrize("method", ["vote", "borda", "best_of_n"])
def test_where_all_fail_there_is_no_answer(database, method):
    with pytest.raises(OperationFailed):
        ensemble(database, {"a": broken, "b": " "}, method=method).run("?")


@pytest.mark.parametrize(
    "options",
    [
        {"method": "mean"},
        {"method": "borda"},
        {"method": "copeland", "rank_by": "judges"},
        {"method": "best_of_n", "mark_by": "judges"},
        {"samples": 0},
        {"samples": 2, "temperature": 0},
        {"extract": "["},
    ],
)
def test_options_that_cannot_be_are_refused(database, options):
    with pytest.raises(FusionError):
        ensemble(database, {"a": "x", "b": "y"}, **options).run("?")
