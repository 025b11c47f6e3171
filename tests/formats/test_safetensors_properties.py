import json
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from arc_halo.dtypes import DTYPES
from arc_halo.errors import FormatError, SafetensorsError
from arc_halo.formats.safetensors import SafetensorsFile, aligned_order, build_header

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

names = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20).filter(
    lambda name: name != "__metadata__" and name[0] not in "/\\" and ".." not in name
)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
metadata = st.dictionaries(texts, texts, max_size=3)
shapes = st.lists(st.integers(0, 5), max_size=4)
tensors = st.dictionaries(names, st.tuples(st.sampled_from(list(DTYPES.values())), shapes), max_size=6).map(
    lambda chosen: [
        (name, dtype, (*shape, 4) if dtype.bits < 8 else tuple(shape)) for name, (dtype, shape) in chosen.items()
    ]
)


@pytest.fixture
def opened(tmp_path):
    def open_bytes(content):
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        return SafetensorsFile(path)

    return open_bytes


def contents(file):
    """Name, type, shape and bytes of every tensor."""
    found = {}
    for entry in file.in_data_order():
        buffer = bytearray(entry.nbytes)
        file.read_into(entry, 0, buffer)
        found[entry.name] = (entry.dtype.name, list(entry.shape), bytes(buffer))
    return found


@relaxed
@given(tensors, metadata, st.randoms())
def test_what_we_write_the_reference_reads(opened, chosen, strings, random):
    header = build_header(aligned_order(chosen), strings)
    nbytes = sum(dtype.nbytes(int(np.prod(shape))) for _, dtype, shape in chosen)
    written = header + random.randbytes(nbytes)
    reference = {name: (view["dtype"], view["shape"], bytes(view["data"])) for name, view in deserialize(written)}
    with opened(written) as file:
        assert contents(file) == reference
        assert file.metadata == strings
        assert file.header_bytes == header


@relaxed
@given(tensors, metadata)
def test_what_the_reference_writes_we_read(opened, chosen, strings):
    known = [(name, dtype, shape) for name, dtype, shape in chosen if dtype.numpy in _REFERENCE_ARRAYS]
    arrays = {name: np.arange(np.prod(shape)).astype(dtype.numpy).reshape(shape) for name, dtype, shape in known}
    with opened(save(arrays, strings or None)) as file:
        assert file.metadata == strings
        expected = {name: (dtype.name, list(shape), arrays[name].tobytes()) for name, dtype, shape in known}
        assert contents(file) == expected


_REFERENCE_ARRAYS = {
    dtype.numpy
    for dtype in DTYPES.values()
    if dtype.numpy is not None and dtype.numpy.type.__module__ != ml_dtypes.__name__
}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=5) | st.sampled_from([*DTYPES]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {"dtype": st.sampled_from([*DTYPES]) | json_values, "shape": shapes | json_values},
    optional={"data_offsets": st.lists(st.integers(0, 64), min_size=2, max_size=2) | json_values, "more": json_values},
)
headers = st.dictionaries(st.text(max_size=6) | st.just("__metadata__"), entries | json_values, max_size=4)


@relaxed
@given(headers, st.integers(-2, 2), st.binary(max_size=64))
@example({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, 0, b"x")
def test_a_structured_header_is_read_as_the_reference_reads_it_or_refused(opened, header, lie, data):
    text = json.dumps(header).encode()
    content = struct.pack("<Q", max(len(text) + lie, 0)) + text + data
    try:
        with opened(content) as file:
            found = contents(file)
    except SafetensorsError:
        return
    assert found == {name: (view["dtype"], view["shape"], bytes(view["data"])) for name, view in deserialize(content)}


@relaxed
@given(tensors.filter(bool), st.data())
def test_a_damaged_file_is_read_as_the_reference_reads_it_or_refused(opened, chosen, data):
    header = build_header(aligned_order(chosen), {"format": "np"})
    damaged = bytearray(header + bytes(sum(dtype.nbytes(int(np.prod(shape))) for _, dtype, shape in chosen)))
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=4)):
        damaged[place] = data.draw(st.sampled_from(b'{}[]",:0123456789-.e \\ntf\x00\xff'))
    del damaged[data.draw(st.integers(0, len(damaged)) | st.just(len(damaged))) :]
    try:
        with opened(bytes(damaged)) as file:
            found = contents(file)
    except FormatError:
        return
    try:
        reference = deserialize(bytes(damaged))
    except SafetensorError as error:
        pytest.fail(f"accepted what the reference refuses: {error}")
    assert found == {name: (view["dtype"], view["shape"], bytes(view["data"])) for name, view in reference}


@relaxed
@given(st.binary(max_size=200))
def test_noise_is_refused(opened, noise):
    with pytest.raises(FormatError):
        opened(noise)
