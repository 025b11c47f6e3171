from __future__ import annotations

import math

import numpy as np
import pytest

from arc_halo.errors import MetricError, MetricNotFound
from arc_halo.training.curves import chart, charts
from arc_halo.training.downsampling import bucket_points
from tests.schema.rows import add_attempt, add_model, add_run
from tests.training.recorded import add_forked_run, add_points, seal, statements


@pytest.fixture
def attempt(session):
    return add_attempt(session, add_run(session, add_model(session, "small"), "tune"))


def spiky(count):
    values = np.random.default_rng(0).standard_normal(count)
    values[[count // 3, count // 2]] = 1e6, -1e6
    values[count // 4 : count // 4 + 200] = math.nan
    return values


@pytest.mark.parametrize("through", [-1, 4_999, 6_000, 9_999])
@pytest.mark.parametrize("buckets", [1, 7, 100, 1000])
def test_every_bucket_is_exact(session, attempt, through, buckets):
    steps, values = np.arange(10_000) * 3, spiky(10_000)
    series = add_points(session, attempt, steps, values)
    if through >= 0:
        seal(session, series, int(steps[through]))
    drawn = chart(session, "small/tune", "loss", buckets=buckets)
    assert len(drawn) <= buckets
    assert drawn["point_count"].sum() == 10_000
    for bucket in drawn:
        inside = values[(steps >= bucket["first_step"]) & (steps <= bucket["last_step"])]
        assert len(inside) == bucket["point_count"]
        if not np.isnan(inside).all():
            assert (bucket["min_value"], bucket["max_value"]) == (np.nanmin(inside), np.nanmax(inside))
        np.testing.assert_equal(bucket["last_value"], inside[-1])


def test_what_is_not_sealed_is_as_numpy_says(session, attempt):
    steps, values = np.arange(5_000), spiky(5_000)
    add_points(session, attempt, steps, values)
    assert chart(session, "small/tune", "loss", buckets=99).tobytes() == bucket_points(steps, values, 99).tobytes()


@pytest.mark.parametrize("is_sealed", [False, True])
def test_the_line_is_charted(session, is_sealed):
    drawn = chart(session, add_forked_run(session, is_sealed=is_sealed), "loss", buckets=1)
    assert (drawn["first_step"], drawn["last_step"], drawn["point_count"]) == ([0], [19], [20])
    assert (drawn["min_value"], drawn["max_value"], drawn["last_value"]) == ([0], [119], [119])


def test_curves_of_several_runs(session):
    runs = [add_forked_run(session, name) for name in ("one", "two")]
    add_points(session, runs[1].attempts[-1], [12], [0.5], name="accuracy", scope="validation")
    with statements(session) as sent:
        curves = charts(session, runs)
    assert len(sent) == 2
    assert [(each.run, each.metric) for each in curves] == [
        ("one@1/one", "train/loss"),
        ("two@1/two", "train/loss"),
        ("two@1/two", "validation/accuracy"),
    ]
    assert [each.goal for each in curves] == ["minimize", "minimize", None]
    assert [len(each.buckets) for each in curves] == [20, 20, 1]


def test_a_run_without_the_metric_is_left_out(session):
    runs = [add_forked_run(session, name) for name in ("one", "two")]
    add_points(session, runs[1].attempts[-1], [12], [0.5], name="accuracy")
    assert [each.run for each in charts(session, runs, ["accuracy"])] == ["two@1/two"]
    with pytest.raises(MetricNotFound):
        charts(session, runs, ["loss", "nothing"])


def test_no_bucket_is_refused(session):
    with pytest.raises(MetricError):
        chart(session, add_forked_run(session), "loss", buckets=0)
