"""What is measured of one operation, and that no scorer loses it."""

import numpy as np
import pytest

from arc_halo.fusion.operations.calls import Input
from arc_halo.schema import FusionOperation, ReactorMetric
from tests.fusion.reactors import make_reactor

QUESTION = Input("Capital?", reference="Paris")
near = pytest.approx


def test_gain_is_over_the_best_member_so_far(database):
    said = {"a": "Rome", "b": "Paris"}
    reactor = make_reactor(
        database, {each: lambda _, each=each: said[each] for each in said}, members={"a": {"weight": 2}}
    )
    first = reactor.run(QUESTION)
    # Nothing is known yet: a has the greater weight, and it decides.
    assert (first.figures.quality, first.figures.gain, first.figures.oracle_gap) == (0, 0, 1)
    assert [call.quality for call in first.calls] == [0, 1]
    # Now b was better, and is what the reactor is measured by.
    assert reactor.run(QUESTION).figures.gain == -1
    said["a"] = "paris."
    assert reactor.run(QUESTION).figures.gain == 0
    with database.session() as session:
        metric = session.query(ReactorMetric).filter_by(operation_id=first.operation_id).one()
        assert (metric.quality, metric.gain, metric.oracle_gap) == (0, 0, 1)
        assert session.get_one(FusionOperation, first.operation_id).members[1].quality == 1


def test_another_process_knows_who_was_best(database):
    answers = {"a": "Rome", "b": "Paris"}
    make_reactor(database, answers, members={"a": {"weight": 2}}).run(QUESTION)
    from arc_halo.fusion.reactor import Reactor  # noqa: PLC0415

    other = Reactor(database, "reactor", {name: (lambda _, text=text: text) for name, text in answers.items()})
    assert other.run(QUESTION).figures.gain == -1


def test_agreement_is_measured_without_a_reference(database):
    figures = make_reactor(database, {"a": "yes", "b": "Yes.", "c": "no"}).run("?").figures
    assert figures.quality is figures.gain is None
    assert 0 < figures.coherence < 1
    assert 0 < figures.diversity < 1
    same = make_reactor(database, {"a": "yes", "b": "yes"}, name="same").run("?").figures
    assert (same.coherence, same.diversity) == (near(1), near(0))
    assert make_reactor(database, {"a": "yes"}, name="single").run("?").figures.coherence is None


def test_vectors_are_compared_where_there_are_some(database):
    vectors = {"?": [1, 1], "a": [1, 0], "b": [0, 1]}
    reactor = make_reactor(
        database, {"x": "a", "y": "b"}, embed=lambda texts: np.array([vectors[each] for each in texts], np.float32)
    )
    figures = reactor.run("?").figures
    assert (figures.coherence, figures.diversity) == (near(0), near(1))


@pytest.mark.parametrize("given", [{"scorer": lambda *_: 1 / 0}, {"scorer": lambda *_: float("nan")}])
def test_a_scorer_that_fails_loses_no_operation(database, given):
    outcome = make_reactor(database, {"a": "x"}, **given).run("?")
    assert outcome.figures.quality is None
    with database.session() as session:
        row = session.get_one(FusionOperation, outcome.operation_id)
        assert [each["kind"] for each in row.trace] == ["not_measured"]


def test_an_embedding_that_fails_loses_no_operation(database):
    outcome = make_reactor(database, {"a": "x", "b": "y"}, embed=lambda _: 1 / 0).run("?")
    assert outcome.text
    unmeasured = [each["what"] for each in outcome.trace if each["kind"] == "not_measured"]
    assert unmeasured == ["input_vector", "coherence, diversity"]
    assert outcome.figures.is_empty


def test_each_text_is_scored_once(database):
    scored = []
    reactor = make_reactor(
        database, {"a": "x", "b": "x", "c": "y"}, scorer=lambda given, text: scored.append(text) or len(given.prompt)
    )
    assert reactor.run("??").figures.quality == 2
    assert sorted(scored) == ["x", "y"]
