from __future__ import annotations

import datetime as dt
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from arc_halo.errors import MetricError, MetricNotFound, RunNotFound
from arc_halo.schema import Embedding, TrainingProgress, TrainingSession
from arc_halo.training.runs import describe_runs
from arc_halo.training.searching import CURVE_DIMENSION, curve_shape, find_runs, find_similar_runs, index_curves
from tests.schema.rows import add_attempt, add_checkpoint, add_model, add_run
from tests.training.recorded import add_forked_run, add_points, statements

STEPS = np.arange(2000)
CURVES = {
    "falls": np.exp(-STEPS / 300),
    "falls too": 5 + 3 * np.exp(-STEPS / 310),
    "rises": 1 - np.exp(-STEPS / 300),
    "spikes": np.exp(-STEPS / 300) + np.where(STEPS // 50 == 20, 3.0, 0.0),
    "flat": np.full(len(STEPS), 3.0),
}


def names(runs):
    return [run.name for run in runs]


@pytest.fixture
def model(session):
    return add_model(session, "small")


@pytest.fixture
def runs(session, model):
    """Three runs, each with a loss that ends higher than that of the run before."""
    made = []
    for number, (name, status) in enumerate([("first", "completed"), ("second", "failed"), ("third", "completed")]):
        config = {"lr": 10.0**-number, "optimizer": {"name": "adam", "beta": [0.9, 0.99]}, "a.b": number}
        run = add_run(session, model, name, status=status, config=config)
        loss = [3.0, 1.0 - number / 10, 2.0 + number]
        add_points(session, add_attempt(session, run), [0, 1, 2], loss, goal="minimize")
        made.append(run)
    return made


@pytest.mark.usefixtures("runs")
def test_the_newest_comes_first(session):
    assert names(find_runs(session)) == ["third", "second", "first"]
    assert names(find_runs(session, limit=2)) == ["third", "second"]


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"status": "failed"}, ["second"]),
        ({"status": ["failed", "running"]}, ["second"]),
        ({"name": "*ir*"}, ["third", "first"]),
        ({"name": "t%d"}, []),
        ({"name": "first"}, ["first"]),
        ({"model": "small"}, ["third", "second", "first"]),
        ({"model": "small@2"}, []),
        ({"config": {"lr": 0.1}}, ["second"]),
        ({"config": {"optimizer.name": "adam", "lr": 1}}, ["first"]),
        ({"config": {"a.b": 2}}, ["third"]),
        ({"config": {"optimizer": {"name": "sgd"}}}, []),
        ({"metrics": ["loss < 3.5"]}, ["second", "first"]),
        ({"metrics": ["loss >= 3", "min(loss) < 0.85"]}, ["third"]),
        ({"metrics": ["best(train/loss) = 0.9"]}, ["second"]),
        ({"metrics": ["max(loss) != 3"]}, ["third"]),
        ({"metrics": ["loss > 9"]}, []),
        ({"order_by": "best(loss)"}, ["third", "second", "first"]),
        ({"order_by": "last(loss)", "limit": 1}, ["first"]),
        ({"order_by": "best(loss)", "descending": True}, ["first", "second", "third"]),
        ({"where": TrainingSession.name > "g"}, ["third", "second"]),
    ],
)
def test_runs_are_found(session, asked, expected):
    assert names(find_runs(session, **asked)) == expected


def test_figures_follow_the_line(session):
    add_forked_run(session)
    assert names(find_runs(session, metrics=["max(loss) = 119", "loss = 119", "best(loss) = 0"])) == ["tune"]


@pytest.mark.usefixtures("runs")
def test_runs_without_the_figure_come_last(session, model):
    add_run(session, model, "empty")
    assert names(find_runs(session, order_by="loss", descending=True)) == ["third", "second", "first", "empty"]


def test_what_is_told_of_a_run(session):
    run = add_forked_run(session)
    add_checkpoint(session, run.attempts[-1], 15)
    add_checkpoint(session, run.attempts[-1], 17, status="pending", published_at=None)
    (found,) = find_runs(session)
    assert (found.run, found.status, found.attempt_count, found.checkpoint_count) == ("tune@1/tune", "running", 3, 1)
    assert (found.attempt_number, found.attempt_status, found.current_step) == (2, "running", 19)
    assert found.heartbeat_age_seconds >= 0
    assert (found.steps_per_second, found.remaining_seconds) == (None, None)  # started this very moment
    assert found.metrics["loss"].last_value == 119
    assert "<th" in find_runs(session)._repr_html_()
    assert "119" not in find_runs(session)._repr_html_()


