from __future__ import annotations

import datetime as dt
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from arc_halo.schema import RunMetric
from arc_halo.training.history import history
from arc_halo.training.summaries import summarize_runs
from tests.schema.rows import NOON, add_attempt, add_model, add_run
from tests.training.recorded import add_forked_run, add_points, seal, statements

FIGURES = (
    *("goal", "point_count", "nan_count", "first_step", "last_step", "last_value"),
    *("min_value", "min_at_step", "max_value", "max_at_step", "best_value"),
)
VALUES = st.sampled_from([0.0, 1.0, 2.0, 3.0, -1.0, math.nan, math.inf, -math.inf])


def expected(points):
    """What a loop over the history finds."""
    values = points["value"]
    known = np.flatnonzero(~np.isnan(values))
    low = known[values[known].argmin()] if len(known) else None
    high = known[values[known].argmax()] if len(known) else None
    return {
        "point_count": len(points),
        "nan_count": int(np.isnan(values).sum()),
        "first_step": points["step"][0],
        "last_step": points["step"][-1],
        "last_value": values[-1],
        "min_value": None if low is None else values[low],
        "min_at_step": None if low is None else points["step"][low],
        "max_value": None if high is None else values[high],
        "max_at_step": None if high is None else points["step"][high],
    }


@st.composite
def lines(draw):
    """Attempts as (parent, fork step, points), each the child of an earlier one."""
    count = draw(st.integers(1, 4))
    attempts = []
    for number in range(count):
        parent = draw(st.integers(0, number - 1)) if number and draw(st.booleans()) else None
        fork = None if parent is None else draw(st.integers(0, 12))
        points = draw(st.dictionaries(st.integers(0, 15), VALUES, max_size=10))
        attempts.append((parent, fork, {step: points[step] for step in sorted(points)}))
    return attempts


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(attempts=lines(), is_sealed=st.booleans())
def test_a_summary_is_that_of_the_history(session, attempts, is_sealed):
    with session.begin_nested() as savepoint:
        run = add_run(session, add_model(session, "small"), "tune")
        for number, (parent, fork, points) in enumerate(attempts):
            attempt = add_attempt(session, run, number, parent_number=parent, fork_step=fork)
            series = add_points(session, attempt, list(points), list(points.values()), goal="maximize")
            if is_sealed:
                seal(session, series)
        points = history(session, run, "loss")
        metrics = summarize_runs(session, [run.id])[run.id]
        summary = metrics.get("loss")
        view = session.scalars(select(RunMetric).where(RunMetric.training_session_id == run.id)).one_or_none()
        session.expunge_all()
        savepoint.rollback()
    assert (summary is None) == (view is None) == (len(points) == 0)
    np.testing.assert_equal(metrics.last_values, {name: each.last_value for name, each in metrics.items()})
    assert metrics.goals == {name: each.goal for name, each in metrics.items()}
    if summary is not None:
        for name, value in expected(points).items():
            np.testing.assert_equal(getattr(summary, name), value, err_msg=name)
        for name in FIGURES:
            np.testing.assert_equal(getattr(view, name), getattr(summary, name), err_msg=name)


def test_a_run_with_forks(session):
    run = add_forked_run(session)
    summary = summarize_runs(session, [run.id])[run.id]["loss"]
    assert (summary.metric, summary.goal) == ("train/loss", "minimize")
    assert (summary.point_count, summary.last_value, summary.max_value) == (20, 119, 119)
    assert (summary.best_value, summary.best_at_step) == (0, 0)
    assert summary.last_recorded_at == NOON + dt.timedelta(seconds=9)


def test_metrics_are_found_by_their_names(session):
    attempt = add_attempt(session, add_run(session, add_model(session, "small"), "tune"))
    for columns in ({}, {"scope": "validation"}, {"context": {"rank": 1}}):
        add_points(session, attempt, [1], [1.0], **columns)
    metrics = summarize_runs(session, [attempt.training_session_id])[attempt.training_session_id]
    assert list(metrics) == ["train/loss", 'train/loss {"rank": 1}', "validation/loss"]
    assert sorted(metrics.last_values) == list(metrics)
    assert metrics["loss"] == metrics["train/loss"]
    with pytest.raises(KeyError):
        metrics["accuracy"]


@pytest.mark.parametrize(("count", "expected_statements"), [(1, 2), (5, 2)])
def test_statements_do_not_grow_with_runs(session, count, expected_statements):
    runs = [add_forked_run(session, f"run{number}").id for number in range(count)]
    with statements(session) as sent:
        found = summarize_runs(session, runs)
    assert len(sent) == expected_statements
    assert [len(found[each]) for each in runs] == [1] * count


def test_a_run_without_points(session):
    run = add_run(session, add_model(session, "small"), "tune")
    assert dict(summarize_runs(session, [run.id])[run.id]) == {}
