from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as npst

from arc_halo.quantization.nf4 import QUANTILES, NormalFloat4
from tests.fixtures.tensors import same, weights
from tests.quantization.contract import SchemeTests, inherited, matrices, usual

# As printed in arXiv:2305.14314, appendix E.
PUBLISHED = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def test_the_quantiles_are_those_of_the_paper():
    assert QUANTILES.tolist() == PUBLISHED


def test_the_quantiles_are_those_of_a_normal_distribution():
    """Eight of the positive half with zero, seven of the negative one, scaled to 1."""
    offset = 0.9677083
    quantile = NormalDist().inv_cdf
    positive = [quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    negative = [-quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    derived = np.array(sorted([*positive, 0.0, *negative])) / max(positive)
    np.testing.assert_allclose(QUANTILES, derived, atol=1e-6)


class TestNormalFloat4(SchemeTests):
    scheme = NormalFloat4()
    largest_code = 1
    top_step = 0

    def test_what_was_written_is_read_for_ever(self):
        codes, scale = self.scheme.quantize(QUANTILES[None] * np.float32(0.5))
        assert codes.tobytes() == bytes.fromhex("0123456789abcdef")
        assert scale.tolist() == [[0.5]]

    def test_blocks_are_64_numbers_of_a_row(self):
        array = weights((3, 130))
        array[1, 64:128] *= 100
        scale = self.scheme.quantize(array).scale
        assert scale.shape == (3, 3)
        assert same(scale, np.stack([np.abs(array[:, at : at + 64]).max(axis=1) for at in (0, 64, 128)], axis=1))

    def test_an_odd_row_ends_in_half_a_byte(self):
        codes, _ = self.scheme.quantize(np.array([[1, -1, 1]], np.float32))
        assert codes.tolist() == [[0xF0, 0xF7]]

    @inherited
    @given(npst.arrays(np.float32, (2, 64), elements=usual))
    def test_each_number_becomes_the_nearest(self, array):
        scale = np.abs(array).max(axis=1, keepdims=True).astype(np.float64)
        apart = np.abs(self.again(array) - array)
        nearest = np.abs(QUANTILES.astype(np.float64) * scale[..., None] - array[..., None]).min(axis=2)
        np.testing.assert_allclose(apart, nearest, rtol=1e-5, atol=scale.max() * 1e-6)

    @inherited
    @given(matrices(usual))
    def test_quantised_again_it_has_the_same_codes(self, array):
        assert all(map(same, self.scheme.quantize(self.again(array)), self.scheme.quantize(array)))

    @pytest.mark.parametrize("code", range(15))
    def test_halfway_the_lower_is_taken(self, code):
        halfway = (QUANTILES[code] + QUANTILES[code + 1]) / 2
        codes, _ = self.scheme.quantize(np.array([1, halfway], np.float32))
        assert codes[0] & 15 == code

    def test_the_cost_on_numbers_like_weights(self):
        measured = self.deviation(weights((256, 384)))
        assert 0.995 < measured.cosine < 0.997
        assert measured.relative < 0.1
