"""What holds for every quantisation scheme."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from arc_halo.dtypes import of_array
from arc_halo.errors import TensorError
from arc_halo.quantization import Deviation, Quantized
from tests.fixtures.tensors import same, weights

SHAPES = [(), (0,), (1,), (5,), (64,), (65,), (3, 0), (0, 4), (4, 64), (3, 129), (2, 3, 70)]
# Subclasses inherit the methods, each run by an executor of its own; a deadline would judge the machine.
inherited = settings(deadline=None, suppress_health_check=[HealthCheck.differing_executors])
FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
tiny = st.integers(-(2**17), 2**17).map(lambda units: units * 2.0**-149)
usual = st.floats(-1e6, 1e6, width=32).filter(lambda number: number == 0 or abs(number) > 1e-6)


def matrices(elements=finite):
    shapes = npst.array_shapes(min_dims=2, max_dims=2, max_side=80)
    return npst.arrays(np.float32, shapes, elements=elements, fill=st.just(0))


# Below this scales have one bit; see `exact_scale`.
FEW_BITS = 2.0**-134


class SchemeTests:
    """A scheme's test inherits these.

    ``scheme`` is what is tested, ``largest_code`` the number that its largest code stands for, and ``top_step`` half
    of the way from there to the code below.
    """

    scheme = None
    largest_code = None
    top_step = None

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
    @example(np.array([[9.16064e-40]], np.float32))
    @example(np.array([[3.4e38, -3.4028235e38]], np.float32))
    def test_the_largest_number_of_each_row_moves_by_the_rounding_of_its_scale(self, array):
        """By 2**-15 of itself; where the scale has one bit it may be twice as large as asked: then as any other."""
        array = array[:, :64]  # a scale for each row
        largest = np.abs(array).max(axis=1).astype(np.float64)
        scale = self.scheme.quantize(array).scale[:, 0].astype(np.float64)
        moved = np.abs(np.abs(self.again(array)).max(axis=1) - largest)
        has_few_bits = largest / self.largest_code < FEW_BITS
        assert (moved <= np.where(has_few_bits, scale * self.top_step, largest * 2**-15)).all()

    @inherited
    @given(matrices(finite | tiny))
    @example(np.array([[507 * 2.0**-149]], np.float32))
    def test_quantised_again_it_is_the_same_to_the_bit(self, array):
        once = self.again(array)
        assert same(self.again(once), once)

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

    @pytest.mark.parametrize("number", [np.nan, np.inf])
    def test_scales_that_are_not_finite_stand_for_nothing_that_is(self, number):
        codes, scale = self.scheme.quantize(weights((3, 10)))
        scale[1] = number
        restored = self.scheme.dequantize(Quantized(codes, scale), (3, 10))
        assert np.isfinite(restored).all(axis=1).tolist() == [True, False, True]

    def deviation(self, array):
        measured = Deviation()
        measured.add(array, self.again(array))
        return measured
