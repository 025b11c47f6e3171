"""Operations are run again: the same comes out, or it is said what does not."""

import uuid

import pytest
from sqlalchemy import select, update

from arc_halo.errors import FusionError, OperationNotFound
from arc_halo.fusion.creating import add_member, change_member, link_members, set_status
from arc_halo.fusion.members import Answer, CallableMember
from arc_halo.fusion.operations.calls import Input
from arc_halo.fusion.plan import Budget
from arc_halo.fusion.reactor import Reactor
from arc_halo.fusion.replay import replay
from arc_halo.schema import FusionOperation, Model, ReactorModel
from arc_halo.schema import Reactor as ReactorRow
from tests.fusion.reactors import make_reactor, sure
from tests.schema.rows import add_model, digest


def broken(_):
    raise RuntimeError("no more ink")


def test_what_is_recorded_comes_out_the_same(database):
    answers = {"a": sure("yes", 0.9, 0.8), "b": "yes", "c": broken, "d": "no"}
    first = make_reactor(database, answers, members={"d": {"weight": 0.5}}).run(Input("?", reference="yes"), seed=5)
    again = replay(Reactor(database, "reactor", {}), first.operation_id, members="recorded")
    assert again.is_equal, again.differences
    assert (again.changes, again.differences, again.answers_are_equal) == ((), (), (True,) * 4)
    assert (again.outcome.text, again.outcome.seed, again.outcome.figures) == ("yes", 5, first.figures)
    with database.session() as session:
        rows = session.scalars(select(FusionOperation).order_by(FusionOperation.id)).all()
        assert [row.replay_of for row in rows] == [None, first.operation_id]
        assert rows[1].members[0].answer == rows[0].members[0].answer


def test_members_are_asked_again(database):
    said = {"a": "yes"}
    reactor = make_reactor(database, {"a": lambda _: said["a"], "b": lambda prompt: prompt})
    first = reactor.run("?", seed=1)
    assert replay(reactor, first.operation_id).is_equal
    said["a"] = "no"
    again = replay(reactor, first.operation_id)
    assert (again.output_is_equal, again.trace_is_equal, again.answers_are_equal) == (False, True, (False, True))
    assert any('"no"' in each and "call 0" in each for each in again.differences)


def test_what_differs_by_rounding_is_the_same(database):
    said = {"a": sure("yes", 0.9, 0.8)}
    told = CallableMember(lambda question: said["a"].answer(question), whole_question=True, level="L")  # noqa: PLW0108
    reactor = make_reactor(database, {"a": told})
    first = reactor.run("?", seed=1)
    said["a"] = sure("yes", 0.9 * (1 + 1e-7), 0.8)
    assert replay(reactor, first.operation_id).is_equal
    again = replay(reactor, first.operation_id, tolerance=0)
    assert (again.is_equal, again.answers_are_equal) == (False, (False,))
    assert again.differences[-1].startswith("call 0: answer.choices[0][1] was -0.105360")
    said["a"] = sure("yes", 0.91, 0.8)
    assert not replay(reactor, first.operation_id).is_equal


def test_an_operation_is_found_by_how_its_id_begins(database):
    reactor = make_reactor(database, {"a": "yes"})
    first = reactor.run("?", seed=1)
    assert replay(reactor, str(first.operation_id)[:23]).replay_of == first.operation_id
    with pytest.raises(OperationNotFound, match="no operation 'ffff'"):
        replay(reactor, "ffff")


def test_an_operation_without_an_answer_is_run_again(database):
    first = make_reactor(database, {"a": broken}).run("?", check=False)
    again = replay(Reactor(database, "reactor", {}), first.operation_id, members="recorded")
    assert (again.is_equal, again.outcome.status) == (True, "failed")


def test_it_is_run_as_it_was_and_changes_are_told(database):
    reactor = make_reactor(database, {"a": "yes", "b": "no"}, members={"a": {"weight": 2}})
    with database.session() as session, session.begin():
        member = session.scalars(select(ReactorModel).where(ReactorModel.name == "a")).one()
        member.model = add_model(session, weights_digest=digest("old"))
    first = reactor.run("?", seed=1)
    with database.session() as session, session.begin():
        session.execute(update(Model).values(weights_digest=digest("new")))
        session.execute(update(ReactorModel).where(ReactorModel.name == "b").values(weight=9))
        session.execute(update(ReactorRow).values(config={"min_answers": 3}))
        add_member(session, "reactor", "c", endpoint="x")
        link_members(session, "reactor", "a", "b", "augments")
        change_member(session, "reactor", "b", enabled=False)
    again = replay(reactor, first.operation_id)
    assert again.is_equal, again.differences
    told = "; ".join(again.changes)
    for part in (
        "min_answers",
        "version 0, and is at 1",
        "weights of a",
        "b is disabled",
        "b was primary with weight 1, and is primary with weight 9 now; the replay has the first",
    ):
        assert part in told
    assert len(again.changes) == 5
    with pytest.raises(FusionError, match="weights of a have changed"):
        replay(reactor, first.operation_id, refuse_changed=True)
    with database.session() as session:
        digests = {
            members: session.get_one(
                FusionOperation, replay(reactor, first.operation_id, members=members).outcome.operation_id
            )
            .members[0]
            .weights_digest
            for members in ("live", "recorded")
        }
    assert digests == {"live": digest("new"), "recorded": digest("old")}


