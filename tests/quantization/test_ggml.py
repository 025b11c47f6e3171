import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arc_halo.dtypes import BLOCK_DTYPES, by_name
from arc_halo.errors import QuantizationError
from arc_halo.quantization.ggml import DEQUANTIZABLE, dequantize_blocks
from tests.fixtures.gguf_models import SCALE_PLACES

relaxed = settings(deadline=None)
# What float16 has beside ordinary numbers: infinities, NaNs with payloads, subnormals, zeros.
SCALES = st.sampled_from([0x7C00, 0xFC00, 0x7E00, 0xFE01, 0x7C01, 0x0001, 0x83FF, 0x0000, 0x8000, 0x3C00, 0x7BFF])


def reference(blocks, name):
    with np.errstate(all="ignore"):
        return dequantize(blocks, gguf.GGMLQuantizationType[name]).reshape(-1)


def same_bits(ours, theirs):
    """Equal to the bit, but for the payloads of NaNs, which no arithmetic promises."""
    numbers = ~np.isnan(theirs)
    return (
        ours.dtype == theirs.dtype == np.float32
        and np.array_equal(np.isnan(ours), ~numbers)
        and np.array_equal(ours.view(np.uint32)[numbers], theirs.view(np.uint32)[numbers])
    )


@pytest.mark.parametrize("name", DEQUANTIZABLE)
@relaxed
@given(st.data())
def test_any_blocks_are_the_numbers_of_the_reference(name, data):
    nbytes = by_name(name).bits // 8
    blocks = data.draw(hnp.arrays(np.uint8, st.tuples(st.integers(1, 5), st.just(nbytes))))
    assert same_bits(dequantize_blocks(blocks, by_name(name)), reference(blocks, name))


@pytest.mark.parametrize("name", DEQUANTIZABLE)
@relaxed
@given(st.data())
def test_scales_that_are_no_ordinary_numbers(name, data):
    nbytes = by_name(name).bits // 8
    blocks = data.draw(hnp.arrays(np.uint8, (2, nbytes)))
    for place in SCALE_PLACES[name]:
        blocks[:, place : place + 2] = np.array([[data.draw(SCALES)], [data.draw(SCALES)]], "<u2").view(np.uint8)
    assert same_bits(dequantize_blocks(blocks, by_name(name)), reference(blocks, name))


@pytest.mark.parametrize("name", DEQUANTIZABLE)
def test_a_million_random_numbers_are_those_of_the_reference(name):
    nbytes, elements = by_name(name).bits // 8, by_name(name).block_elements
    blocks = np.random.default_rng(7).integers(0, 256, (2**20 // elements, nbytes), np.uint8)
    assert same_bits(dequantize_blocks(blocks, by_name(name)), reference(blocks, name))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_weights_come_back_near(name):
    weights = np.random.default_rng(3).standard_normal((8, 256)).astype(np.float32)
    blocks = quantize(weights, gguf.GGMLQuantizationType[name])
    restored = dequantize_blocks(blocks, by_name(name)).reshape(weights.shape)
    assert np.abs(restored - weights).max() < {"4": 0.5, "5": 0.25, "8": 0.03}[name[1]]


def test_an_infinite_scale_makes_infinities_and_nan_where_the_code_is_zero():
    block = np.zeros(34, np.uint8)
    block[:2] = np.array([np.inf], "<f2").view(np.uint8)
    block[2:5] = [1, 255, 0]
    numbers = dequantize_blocks(block, by_name("Q8_0"))
    assert np.isposinf(numbers[0])
    assert np.isneginf(numbers[1])
    assert np.isnan(numbers[2:]).all()


def test_no_blocks_are_no_numbers():
    assert dequantize_blocks(b"", by_name("Q4_K")).size == 0


@pytest.mark.parametrize("name", [*sorted(set(BLOCK_DTYPES) - set(DEQUANTIZABLE)), "F32"])
def test_other_types_are_refused_by_name(name):
    with pytest.raises(QuantizationError, match=f"{name} cannot be dequantised"):
        dequantize_blocks(bytes(512), by_name(name))
