from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from arc_halo.errors import MetricError
from arc_halo.training.smoothing import ema

VALUES = st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf])


def loop(values, weight):
    """TensorBoard's, a value at a time."""
    last, seen, smooth = 0.0, 0, []
    for value in values:
        if math.isfinite(value):
            seen += 1
            last = last * weight + (1 - weight) * value
        smooth.append(last / (1 - weight**seen) if math.isfinite(value) else value)
    return smooth


@given(st.lists(VALUES, max_size=400), st.sampled_from([0.0, 0.1, 0.6, 0.9, 0.99, 0.999]))
def test_it_is_the_loop(values, weight):
    np.testing.assert_allclose(ema(np.array(values), weight), loop(values, weight), rtol=1e-9, atol=1e-6)


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(1, 300), st.floats(0, 0.999))
@example(value=5e-324, count=1, weight=0.5)
@example(value=-1.7e308, count=2, weight=0.5)
def test_what_is_constant_stays(value, count, weight):
    np.testing.assert_allclose(ema(np.full(count, value), weight), value, rtol=1e-9)


def test_long_curves_do_not_drift():
    values = np.random.default_rng(0).standard_normal(100_000)
    np.testing.assert_allclose(ema(values, 0.95), loop(values.tolist(), 0.95), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weight", [-0.1, 1.0, math.nan])
def test_weights_that_smooth_nothing_are_refused(weight):
    with pytest.raises(MetricError):
        ema(np.zeros(3), weight)


def test_it_smooths_one_curve():
    with pytest.raises(MetricError):
        ema(np.zeros((2, 2)))