def test_the_same_question_twice_gets_both_answers(database):
    answers = iter(["one", "two", "three"])
    reactor = make_reactor(database, {"a": lambda _: next(answers)})
    operations = [reactor.run("?", seed=1).operation_id for _ in range(3)]
    texts = [replay(reactor, each, members="recorded").outcome.text for each in operations]
    assert texts == ["one", "two", "three"]


def test_a_member_that_is_archived_by_now_is_left_out_of_live_replays(database):
    reactor = make_reactor(database, {"a": "yes", "b": "no"}, members={"a": {"weight": 2}})
    with database.session() as session, session.begin():
        model = add_model(session)
        session.execute(update(ReactorModel).where(ReactorModel.name == "a").values(model_id=model.id))
    first = reactor.run("?")
    with database.session() as session, session.begin():
        session.execute(update(Model).values(status="archived"))
    live = replay(reactor, first.operation_id)
    assert (live.outcome.text, live.trace_is_equal, live.answers_are_equal) == ("no", False, (False, False))
    assert replay(reactor, first.operation_id, members="recorded").is_equal


def test_a_changed_strategy_is_told(database):
    reactor = make_reactor(database, {"a": "yes"})
    first = reactor.run("?")
    with database.session() as session, session.begin():
        session.execute(update(ReactorRow).values(strategy="another"))
    again = replay(reactor, first.operation_id)
    assert again.is_equal
    assert again.changes == ("the strategy was parallel, and is another now; the replay has the first",)


def test_what_is_not_recorded_has_no_answer(database):
    reactor = make_reactor(database, {"a": "yes", "b": "no"})
    first = reactor.run("?", seed=1)
    with database.session() as session, session.begin():
        calls = session.get_one(FusionOperation, first.operation_id).members
        calls[1].prompt = {"prompt": "another"}
    again = replay(reactor, first.operation_id, members="recorded")
    assert (again.outcome.text, again.is_equal, again.answers_are_equal) == ("yes", False, (True, False))
    assert again.outcome.calls[1].error == "MemberError: nothing is recorded for this question"


def test_what_cannot_be_run_again_is_refused(database):
    reactor = make_reactor(database, {"a": "yes"})
    first = reactor.run("?")
    with pytest.raises(OperationNotFound):
        replay(reactor, uuid.uuid4())
    with pytest.raises(OperationNotFound):
        replay(make_reactor(database, {"a": "yes"}, name="other"), first.operation_id)
    with pytest.raises(FusionError, match="live or recorded"):
        replay(reactor, first.operation_id, members="dead")
    with database.session() as session, session.begin():
        set_status(session, "reactor", "retired")
    with pytest.raises(FusionError, match="is retired"):
        replay(reactor, first.operation_id)
    assert replay(reactor, first.operation_id, members="recorded").is_equal


@pytest.mark.parametrize("tokens", [2, 100])
@pytest.mark.parametrize("members", ["live", "recorded"])
def test_an_operation_has_its_budget_again(database, tokens, members):
    def talk(question):
        return Answer("x" * question.max_tokens, prompt_token_count=0, generated_token_count=question.max_tokens)

    reactor = make_reactor(database, {name: CallableMember(talk, whole_question=True) for name in "abc"})
    first = reactor.run("?", budget=Budget(tokens=tokens))
    again = replay(reactor, first.operation_id, members=members)
    assert (again.is_equal, again.changes) == (True, ()), again.differences
    assert again.outcome.token_count == tokens
    with database.session() as session:
        rows = [session.get_one(FusionOperation, each) for each in (first.operation_id, again.outcome.operation_id)]
        assert [row.budget for row in rows] == [{"tokens": tokens}] * 2
        own = session.get_one(FusionOperation, reactor.run("?").operation_id)
        assert own.budget is None


def test_what_was_skipped_for_time_is_skipped_again(database):
    reactor = make_reactor(
        database, {"a": sure("a", 0.1), "b": "b"}, strategy="cascade", members={"b": {"priority": 1}}
    )
    outcome = reactor.run("?", budget=Budget(seconds=0), check=False)
    assert [call.status for call in outcome.calls] == ["skipped", "skipped"]
    assert replay(reactor, outcome.operation_id, members="recorded", budget=Budget()).answers_are_equal == (True, True)
