from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import MetricError
from arc_halo.training.downsampling import BUCKET, as_blocks, bucket_points, lttb, merge_blocks, resample

VALUES = st.floats(width=64) | st.sampled_from([0.0, math.nan, math.inf, -math.inf, 1.7e308, -1.7e308, 5e-324])


@st.composite
def curves(draw, values=VALUES):
    steps = sorted(draw(st.sets(st.integers(0, 2**63 - 1) | st.integers(0, 300), max_size=200)))
    return np.array(steps, np.int64), np.array([draw(values) for _ in steps], np.float64)


def extremes(values):
    """Minimum and maximum as a loop finds them."""
    known = [each for each in values if not math.isnan(each)]
    return min(known, default=math.nan), max(known, default=math.nan)


def members(curve, bucket):
    steps, values = curve
    return values[(steps >= bucket["first_step"]) & (steps <= bucket["last_step"])]


@given(curves(), st.integers(1, 50))
def test_buckets_are_exact(curve, wanted):
    buckets = bucket_points(*curve, wanted)
    assert len(buckets) <= wanted
    assert buckets["point_count"].sum() == len(curve[0])
    for bucket in buckets:
        inside = members(curve, bucket)
        np.testing.assert_equal((bucket["min_value"], bucket["max_value"]), extremes(inside))
        np.testing.assert_equal(bucket["last_value"], inside[-1])
        assert bucket["point_count"] == len(inside)


@given(curves(), st.integers(1, 50))
def test_extremes_stand_where_they_are_said_to(curve, wanted):
    where = dict(zip(*(each.tolist() for each in curve), strict=True))
    for bucket in bucket_points(*curve, wanted):
        for name in ("min", "max"):
            np.testing.assert_equal(where[bucket[f"{name}_at_step"]], bucket[f"{name}_value"])


@given(curves(), st.integers(2, 9), st.integers(1, 50))
def test_blocks_make_the_buckets_of_their_points(curve, size, wanted):
    steps, values = curve
    parts = [bucket_points(steps[at : at + size], values[at : at + size], 1) for at in range(0, len(steps), size)]
    blocks = np.concatenate([*parts, np.empty(0, BUCKET)])
    merged = merge_blocks(blocks, wanted)
    assert len(merged) <= max(wanted, 0)
    assert merged["point_count"].sum() == len(steps)
    np.testing.assert_equal(extremes(merged["min_value"])[0], extremes(values)[0])
    np.testing.assert_equal(extremes(merged["max_value"])[1], extremes(values)[1])


def test_a_spike_of_one_point_in_a_million_is_drawn():
    values = np.zeros(1_000_000)
    values[[123_456, 654_321]] = (1e6, -1e6)
    buckets = bucket_points(np.arange(len(values)), values, 1000)
    assert len(buckets) == 1000
    assert buckets["max_at_step"][buckets["max_value"].argmax()] == 123_456
    assert buckets["min_at_step"][buckets["min_value"].argmin()] == 654_321


def test_few_points_are_their_own_buckets():
    points = np.array([3, 9]), np.array([math.nan, 1.0])
    assert bucket_points(*points, 2).tobytes() == as_blocks(*points).tobytes()


@given(curves(), st.integers(2, 60))
def test_lttb_takes_points_that_are_there(curve, wanted):
    steps, values = curve
    chosen = lttb(steps, values, wanted)
    finite = np.flatnonzero(np.isfinite(values))
    assert len(chosen) == min(wanted, len(finite))
    assert (np.diff(chosen) > 0).all()
    assert set(chosen) <= set(finite)
    if len(finite):
        assert (chosen[0], chosen[-1]) == (finite[0], finite[-1])


def reference(x, y, points):
    """The thesis's algorithm point by point, with the same edges of buckets."""
    edges = [*np.linspace(1, len(x) - 1, points - 1).astype(int).tolist(), len(x)]
    chosen = [0]
    for bucket in range(points - 2):
        following = range(edges[bucket + 1], edges[bucket + 2])
        mean = (sum(x[i] for i in following) / len(following), sum(y[i] for i in following) / len(following))
        a = chosen[-1]
        areas = [
            abs((x[a] - mean[0]) * (y[i] - y[a]) - (x[a] - x[i]) * (mean[1] - y[a]))
            for i in range(edges[bucket], edges[bucket + 1])
        ]
        chosen.append(edges[bucket] + areas.index(max(areas)))
    return [*chosen, len(x) - 1]


@given(st.integers(0, 2**32), st.integers(20, 300), st.integers(3, 20))
def test_lttb_takes_the_largest_triangles(seed, count, wanted):
    values = np.random.default_rng(seed).standard_normal(count)  # no two triangles are equally large
    steps = np.arange(count) * 4
    assert lttb(steps, values, wanted).tolist() == reference(steps.tolist(), values.tolist(), wanted)


@pytest.mark.parametrize(
    "call",
    [
        lambda: bucket_points(np.array([1, 1]), np.zeros(2)),
        lambda: bucket_points(np.array([2, 1]), np.zeros(2)),
        lambda: bucket_points(np.array([1, 2]), np.zeros(3)),
        lambda: bucket_points(np.array([1, 2]), np.zeros(2), 0),
        lambda: lttb(np.array([1, 2]), np.zeros(2), 1),
    ],
)
def test_what_is_no_curve_is_refused(call):
    with pytest.raises(MetricError):
        call()


@given(curves(st.floats(-1e300, 1e300) | st.sampled_from([math.nan, math.inf])), st.integers(1, 50))
def test_resampled_values_stay_within_the_curve(curve, length):
    steps, values = curve
    finite = values[np.isfinite(values)]
    resampled = resample(steps, values, length)
    assert len(resampled) == (length if len(finite) else 0)
    if len(finite):
        slack = 1e-9 * np.abs(finite).max()
        assert (resampled >= finite.min() - slack).all()
        assert (resampled <= finite.max() + slack).all()


def test_a_line_resampled_is_the_line():
    steps = np.arange(0, 100_000, 7)
    np.testing.assert_allclose(resample(steps, steps * 2.0, 384), np.linspace(0, steps[-1] * 2, 384), atol=300)


def test_what_is_missing_is_interpolated():
    np.testing.assert_allclose(resample(np.array([0, 10]), np.array([0.0, 1.0]), 11), np.linspace(0, 1, 11))
