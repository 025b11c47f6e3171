"""Matrices packed and unpacked, bit for bit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import CacheError
from arc_halo.inference.attention import pack_matrix, unpack_matrix
from tests.inference.patterns import attention

DTYPES = [np.dtype(each) for each in (np.float32, np.float16, np.float64, ml_dtypes.bfloat16)]


@st.composite
def matrices(draw, *, causal=False):
    """Any bits at all: NaN with payloads, negative zeros."""
    dtype, count = draw(st.sampled_from(DTYPES)), draw(st.integers(1, 9))
    bits = draw(st.binary(min_size=count * count * dtype.itemsize, max_size=count * count * dtype.itemsize))
    matrix = np.frombuffer(bits, dtype).reshape(count, count).copy()
    if causal:
        matrix[~np.tri(count, dtype=bool)] = 0
    return matrix


@given(matrices() | matrices(causal=True))
def test_every_bit_comes_back(matrix):
    again = unpack_matrix(pack_matrix(matrix))
    assert (again.dtype, again.shape, again.tobytes()) == (matrix.dtype, matrix.shape, matrix.tobytes())


@given(matrices(causal=True))
def test_of_a_causal_matrix_the_triangle_is_stored_row_by_row(matrix):
    expected = [matrix[i, j] for i in range(len(matrix)) for j in range(i + 1)]
    assert pack_matrix(matrix).tobytes() == np.array(expected, matrix.dtype).tobytes()


@pytest.mark.parametrize("above", [1e-30, -0.0, np.nan])
def test_a_matrix_with_anything_above_the_diagonal_is_stored_whole(above):
    matrix = np.tri(3, dtype=np.float32)
    matrix[0, 2] = above
    assert pack_matrix(matrix).shape == (3, 3)


def test_a_matrix_may_have_any_strides():
    turned = attention(1, 6)[0].T[::-1]
    np.testing.assert_array_equal(unpack_matrix(pack_matrix(turned)), turned)


@pytest.mark.parametrize("shape", [(4,), (1, 1, 1)])
def test_what_is_neither_a_matrix_nor_a_triangle_is_refused(shape):
    with pytest.raises(CacheError, match="neither a matrix nor the triangle"):
        unpack_matrix(np.zeros(shape, np.float32))
