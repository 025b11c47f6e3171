from __future__ import annotations

import numpy as np
from hypothesis import given

from arc_halo.quantization.abc import exact_scale
from arc_halo.quantization.int8 import Int8
from tests.fixtures.tensors import same, weights
from tests.quantization.contract import SchemeTests, finite, inherited, matrices


class TestInt8(SchemeTests):
    scheme = Int8()
    largest_code = 127
    top_step = 0.5

    def test_what_was_written_is_read_for_ever(self):
        array = np.array([[0.5, -1.0, 0.25, 0.0], [2.54, 1.27, -0.02, 0.0]], np.float32)
        codes, scale = self.scheme.quantize(array)
        assert codes.tolist() == [[63, -127, 32, 0], [127, 63, -1, 0]]
        assert scale.view(np.uint32).tolist() == [[0x3C010300], [0x3CA3D800]]

    @inherited
    @given(matrices())
    def test_no_number_moves_by_more_than_half_a_scale(self, array):
        codes, scale = self.scheme.quantize(array)
        moved = np.abs(self.again(array).astype(np.float64) - array)
        assert (moved <= scale.astype(np.float64) * (0.5 + 2**-16)).all()
        assert codes.min(initial=0) >= -127

    def test_whole_numbers_times_a_short_scale_are_kept_to_the_bit(self):
        codes = np.random.default_rng(0).integers(-127, 128, (32, 200)).astype(np.int8)
        codes[:, 0] = 127
        exact = codes.astype(np.float32) * np.ldexp(np.float32(1.171875), -np.arange(32))[:, None]
        assert same(self.scheme.quantize(exact).codes, codes)
        assert same(self.again(exact), exact.astype(np.float32))

    def test_the_cost_on_numbers_like_weights(self):
        measured = self.deviation(weights((256, 384)))
        assert 0.999_95 < measured.cosine < 1
        assert measured.relative < 0.01


@inherited
@given(matrices(finite.map(abs)))
def test_products_of_scales_and_codes_are_exact(array):
    for largest, codes in ((127, np.arange(128)), (448, np.array([1, 15, 240, 448]))):
        scale = exact_scale(array.reshape(-1), largest)[:, None]
        products = scale.astype(np.float64) * codes
        assert (products.astype(np.float32) == products).all()