def test_the_pace_is_that_of_the_view(session):
    run = add_forked_run(session)
    attempt = run.attempts[-1]
    attempt.heartbeat_at = attempt.started_at + dt.timedelta(seconds=5)
    session.flush()
    (found,) = find_runs(session)
    view = session.get(TrainingProgress, run.id)
    assert (
        (found.steps_per_second, found.remaining_seconds)
        == (view.steps_per_second, view.remaining_seconds)
        == (2, 40.5)
    )


def test_a_run_without_attempts_is_found(session, model):
    add_run(session, model, "new")
    (found,) = find_runs(session)
    assert (found.attempt_number, found.attempt_count, len(found.metrics)) == (None, 0, 0)


@pytest.mark.usefixtures("runs")
def test_statements_do_not_grow_with_runs(session):
    with statements(session) as sent:
        find_runs(session, config={"optimizer.name": "adam"}, metrics=["loss > 0"], order_by="loss")
    assert len(sent) == 3
    with statements(session) as sent:
        find_runs(session, status="failed")
    assert len(sent) == 2


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("asked", [{"metrics": ["loss > 0", "best(lass) < 2"]}, {"order_by": "max(lass)"}])
def test_a_metric_that_no_run_has_recorded(session, asked):
    with pytest.raises(MetricNotFound, match="no run has recorded 'lass'; did you mean loss"):
        find_runs(session, **asked)


@pytest.mark.parametrize("metric", ["validation/loss", 'loss {"rank": 1}'])
def test_a_metric_of_another_scope_or_context(session, model, metric):
    attempt = add_attempt(session, add_run(session, model, "first"))
    add_points(session, attempt, [0], [1.0])
    with pytest.raises(MetricNotFound, match="no run has recorded"):
        find_runs(session, order_by=metric)
    add_points(session, attempt, [0], [1.0], scope="validation")
    add_points(session, attempt, [0], [1.0], context={"rank": 1})
    assert names(find_runs(session, metrics=[f"{metric} = 1"], order_by=metric)) == ["first"]


def test_metrics_where_nothing_is_recorded(session):
    with pytest.raises(MetricNotFound, match="no run has recorded 'loss'; they have recorded nothing"):
        find_runs(session, order_by="loss")


def test_runs_are_described_in_their_order(session, runs):
    assert names(describe_runs(session, [runs[2], "small/first", runs[2].id])) == ["third", "first"]
    with pytest.raises(RunNotFound):
        describe_runs(session, ["small/none"])


@pytest.fixture
def curves(session, model):
    for name, values in CURVES.items():
        add_points(session, add_attempt(session, add_run(session, model, name)), STEPS, values)
    return [f"small/{name}" for name in CURVES]


def test_curves_alike_are_found(session, curves):
    assert index_curves(session, curves) == len(CURVES)
    found = find_similar_runs(session, "small/falls", k=3)
    assert [each.run for each in found] == ["small@1/falls too", "small@1/spikes", "small@1/flat"]
    assert found[0].similarity > 0.999
    assert find_similar_runs(session, "small/falls", k=9)[-1].similarity == pytest.approx(-1)
    assert "falls too" in found._repr_html_()


def test_an_index_is_renewed(session, curves):
    for _ in range(2):
        index_curves(session, curves[:2])
    assert len(session.scalars(select(Embedding.label).where(Embedding.kind == "run")).all()) == 2


def test_curves_of_other_metrics_are_no_matches(session, curves):
    index_curves(session, curves)
    add_points(
        session, add_attempt(session, add_run(session, add_model(session, "big"), "b")), [1, 2], [2, 1], name="f1"
    )
    assert find_similar_runs(session, "big/b", "f1") == []


def test_an_index_goes_with_its_run(session, curves):
    index_curves(session, curves)
    run = session.scalars(select(TrainingSession).where(TrainingSession.name == "flat")).one()
    session.delete(run)
    session.flush()
    owners = session.scalars(select(Embedding.owner_id).where(Embedding.kind == "run")).all()
    assert len(owners) == len(CURVES) - 1
    assert run.id not in owners


def test_what_has_no_curve(session, model):
    add_points(session, add_attempt(session, add_run(session, model, "nan")), [1, 2], [math.nan, math.inf])
    assert index_curves(session, ["small/nan"]) == 0
    with pytest.raises(MetricError, match="no finite value"):
        find_similar_runs(session, "small/nan")
    with pytest.raises(MetricNotFound):
        index_curves(session, ["small/nan"], "accuracy")


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=50))
def test_a_shape_is_a_direction(values):
    shape = curve_shape(np.arange(len(values)), np.array(values))
    assert shape.shape == (CURVE_DIMENSION,)
    assert np.linalg.norm(shape) == pytest.approx(1)


def test_shapes_know_neither_scale_nor_place():
    values = np.sin(STEPS / 200)
    assert curve_shape(STEPS, values) @ curve_shape(STEPS * 7 + 5, values * 40 - 3) == pytest.approx(1)
