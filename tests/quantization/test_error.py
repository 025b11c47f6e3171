from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.quantization import Deviation
from tests.fixtures.tensors import weights

BEFORE, AFTER = weights((40, 30), 1), weights((40, 30), 2)


def measured(*pairs):
    deviation = Deviation()
    for before, after in pairs:
        deviation.add(np.asarray(before, np.float32), np.asarray(after, np.float32))
    return deviation


def test_the_measures_are_those_of_numpy():
    found = measured((BEFORE, AFTER))
    before, after = BEFORE.astype(np.float64), AFTER.astype(np.float64)
    assert found.max_abs == np.abs(after - before).max()
    assert found.rms == pytest.approx(np.sqrt(np.mean((after - before) ** 2)))
    norms = np.linalg.norm(before) * np.linalg.norm(after)
    assert found.cosine == pytest.approx((before * after).sum() / norms)
    assert found.relative == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before))


@given(st.lists(st.integers(0, 40), max_size=5))
def test_blocks_do_not_matter(cuts):
    blocks = zip(np.split(BEFORE, sorted(cuts)), np.split(AFTER, sorted(cuts)), strict=True)
    assert measured(*blocks).figures() == pytest.approx(measured((BEFORE, AFTER)).figures())


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.sampled_from([1, 3, -7]))
def test_a_cosine_is_none_that_no_angle_has(numbers, factor):
    cosine = measured((numbers, np.array(numbers) * factor)).cosine
    assert cosine is None or -1 <= cosine <= 1


def test_of_nothing_nothing():
    assert measured().figures() == {"max_abs": 0, "rms": 0, "cosine": None, "relative": 0}
    assert measured((np.empty((0, 3)), np.empty((0, 3)))).figures() == measured().figures()


def test_from_zeros_to_numbers_is_infinitely_far():
    found = measured(([0, 0], [3, 4]))
    assert (found.cosine, found.relative) == (None, math.inf)
    assert found.figures()["relative"] is None


def test_what_is_not_finite_is_left_out():
    found = measured(([1, np.nan, np.inf, 2], [1, 5, 5, np.nan]))
    assert (found.count, found.max_abs) == (1, 0)


def test_squares_beyond_float64_have_no_figures_that_json_could_not_hold():
    deviation = Deviation()
    deviation.add(np.array([1e300, 1.0]), np.array([0.0, 1.0]))
    assert deviation.figures() == {"max_abs": 1e300, "rms": None, "cosine": None, "relative": None}
    deviation.add(np.array([1e308]), np.array([-1e308]))
    assert deviation.figures()["max_abs"] is None
