import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_halo.codecs.ordering import from_ordered, to_ordered, unsigned
from arc_halo.dtypes import DTYPES, by_name

EVERY = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
SORTABLE = ("U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "F32", "F64")


@EVERY
@settings(deadline=None)
@given(data=st.data())
def test_any_bits_come_back(dtype, data):
    raw = data.draw(st.binary(min_size=dtype.component_nbytes, max_size=64))
    bits = np.frombuffer(raw[: len(raw) // dtype.component_nbytes * dtype.component_nbytes], unsigned(dtype))
    out = bytearray(bits.nbytes)
    from_ordered(to_ordered(bits, dtype), dtype, memoryview(out))
    assert bytes(out) == bits.tobytes()


@pytest.mark.parametrize("name", SORTABLE)
@settings(deadline=None)
@given(data=st.data())
def test_they_sort_as_the_numbers_do(name, data):
    dtype = by_name(name)
    width = dtype.component_nbytes
    raw = data.draw(st.binary(min_size=2 * width, max_size=32 * width).filter(lambda raw: len(raw) % width == 0))
    numbers = np.frombuffer(raw, dtype.numpy)
    numbers = np.sort(numbers[~np.isnan(numbers)]) if dtype.is_float else np.sort(numbers)
    ordered = to_ordered(numbers.view(unsigned(dtype)), dtype)
    differ = numbers[1:] > numbers[:-1]
    assert (ordered[1:][differ] > ordered[:-1][differ]).all()
