from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from arc_halo.formats.safetensors import SafetensorsFile
from arc_halo.store import ArraySource, FileSource
from tests.fixtures.tensors import arrays, same, weights


def read(source, start, nbytes):
    buffer = memoryview(bytearray(nbytes))
    source.read_into(start, buffer)
    return bytes(buffer)


@given(arrays(), st.data())
def test_any_span_of_an_array_is_that_of_its_bytes(array, data):
    source = ArraySource("a", array)
    whole = array.astype(array.dtype.newbyteorder("<")).tobytes()
    start = data.draw(st.integers(0, source.nbytes))
    stop = data.draw(st.integers(start, source.nbytes))
    assert read(source, start, stop - start) == whole[start:stop]
    assert (source.shape, source.nbytes) == (array.shape, len(whole))


def test_an_array_in_order_is_not_copied():
    array = weights((100, 100))
    source = ArraySource("a", array)
    array[0, 0] = 7
    assert same(np.frombuffer(read(source, 0, 4), np.float32), np.float32([7]))


def test_any_span_of_a_tensor_in_a_file(tmp_path):
    array = weights((10, 7))
    save_file({"b": weights((3,)), "a": array}, tmp_path / "x.safetensors")
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        source = FileSource(file, file.tensors["a"])
        assert (source.name, source.dtype.name, source.shape, source.nbytes) == ("a", "F32", (10, 7), 280)
        assert read(source, 13, 200) == array.tobytes()[13:213]
