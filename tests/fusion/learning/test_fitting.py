"""Weights, thresholds and routes out of stored operations: figures are of what nothing was fitted to."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from sqlalchemy import event, select

from arc_halo.errors import FusionError, ReactorNotFound
from arc_halo.fusion.learning.fitting import (
    _greedy_probability,
    evaluate_routes,
    fit_cascade_thresholds,
    fit_votes,
)
from arc_halo.fusion.learning.outcomes import is_held_out, logged_outcomes
from arc_halo.fusion.members import Answer, CallableMember, TokenChoice
from arc_halo.fusion.operations.calls import Input
from arc_halo.fusion.plan import load_plan
from arc_halo.fusion.replay import replay
from arc_halo.schema import Reactor as ReactorRow
from arc_halo.schema import ReactorModel
from tests.fusion.reactors import make_reactor

COUNT = 160


def knows(share, seed, *, cost=0.0):
    """Right in so many of the questions, and sure of it (mostly)."""

    def answer(prompt):
        source = random.Random(f"{seed} {prompt}")
        is_right = source.random() < share
        log_probability = -0.05 - (0.05 if is_right else 1.0) * source.random()
        said = prompt if is_right else f"not {prompt} {source.randrange(3)}"
        return Answer(said, (TokenChoice("t", log_probability),), generated_token_count=2, cost=cost)

    return CallableMember(answer, level="L")


def ask(reactor, count=COUNT):
    given = [Input(f"question {number}", reference=f"question {number}") for number in range(count)]
    return list(reactor.run_many(given, concurrency=4, seed=0))


def make(database, shares, **options):
    members = {name: {"priority": at} for at, name in enumerate(shares)}
    inner = {name: knows(share, name, cost=10.0**at) for at, (name, share) in enumerate(shares.items())}
    return make_reactor(database, inner, members=members, **options)


def test_samples_that_failed_agree_with_none(database):
    answers = iter(["yes", None, "yes", "no"])

    def answer(_):
        said = next(answers)
        if said is None:
            raise ConnectionError
        return said

    options = {"options": {"samples": 4}, "question": {"temperature": 1.0}}
    reactor = make_reactor(database, {"a": CallableMember(answer)}, strategy="ensemble", config=options)
    outcome = reactor.run(Input("?", reference="yes"))
    assert sorted(call.status for call in outcome.calls) == ["answered"] * 3 + ["failed"]
    with database.session() as session:
        assert logged_outcomes(session, "reactor", measure="self_agreement").confidence.tolist() == [[0.5]]


def test_outcomes_are_arrays_by_one_statement(database):
    reactor = make(database, {"a": 0.9, "b": 0.5})
    first = ask(reactor, 12)
    replay(reactor, first[0].operation_id)
    reactor.run("without a reference")
    statements = []
    with database.session() as session:
        plan = load_plan(session, "reactor")
        event.listen(database.engine, "before_cursor_execute", lambda *each: statements.append(each[2]))
        found = logged_outcomes(session, plan, measure="mean_log_probability")
        assert len(statements) == 1
        assert len(logged_outcomes(session, "reactor", limit=5)) == 5
        with pytest.raises(FusionError, match="limit"):
            logged_outcomes(session, plan, limit=0)
    assert set(found.operation_ids) == {each.operation_id for each in first}
    assert (found.members, found.quality.shape) == (("a", "b"), (12, 2))
    by_id = {each.operation_id: each for each in first}
    prompts = {each.operation_id: f"question {number}" for number, each in enumerate(first)}
    for at, each in enumerate(found.operation_ids):
        assert [call.quality for call in by_id[each].calls] == found.quality[at].tolist()
        sure = [np.exp(call.answer.mean_log_probability) for call in by_id[each].calls]
        assert found.confidence[at] == pytest.approx(sure)
        assert found.is_held_out[at] == is_held_out(prompts[each])
    assert found.cost.tolist() == [[1.0, 10.0]] * 12
    assert np.isnan(found.tokens).all()  # of questions nobody counts them
    assert np.isnan(found.propensity).all()


def test_a_question_that_is_asked_again_stays_in_its_half(database):
    reactor = make(database, {"a": 0.9, "b": 0.5})
    ask(reactor, 30)
    ask(reactor, 30)
    with database.session() as session:
        found = logged_outcomes(session, "reactor")
    assert len(found) == 60
    assert len(set(found.questions)) == 30
    halves = {question: set() for question in found.questions}
    for question, held in zip(found.questions, found.is_held_out, strict=True):
        halves[question].add(bool(held))
    assert all(len(each) == 1 for each in halves.values())
    assert len(set.union(*halves.values())) == 2


def test_asking_the_same_again_makes_nobody_surer(database):
    reactor = make(database, {"often": 0.8, "seldom": 0.3}, strategy="ensemble")
    ask(reactor, 80)
    with database.session() as session:
        once = fit_votes(session, "reactor").quality_after
    for _ in range(3):
        ask(reactor, 80)
    with database.session() as session:
        again = fit_votes(session, "reactor")
    assert again.held_out_count > 100
    assert again.quality_after.high - again.quality_after.low == pytest.approx(once.high - once.low, rel=0.2)


def test_one_question_asked_often_has_no_other_half(database):
    reactor = make(database, {"a": 0.9, "b": 0.5})
    list(reactor.run_many([Input("the same", reference="the same")] * 50, concurrency=4, seed=0))
    with database.session() as session, pytest.raises(FusionError, match="half of the questions"):
        fit_votes(session, "reactor")


def test_votes_go_to_who_is_right(database):
    ask(make(database, {"often": 0.95, "seldom": 0.3, "never": 0.1}, strategy="ensemble"))
    with database.session() as session, session.begin():
        shown = fit_votes(session, "reactor")
        assert shown.before == {"often": 1.0, "seldom": 1.0, "never": 1.0}
        assert shown.after["often"] == 1.0
        assert shown.after["never"] == shown.after["seldom"] == 0.0
        assert shown.quality_after.mean > shown.quality_before.mean
        assert shown.gain.low > 0
        assert shown.gain.mean == pytest.approx(shown.quality_after.mean - shown.quality_before.mean)
        assert shown.fitted_count + shown.held_out_count == COUNT
        assert not shown.is_applied
        assert set(session.scalars(select(ReactorModel.weight))) == {1.0}
        assert fit_votes(session, "reactor", apply=True).is_applied
    with database.session() as session:
        plan = load_plan(session, "reactor")
        assert {each.name: each.weight for each in plan.members} == shown.after


def test_thresholds_are_those_that_the_cascade_reads(database):
    ask(make(database, {"cheap": 0.7, "dear": 0.98}, strategy="parallel"))
    with database.session() as session, session.begin():
        shown = fit_cascade_thresholds(session, "reactor")
        assert shown.before == {"cheap": 0.8}
        assert "all of cheap, dear answered" in shown.used[0]
        assert "costs being cost" in shown.used[0]
        with pytest.raises(FusionError, match="thresholds are a cascade's"):
            fit_cascade_thresholds(session, "reactor", apply=True)
        row = session.scalars(select(ReactorRow)).one()
        row.strategy, row.config = "cascade", {"options": {"threshold": 0.0}}
        session.flush()
        applied = fit_cascade_thresholds(session, "reactor", least_quality=0.9, apply=True)
    assert applied.before == {"cheap": 0.0}
    assert applied.gain.low > 0
    assert 1 <= applied.cost_before.mean < applied.cost_after.mean < 11
    with database.session() as session:
        options = load_plan(session, "reactor").config.options
        assert options == {"threshold": 0.0, "thresholds": applied.after}


def test_a_threshold_that_nothing_reaches_can_be_stored(database):
    reactor = make(database, {"cheap": 0.02, "dear": 0.98}, strategy="cascade", config={"options": {"threshold": 1.5}})
    ask(reactor)
    with database.session() as session, session.begin():
        applied = fit_cascade_thresholds(session, "reactor", apply=True)
        assert applied.after["cheap"] > 0
    assert reactor.run("?").text


def test_what_routes_would_have_been_worth(database):
    options = {"options": {"method": "bandit", "epsilon": 0.5}}
    ask(make(database, {"good": 0.9, "bad": 0.2}, strategy="routing", config=options), 240)
    with database.session() as session:
        good, bad, greedy = (
            evaluate_routes(session, "reactor", each) for each in ("always good", "always bad", "greedy")
        )
        with pytest.raises(FusionError, match="a policy is"):
            evaluate_routes(session, "reactor", "always ugly")
        with pytest.raises(FusionError, match="a policy is"):
            evaluate_routes(session, "reactor", "good")
    assert good.estimate.value.low < 0.9 < good.estimate.value.high
    assert bad.estimate.value.high < good.logged.mean < good.estimate.value.mean
    assert greedy.estimate.value.mean > greedy.logged.mean
    assert (good.operation_count, good.unmeasured_count, good.unanswered_count) == (240, 0, 0)


def test_routes_that_came_to_nothing_are_counted(database):
    def breaks(prompt):
        if random.Random(prompt).random() < 0.4:
            raise RuntimeError("out of order")
        return Answer(prompt)

    inner = {"breaks": CallableMember(breaks), "sound": knows(0.7, 1)}
    options = {"options": {"method": "bandit", "epsilon": 1.0, "fallbacks": 0}}
    reactor = make_reactor(database, inner, strategy="routing", config=options)
    given = [Input(f"question {number}", reference=f"question {number}") for number in range(80)]
    measured = list(reactor.run_many(given, seed=0))
    others = list(reactor.run_many([f"without a reference {number}" for number in range(5)], seed=100))
    answered = sum(each.status == "completed" for each in measured)
    failed = sum(each.status == "failed" for each in (*measured, *others))
    with database.session() as session, session.begin():
        session.scalars(select(ReactorModel).where(ReactorModel.name == "sound")).one().name = "renamed"
        session.flush()
        found = evaluate_routes(session, "reactor")
        alone = evaluate_routes(session, "reactor", "always breaks")
    for each in (found, alone):
        assert (each.operation_count, each.unmeasured_count, each.unanswered_count) == (answered, 85 - answered, failed)
    assert alone.estimate.value.mean == 1.0  # which is why the others are told


@pytest.mark.parametrize(("values", "share"), [({"a": 0.5, "b": 0.5}, 0.5), ({"a": 0.6, "b": 0.5}, 1.0)])
def test_of_equals_the_greedy_policy_takes_each_as_often(values, share):
    row = SimpleNamespace(epsilon=1.0, propensity=0.5, values=values, member_then="a")
    assert _greedy_probability(row) == share


def test_with_too_few_it_is_said_what_to_do(database):
    ask(make(database, {"a": 0.9, "b": 0.5}), 5)
    with database.session() as session:
        for fit in (fit_votes, fit_cascade_thresholds):
            with pytest.raises(FusionError, match=r"5 operations with outcomes in which.*20 in each.*tell qualities"):
                fit(session, "reactor")
        with pytest.raises(FusionError, match=r"0 operations.*routing"):
            evaluate_routes(session, "reactor")
        for fit in (fit_votes, fit_cascade_thresholds, evaluate_routes):
            with pytest.raises(ReactorNotFound):
                fit(session, "nobody")
