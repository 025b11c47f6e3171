"""The graph is walked: what feeds, what validates, what adds context, and how often an answer is sent back."""

import threading
import time

import pytest

from arc_halo.errors import FusionError, OperationFailed
from arc_halo.fusion.graph import Graph
from arc_halo.fusion.operations import hanging
from tests.fusion.predicting import TableMember
from tests.fusion.reactors import make_reactor


def reactor_of(database, answers, edges, **options):
    config = {"options": options, "member_seconds": 10}
    return make_reactor(database, answers, strategy="hierarchical", edges=edges, config=config)


def heard(name, heard_by):
    def answer(prompt):
        heard_by.append((name, prompt))
        return f"{name}!"

    return answer


def test_answers_feed_those_that_come_after(database):
    asked = []
    names = ("first", "left", "right", "last")
    edges = [("first", "left"), ("first", "right"), ("left", "last"), ("right", "last")]
    outcome = reactor_of(
        database, {name: heard(name, asked) for name in names}, [(*edge, "feeds_into") for edge in edges]
    ).run("Why?")
    assert outcome.text == "last!"
    prompts = dict(asked)
    assert prompts["first"] == "Why?"
    assert prompts["left"] == prompts["right"] == "Why?\n\nfirst:\nfirst!"
    assert prompts["last"] == "Why?\n\nleft:\nleft!\n\nright:\nright!"
    walked = [(each["source"], each["target"]) for each in outcome.trace if each["kind"] == "edge"]
    assert walked == edges
    assert [call.member.name for call in outcome.calls] == list(names)


def test_branches_answer_at_once(database):
    together = threading.Barrier(2, timeout=10)
    answers = {"a": lambda _: str(together.wait() >= 0), "b": lambda _: str(together.wait() >= 0), "c": "done"}
    outcome = reactor_of(database, answers, [("a", "c", "feeds_into"), ("b", "c", "feeds_into")]).run("?")
    assert outcome.text == "done"


def test_a_rejected_answer_is_sent_back_with_the_reason(database):
    prompts = []

    def writer(prompt):
        prompts.append(prompt)
        return f"draft {len(prompts)}"

    outcome = reactor_of(
        database,
        {"writer": writer, "critic": lambda prompt: "Accept." if "draft 2" in prompt else "Reject: too short"},
        [("critic", "writer", "validates")],
    ).run("Write.")
    assert outcome.text == "draft 2"
    assert prompts[0] == "Write."
    assert "draft 1" in prompts[1]
    assert "Reject: too short" in prompts[1]
    assert [call.score for call in outcome.calls if call.member.name == "critic"] == [0.0, 1.0]
    assert [each["accepted"] for each in outcome.trace if each.get("interaction") == "validates"] == [False, True]


@pytest.mark.parametrize("times", [0, 1, 3])
def test_it_is_sent_back_so_many_times_at_most(database, times):
    written = []
    answers = {"writer": lambda _: written.append(1) or f"draft {len(written)}", "critic": "No."}
    outcome = reactor_of(database, answers, [("critic", "writer", "validates")], max_rejections=times).run("Write.")
    assert outcome.text == f"draft {times + 1}"
    assert len(written) == times + 1
    assert {"kind": "taken_though_rejected", "member": "writer"} in outcome.trace


def test_context_is_added_before_the_question(database):
    asked = []
    answers = {"library": "Paris is in France.", "writer": heard("writer", asked)}
    outcome = reactor_of(database, answers, [("library", "writer", "augments", {"label": "Known"})]).run("Where?")
    assert outcome.text == "writer!"
    assert asked == [("writer", "Known:\nParis is in France.\n\nWhere?")]


def test_those_that_depend_on_a_failure_go_on_or_not(database):
    asked = []
    answers = {"broken": lambda _: 1 / 0, "last": heard("last", asked)}
    edges = [("broken", "last", "feeds_into")]
    assert reactor_of(database, answers, edges).run("?").text == "last!"
    assert asked == [("last", "?")]
    strict = make_reactor(
        database,
        answers,
        strategy="hierarchical",
        edges=edges,
        config={"options": {"on_failure": "fail"}},
        name="strict",
    )
    with pytest.raises(OperationFailed, match="broken gave no answer"):
        strict.run("?")


def test_of_several_ends_the_heaviest_answers(database):
    members = {"a": {"weight": 1.0}, "b": {"weight": 3.0}}
    reactor = make_reactor(database, {"a": "A", "b": "B"}, strategy="hierarchical", members=members)
    assert reactor.run("?").text == "B"


def test_somebody_must_be_left_to_answer(database):
    edges = [("a", "b", "validates"), ("b", "a", "validates")]
    with pytest.raises(FusionError, match="nobody is left"):
        reactor_of(database, {"a": "A", "b": "B"}, edges).run("?")


def test_it_is_told_where_a_rejected_answer_stands_because_no_other_came(database):
    answers = iter(["draft"])
    outcome = reactor_of(
        database, {"writer": lambda _: next(answers), "critic": "Reject."}, [("critic", "writer", "validates")]
    ).run("Write.")
    assert outcome.text == "draft"
    assert {"kind": "taken_though_rejected", "member": "writer"} in outcome.trace


def test_a_member_of_next_tokens_is_asked_one_question_at_a_time(database):
    inside, most = [], []

    def look(_):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()

    critic = TableMember({"<q>": {"yes": 1.0}}, ["yes"], before=look)
    critic.encode = lambda _: [0]
    edges = [("critic", name, "validates") for name in ("left", "right")]
    outcome = reactor_of(database, {"left": "a", "right": "b", "critic": critic}, edges).run("?")
    assert [call.text for call in outcome.calls[2:]] == ["yes", "yes"]
    assert max(most) == 1


def test_members_behind_one_object_are_asked_one_after_another(database):
    inside, most = [], []

    def look(_):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()

    shared = TableMember({"<q>": {"yes": 1.0}}, ["yes"], before=look)
    assert make_reactor(database, {"a": shared, "b": shared}).run("?").text == "yes"
    pooling = make_reactor(
        database, {"a": shared, "b": shared}, strategy="ensemble", config={"options": {"method": "log_pool"}}, name="p"
    )
    assert pooling.run("?").text == "yes"
    assert max(most) == 1


def test_who_waits_for_a_member_that_hangs_is_late_as_well(database):
    release = threading.Event()
    critic = TableMember({"<q>": {"yes": 1.0}}, ["yes"], before=lambda _: release.wait(30))
    critic.encode = lambda _: [0]
    edges = [("critic", name, "validates") for name in ("left", "right")]
    answers = {"left": "a", "right": "b", "critic": critic}
    reactor = make_reactor(database, answers, strategy="hierarchical", edges=edges, config={"member_seconds": 0.3})
    outcome = reactor.run("?")
    assert [call.status for call in outcome.calls[2:]] == ["timed_out", "timed_out"]
    assert hanging.count_of(critic) == 2
    release.set()
    until = time.monotonic() + 10
    while hanging.count_of(critic) and time.monotonic() < until:
        time.sleep(0.01)
    assert hanging.count_of(critic) == 0


def test_edges_of_members_that_are_not_asked_are_none(database):
    reactor = reactor_of(
        database, {"a": "yes", "b": "no"}, [("b", "a", "feeds_into"), ("a", "b", "validates"), ("b", "a", "augments")]
    )
    plan = reactor.plan()
    graph = Graph.of(reactor.opener.open_all(plan)[0][:1], plan.edges)
    assert [member.name for member in graph.sinks] == ["a"]
    assert (graph.feeds, graph.validates, graph.augments) == ({}, {}, {})
