"""Questions go to whoever answered those like them best, and it is written down how likely that was."""

import numpy as np
import pytest

from arc_halo.errors import FusionError
from arc_halo.fusion.learning import estimate_value
from arc_halo.fusion.operations.calls import Input
from arc_halo.fusion.replay import replay
from arc_halo.schema import FusionOperation
from tests.fusion.reactors import make_reactor

ANSWERS = {"poet": lambda prompt: f"poem of {prompt}", "clerk": lambda prompt: f"form of {prompt}"}


def embed(texts):
    """Questions about verse point one way, all others another."""
    return np.array([[1.0, 0.1] if "verse" in text else [0.1, 1.0] for text in texts], np.float32)


def score(given, answer):
    return float(("verse" in given.prompt) == answer.startswith("poem"))


def router(database, **options):
    scored = {"scorer": score, "embed": embed}
    return make_reactor(database, ANSWERS, strategy="routing", config={"options": options}, **scored)


def test_questions_find_their_member(database):
    reactor = router(database, epsilon=1.0)
    questions = [f"{kind} {number}" for number in range(15) for kind in ("verse", "tax")]
    list(reactor.run_many(questions, seed=0, concurrency=1))
    with database.session() as session, session.begin():
        session.connection().exec_driver_sql(
            """UPDATE arc_halo.cognitive_fusion_reactors SET config = '{"options": {"epsilon": 0}}'"""
        )
    assert reactor.run("a verse on rain").text.startswith("poem")
    outcome = reactor.run("my tax")
    assert outcome.text.startswith("form")
    assert outcome.calls[0].propensity == 1
    routed = next(each for each in outcome.trace if each["kind"] == "routed")
    assert routed["values"]["clerk"] > routed["values"]["poet"]


def test_choices_by_chance_tell_what_others_are_worth(database):
    outcomes = list(router(database, epsilon=1.0, method="bandit").run_many(["verse"] * 120, seed=1, concurrency=2))
    quality = np.array([outcome.figures.quality for outcome in outcomes])
    propensity = np.array([outcome.calls[0].propensity for outcome in outcomes])
    assert set(propensity) == {0.5}
    poet = np.array([outcome.calls[0].member.name == "poet" for outcome in outcomes], float)
    assert 30 < poet.sum() < 90
    assert estimate_value(quality, propensity, poet).value.mean == pytest.approx(1)


def test_a_bandit_stays_with_the_better_one(database):
    reactor = router(database, epsilon=0.2, method="bandit", neighbors=200)
    outcomes = list(reactor.run_many(["tax"] * 60, seed=3, concurrency=1))
    late = [outcome.calls[0].member.name for outcome in outcomes[30:]]
    assert late.count("clerk") > 20
    assert {outcome.calls[0].propensity for outcome in outcomes} <= {0.1, 0.9}


def test_another_is_asked_where_the_chosen_one_is_silent(database):
    answers = {"broken": lambda _: 1 / 0, "sound": "here"}
    options = {"method": "bandit", "epsilon": 0.0}
    reactor = make_reactor(database, answers, strategy="routing", config={"options": options})
    outcome = reactor.run("?")
    assert outcome.text == "here"
    assert [call.status for call in outcome.calls] == ["failed", "answered"]


def test_likeness_needs_vectors(database):
    with pytest.raises(FusionError, match="embed="):
        make_reactor(database, {"a": "x"}, strategy="routing").run("?")


def test_a_replay_knows_what_was_known_then_and_teaches_nothing(database):
    options = {"options": {"method": "bandit", "epsilon": 0.0}}
    reactor = make_reactor(database, {"a": "yes", "b": "no"}, strategy="routing", config=options)
    first = reactor.run(Input("?", reference="no"))
    assert [replay(reactor, first.operation_id).is_equal for _ in range(3)] == [True] * 3
    second = reactor.run(Input("?", reference="no"))
    assert second.trace[0]["values"] == {"a": 0.25, "b": 0.5}
    assert replay(reactor, second.operation_id).is_equal


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_a_vector_without_direction_is_none(database, value):
    reactor = make_reactor(database, ANSWERS, embed=lambda texts: np.full((len(texts), 2), value, np.float32))
    outcome = reactor.run("verse")
    assert "direction" in next(each["error"] for each in outcome.trace if each["kind"] == "not_measured")
    with database.session() as session:
        assert session.get_one(FusionOperation, outcome.operation_id).input_dimension is None
