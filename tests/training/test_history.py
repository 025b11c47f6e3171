from __future__ import annotations

import datetime as dt
import math

import numpy as np
import pytest

from arc_halo.errors import MetricError, MetricNotFound, RunNotFound
from arc_halo.training.history import HISTORY, history
from arc_halo.training.points import SeriesKey
from tests.schema.rows import NOON, add_attempt, add_model, add_run
from tests.training.recorded import add_forked_run, add_points, seal, statements

EXPECTED = [*range(10), *range(110, 120)]


@pytest.fixture
def attempt(session):
    return add_attempt(session, add_run(session, add_model(session, "small"), "tune"))


@pytest.mark.parametrize("is_sealed", [False, True])
def test_the_line_has_each_step_once(session, is_sealed):
    points = history(session, add_forked_run(session, is_sealed=is_sealed), "loss")
    assert points.dtype == HISTORY
    assert points["step"].tolist() == list(range(20))
    assert points["value"].tolist() == EXPECTED
    assert points["attempt_number"].tolist() == [0] * 6 + [1] * 4 + [2] * 10


def test_the_line_of_an_older_attempt(session):
    points = history(session, add_forked_run(session), "loss", attempt=1)
    assert points["step"].tolist() == list(range(14))
    assert points["value"].tolist() == list(range(14))


def test_sealed_and_later_points_together(session, attempt):
    values = np.random.default_rng(0).standard_normal(10_000)
    seal(session, add_points(session, attempt, range(10_000), values), 8_000)
    points = history(session, "small/tune", "loss")
    assert points["step"].tolist() == list(range(10_000))
    np.testing.assert_array_equal(points["value"], values)
    assert points["recorded_at"][-1] == np.datetime64(NOON.replace(tzinfo=None) + dt.timedelta(seconds=9_999), "us")


def test_values_are_as_they_were(session, attempt):
    values = [math.nan, math.inf, -math.inf, -0.0, 5e-324]
    seal(session, add_points(session, attempt, [0, 1, 2, 3, 2**63 - 1], values), 2)
    points = history(session, "small/tune", "loss")
    assert points["value"].tobytes() == np.array(values).tobytes()
    assert points["step"][-1] == 2**63 - 1
    assert np.isnan(points["epoch"]).all()


@pytest.mark.parametrize(
    "asked",
    [
        {"metric": "loss", "scope": "validation", "context": {"rank": 1, "set": "a b"}},
        {"metric": 'validation/loss {"set": "a b", "rank":1}'},
        {"metric": SeriesKey("loss", "validation", '{"rank":1,"set":"a b"}')},
    ],
)
def test_scope_and_context_tell_series_apart(session, attempt, asked):
    add_points(session, attempt, [1], [1.0])
    add_points(session, attempt, [2], [2.0], scope="validation")
    add_points(session, attempt, [3], [3.0], scope="validation", context={"rank": 1, "set": "a b"})
    assert history(session, "small/tune", **asked)["step"].tolist() == [3]
    assert history(session, "small/tune", "validation/loss")["step"].tolist() == [2]
    assert history(session, "small/tune", "loss")["step"].tolist() == [1]


def test_a_name_may_look_like_a_scope(session, attempt):
    add_points(session, attempt, [1], [1.0], name="test/f1")
    assert history(session, "small/tune", "test/f1")["step"].tolist() == [1]


def test_as_a_frame(session, attempt):
    add_points(session, attempt, [0, 1], [2.0, 1.0])
    frame = history(session, "small/tune", "loss", as_frame=True)
    assert frame.index.name == "step"
    assert frame["value"].tolist() == [2.0, 1.0]
    assert frame["recorded_at"].iloc[0] == NOON


def test_a_series_without_points(session, attempt):
    add_points(session, attempt, [], [])
    assert history(session, "small/tune", "loss").shape == (0,)


def test_what_is_not_there(session, attempt):
    add_points(session, attempt, [1], [1.0])
    with pytest.raises(MetricNotFound, match="small@1/tune has no metric 'los'; it has train/loss"):
        history(session, "small/tune", "los")
    with pytest.raises(RunNotFound, match="small@1/tune has no attempt 7; it has 0"):
        history(session, "small/tune", "loss", attempt=7)
    with pytest.raises(RunNotFound):
        history(session, "small/nothing", "loss")
    with pytest.raises(MetricError, match="no JSON"):
        history(session, "small/tune", "train/loss {rank: 1}")


def test_it_takes_two_statements(session):
    run = add_forked_run(session)
    with statements(session) as sent:
        history(session, run, "loss")
    assert len(sent) == 2
