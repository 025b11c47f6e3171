from __future__ import annotations

import numpy as np
from hypothesis import given

from arc_halo.quantization.fp8 import Fp8
from tests.fixtures.tensors import weights
from tests.quantization.contract import SchemeTests, inherited, matrices


class TestFp8(SchemeTests):
    scheme = Fp8()
    largest_code = 448
    top_step = 16

    def test_what_was_written_is_read_for_ever(self):
        codes, scale = self.scheme.quantize(np.array([[448, -1.0, 0.3, 2**-9, 2**-11, 0, 17, 464]], np.float32) * 2)
        assert codes.view(np.uint8).tolist() == [[0x7E, 0xB7, 0x29, 0x01, 0x00, 0x00, 0x58, 0x7E]]
        assert scale.view(np.uint32).tolist() == [[0x40049300]]

    @inherited
    @given(matrices())
    def test_no_number_moves_by_more_than_a_sixteenth_of_itself_or_of_the_smallest(self, array):
        scale = self.scheme.quantize(array).scale.astype(np.float64)
        moved = np.abs(self.again(array).astype(np.float64) - array)
        allowed = np.maximum(np.abs(array.astype(np.float64)) / 16, scale * 2**-10)
        assert (moved <= allowed * (1 + 2**-14) + 2**-149 * 16).all()

    def test_the_cost_on_numbers_like_weights(self):
        measured = self.deviation(weights((256, 384)))
        assert 0.999_5 < measured.cosine < 1
        assert measured.relative < 0.03
