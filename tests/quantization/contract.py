"""What holds for every quantisation scheme."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from arc_halo.dtypes import of_array
from arc_halo.errors import TensorError
from arc_halo.quantization import Deviation, Quantized
from tests.fixtures.tensors import same, weights

SHAPES = [(), (0,), (1,), (5,), (64,), (65,), (3, 0), (0, 4), (4, 64), (3, 129), (2, 3, 70)]
# Subclasses inherit the methods, each run by an executor of its own.
inherited = settings(suppress_health_check=[HealthCheck.differing_executors])
FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
usual = st.floats(-1e6, 1e6, width=32).filter(lambda number: number == 0 or abs(number) > 1e-6)


def matrices(elements=finite):
    shapes = npst.array_shapes(min_dims=2, max_dims=2, max_side=80)
    return npst.arrays(np.float32, shapes, elements=elements, fill=st.just(0))


class SchemeTests:
    """A scheme's test inherits these; ``scheme`` is what is tested."""

    scheme = None

    def again(self, array):
        return self.scheme.dequantize(self.scheme.quantize(array), array.shape)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_parts_have_the_types_and_shapes_that_are_promised(self, shape):
        array = weights(shape)
        codes, scale = self.scheme.quantize(array)
        assert (of_array(codes), codes.shape) == (self.scheme.codes_dtype, self.scheme.codes_shape(shape))
        assert (scale.dtype, scale.shape) == (np.float32, self.scheme.scale_shape(shape))
        restored = self.again(array)
        assert (restored.dtype, restored.shape) == (np.float32, shape)

    @pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
    def test_floats_of_16_bits_and_more(self, dtype):
        array = weights((5, 70), dtype=dtype)
        assert same(self.again(array), self.again(array.astype(np.float32)))

    @pytest.mark.parametrize("dtype", [np.int8, np.bool_, np.complex64, ml_dtypes.float8_e4m3fn])
    def test_nothing_else_is_quantised(self, dtype):
        with pytest.raises(TensorError, match="cannot be quantised"):
            self.scheme.quantize(np.zeros((2, 2), dtype))

    @pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_has_no_code(self, number):
        array = weights((4, 64))
        array[2, 3] = number
        with pytest.raises(TensorError, match="NaN and infinity"):
            self.scheme.quantize(array)

    def test_a_number_beyond_float32_has_no_code(self):
        with pytest.raises(TensorError, match="NaN and infinity"):
            self.scheme.quantize(np.array([1e300]))

    def test_rows_of_zeros_stay_zeros(self):
        array = weights((4, 64))
        array[1] = 0
        array[2] = -0.0
        restored = self.again(array)
        assert not restored[1:3].any()
        assert restored[0].any()

    @pytest.mark.parametrize("size", [1, 7, 13])
    def test_rows_do_not_know_of_each_other(self, size):
        array = weights((13, 100))
        parts = [self.scheme.quantize(array[first : first + size]) for first in range(0, 13, size)]
        whole = self.scheme.quantize(array)
        assert same(np.concatenate([part.codes for part in parts]), whole.codes)
        assert same(np.concatenate([part.scale for part in parts]), whole.scale)

    def test_strides_do_not_matter(self):
        array = weights((70, 30))
        assert same(self.again(array.T), self.again(array.T.copy()))

    @inherited
    @given(matrices())
    def test_the_largest_number_of_each_row_is_kept_nearly(self, array):
        largest = np.abs(array).max(axis=1).astype(np.float64)
        restored = np.abs(self.again(array)).max(axis=1)
        assert (np.abs(restored - largest) <= largest / 2**14 + 2**-149 * 256).all()

    @inherited
    @given(matrices(usual))
    def test_signs_are_kept(self, array):
        assert (self.again(array) * array >= 0).all()

    @inherited
    @given(npst.arrays(np.float32, 64, elements=finite))
    def test_order_is_kept(self, row):
        assert (np.diff(self.again(np.sort(row))) >= 0).all()

    @inherited
    @given(matrices())
    def test_the_mirror_image_has_the_same_largest_number(self, array):
        assert same(self.scheme.quantize(-array).scale, self.scheme.quantize(array).scale)

    @pytest.mark.parametrize("columns", [63, 64, 65, 129])
    def test_parts_that_do_not_fit_are_refused(self, columns):
        codes, scale = self.scheme.quantize(weights((3, 100)))
        for wrong in (Quantized(codes, scale), Quantized(codes[:2], scale), Quantized(scale, codes)):
            with pytest.raises(TensorError, match="not what stands for"):
                self.scheme.dequantize(wrong, (3, columns))

    def deviation(self, array):
        measured = Deviation()
        measured.add(array, self.again(array))
        return measured
