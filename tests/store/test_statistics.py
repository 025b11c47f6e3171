from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arc_halo.dtypes import of_array
from arc_halo.store.statistics import Statistics, measure
from tests.fixtures.tensors import NUMPY_DTYPES, random_array, weights

NAMES = ("min_value", "max_value", "mean", "std", "l2_norm", "zero_fraction", "nan_count", "inf_count", "sketch")
MEASURED = [dtype for dtype in NUMPY_DTYPES if dtype != np.complex64]
floats = hnp.arrays(
    st.sampled_from([np.float16, np.float32, np.float64]), st.integers(1, 60), elements={"allow_subnormal": False}
)


def statistics(array, piece_sizes=(10**9,)):
    """What the store keeps of an array that streams by in pieces."""
    dtype = of_array(array)
    whole, start, flat = Statistics(), 0, np.ravel(array)
    for size in piece_sizes:
        piece = np.ascontiguousarray(flat[start : start + size])
        whole.merge(measure(memoryview(piece.view(np.uint8)), dtype, start))
        start += size
    return dict(zip(NAMES, whole.columns(), strict=True))


UNDERFLOW = 1e-160  # squares of less are subnormal


def expected(array):
    values = np.ravel(array).astype(np.float64)
    finite = values[np.isfinite(values)]
    found = {"nan_count": np.isnan(values).sum(), "inf_count": np.isinf(values).sum()}
    found["zero_fraction"] = (values == 0).mean()
    for name, function in {"min_value": np.min, "max_value": np.max, "mean": np.mean, "std": np.std}.items():
        found[name] = function(finite) if finite.size else None
    found["l2_norm"] = np.linalg.norm(finite) if finite.size else None
    return {name: value if value is None or np.isfinite(value) else None for name, value in found.items()}


def assert_close(found, wanted, scale):
    for name, value in wanted.items():
        if value is None:
            assert found[name] is None, name
        else:
            assert found[name] == pytest.approx(value, rel=1e-6, abs=max(1e-7 * scale, UNDERFLOW)), name


@settings(max_examples=150, deadline=None)
@given(floats)
def test_statistics_are_those_of_numpy_over_finite_elements(array):
    with np.errstate(all="ignore"):
        wanted = expected(array)
        largest = np.abs(np.nan_to_num(array.astype(np.float64), posinf=0, neginf=0)).max()
    if largest < 1e150:
        assert_close(statistics(array), wanted, largest)


@settings(max_examples=60, deadline=None)
@given(floats, st.lists(st.integers(1, 20), min_size=60, max_size=60))
def test_pieces_add_up_to_the_whole(array, sizes):
    whole, pieces = statistics(array), statistics(array, sizes)
    with np.errstate(all="ignore"):
        largest = np.abs(np.nan_to_num(array.astype(np.float64), posinf=0, neginf=0)).max()
    if largest < 1e150:
        assert_close(pieces, {name: whole[name] for name in NAMES[:-1]}, largest)


@pytest.mark.parametrize("dtype", MEASURED, ids=str)
def test_every_real_type_is_measured(dtype):
    array = random_array(dtype, (257,))
    with np.errstate(all="ignore"):
        assert_close(statistics(array, [100, 157]), expected(array), 1.0)


def test_complex_numbers_are_not_measured():
    assert set(statistics(np.ones(3, np.complex64)).values()) == {None}


def test_nothing_is_known_of_no_elements():
    assert set(statistics(np.empty(0, np.float32)).values()) == {None}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nothing_but_counts_is_known_of_no_finite_element(value):
    found = statistics(np.full(5, value, np.float32))
    assert found["nan_count"] + found["inf_count"] == 5
    assert [found[name] for name in ("min_value", "max_value", "mean", "std", "l2_norm", "sketch")] == [None] * 6


def test_what_overflows_is_left_out():
    found = statistics(np.array([1e300, -1e300, 1e308]))
    assert (found["min_value"], found["max_value"]) == (-1e300, 1e308)
    assert found["std"] is None
    assert found["l2_norm"] is None


def test_a_large_mean_does_not_hide_a_small_spread():
    array = 1e8 + np.random.default_rng(0).standard_normal(100_000)
    assert statistics(array, [30_000, 70_000])["std"] == pytest.approx(np.std(array), rel=1e-6)


def cosine(left, right):
    return float(statistics(left)["sketch"] @ statistics(right)["sketch"])


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_sketches_of_relatives_are_near_and_of_strangers_are_not(dtype):
    base = weights((300, 300), 1)
    tuned = np.asarray(base + weights((300, 300), 2) * 0.05, dtype)
    stranger = np.asarray(weights((300, 300), 3), dtype)
    assert cosine(np.asarray(base, dtype), tuned) > 0.95
    assert abs(cosine(np.asarray(base, dtype), stranger)) < 0.6


@pytest.mark.parametrize("sizes", [[4096, 90_000], [1000, 3096, 90_000], [5001, 4095, 90_000]])
def test_a_sketch_does_not_depend_on_where_a_tensor_is_cut(sizes):
    array = weights((90_000,))
    np.testing.assert_allclose(statistics(array, sizes)["sketch"], statistics(array)["sketch"], atol=1e-5)
