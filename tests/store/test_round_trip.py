from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arc_halo.errors import TensorError
from arc_halo.store import ArraySource, get_arrays
from tests.fixtures.tensors import NUMPY_DTYPES, VIEWS, arrays, get, put, random_array, same, weights

# Each example is a savepoint of the one transaction that the fixture rolls back.
in_one_transaction = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
BIG = {
    "rows of 1.2 MB": (np.float32, (3, 300_000)),
    "one row of several chunks": (np.uint16, (1, 1_700_001)),
    "rows that do not fill a chunk": (ml_dtypes.bfloat16, (5000, 333)),
    "stacked matrices": (np.float16, (3, 700, 500)),
    "bytes": (np.uint8, (2**20 + 1,)),
    "wide elements": (np.complex64, (2**17 + 3,)),
}


@in_one_transaction
@given(st.lists(arrays(), max_size=4), st.sampled_from(["none", "fast", "balanced", "dense"]))
def test_what_is_put_comes_back_to_the_bit(session, given_arrays, policy):
    wanted = put(session, *given_arrays, compression=policy)
    for each, array in zip(get_arrays(session, wanted), given_arrays, strict=True):
        assert same(each, array)


@pytest.mark.parametrize("case", BIG)
def test_tensors_of_several_chunks(session, case):
    array = random_array(*BIG[case])
    (wanted,) = put(session, array)
    assert same(get(session, wanted), array)


@pytest.mark.parametrize("policy", ["none", "fast", "balanced", "dense"])
def test_compressed_weights_of_several_chunks(session, policy):
    given_arrays = [weights((1100, 300), 1), weights((900, 700), 2, ml_dtypes.bfloat16), np.arange(400_000)]
    for wanted, array in zip(put(session, *given_arrays, compression=policy), given_arrays, strict=True):
        assert same(get(session, wanted), array)


@pytest.mark.parametrize("dtype", NUMPY_DTYPES, ids=str)
def test_empty_and_scalar(session, dtype):
    given_arrays = [np.empty((0,), dtype), np.empty((3, 0, 2), dtype), random_array(dtype, ())]
    for wanted, array in zip(put(session, *given_arrays), given_arrays, strict=True):
        assert same(get(session, wanted), array)


@pytest.mark.parametrize("view", VIEWS)
def test_an_array_is_stored_as_its_elements_whatever_its_strides(session, view):
    array = VIEWS[view](weights((6, 8)))
    plain, strided = put(session, np.array(array, order="C"), array)
    assert plain.tensor_id == strided.tensor_id


@pytest.mark.parametrize(
    "dtype", [object, "U3", "S3", "M8[s]", np.complex128, np.longdouble, [("a", "f4"), ("b", "i4")]], ids=str
)
def test_an_array_without_a_name_for_its_elements_is_refused(dtype):
    with pytest.raises(TensorError, match="convert to one of"):
        ArraySource("a", np.zeros(2, dtype))


def test_reading_may_stop_in_the_middle(session):
    wanted = put(session, *(weights((600, 600), seed) for seed in range(4)))
    first = next(get_arrays(session, wanted))
    assert same(first, weights((600, 600), 0))
    assert same(get(session, wanted[3]), weights((600, 600), 3))
