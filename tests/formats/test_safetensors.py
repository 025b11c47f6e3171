import contextlib
import os
import struct
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from arc_halo.dtypes import by_name
from arc_halo.errors import PickleRefused, SafetensorsError, SliceError
from arc_halo.formats.safetensors import (
    PICKLE_SUFFIXES,
    SafetensorsFile,
    aligned_order,
    build_header,
    refuse_pickle,
)

ONE = b'{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


def file_bytes(text, data=bytes(8)):
    return struct.pack("<Q", len(text)) + text + data


def one(**fields):
    """A file of one tensor, ``{"dtype":"F32","shape":[2],"data_offsets":[0,8]}`` but for these fields."""
    merged = {"dtype": b'"F32"', "shape": b"[2]", "data_offsets": b"[0,8]", **fields}
    inner = b",".join(b'"%s":%s' % (key.encode(), value) for key, value in merged.items() if value is not None)
    return file_bytes(b'{"a":{' + inner + b"}}")


def two(first, second, nbytes=16):
    """A file of two tensors of eight bytes at these offsets."""
    entry = b'"%s":{"dtype":"F32","shape":[2],"data_offsets":[%d,%d]}'
    return file_bytes(b"{" + entry % (b"a", *first) + b"," + entry % (b"b", *second) + b"}", bytes(nbytes))


def named(name):
    return file_bytes(b'{"' + name + b'":' + ONE + b"}")


FAULTS = {
    "empty": (b"", "0 bytes"),
    "one byte": (b"\x08", "1 bytes"),
    "seven bytes": (bytes(7), "7 bytes"),
    "header length 0": (bytes(8), "header of 0 bytes"),
    "header length past the end": (struct.pack("<Q", 100) + b"{}", "header of 100 bytes, in a file of 10"),
    "header length 2**63": (struct.pack("<Q", 2**63) + b"{}", "header of 9223372036854775808"),
    "header length 100,000,001": (struct.pack("<Q", 100_000_001) + b"{}", "header of 100000001"),
    "not UTF-8": (named(b"\xff\xfe"), "UTF-8"),
    "byte order mark": (file_bytes(b"\xef\xbb\xbf{}", b""), "does not begin with '{'"),
    "not JSON": (file_bytes(b"{dtype", b""), "expected a string"),
    "array": (file_bytes(b"[]", b""), "does not begin with '{'"),
    "null": (file_bytes(b"null", b""), "does not begin with '{'"),
    "blank before": (file_bytes(b" {}", b""), "does not begin with '{'"),
    "unclosed": (file_bytes(b'{"a":' + ONE), "ends where"),
    "more after": (file_bytes(b"{}{}", b""), "goes on"),
    "nesting 100k": (file_bytes(b'{"a":' + b"[" * 100_000), "expected '{'"),
    "nesting 100k in a shape": (one(shape=b"[" * 100_000), "integers"),
    "duplicate name": (file_bytes(b'{"a":' + ONE + b',"a":' + ONE + b"}"), "'a' stands twice"),
    "duplicate name in disguise": (file_bytes(b'{"a":' + ONE + b',"\\u0061":' + ONE + b"}"), "'a' stands twice"),
    "shape [0, 2**63]": (one(shape=b"[0,9223372036854775808]"), "above 2"),
    "shape [0, 2**62]": (one(shape=b"[0,4611686018427387904]", data_offsets=b"[0,0]"), "beyond 2"),
    "rank 10,001": (one(shape=b"[" + b"1," * 10_000 + b"2]"), "more than 32"),
    "name empty": (named(b""), "is empty"),
    "name with NUL": (named(b"a\\u0000b"), "control characters"),
    "name with an escape sequence": (named(b"\\u001b[2J"), "control characters"),
    "name ../": (named(b"../../etc/passwd"), "leads out"),
    "name with a backslash path": (named(b"a\\\\..\\\\b"), "leads out"),
    "name absolute": (named(b"/etc/passwd"), "leads out"),
    "name 1 MB long": (named(b"a" * 1_000_000), "longer than 1024"),
    "name with half a surrogate": (named(b"\\ud800"), "UTF-8"),
    "name with a wrong escape": (named(b"\\x"), "escape"),
    "dtype missing": (one(dtype=None), "lacks dtype"),
    "shape missing": (one(shape=None), "lacks shape"),
    "data_offsets missing": (one(data_offsets=None), "lacks data_offsets"),
    "field too many": (one(strides=b"[1]"), "unknown field 'strides'"),
    "field twice": (file_bytes(b'{"a":{"dtype":"F32","dtype":"F32"}}'), "dtype twice"),
    "bool dimension": (one(shape=b"[true]"), "integers"),
    "float dimension": (one(shape=b"[2.0]"), "integers"),
    "exponent dimension": (one(shape=b"[2e0]"), "integers"),
    "leading zero": (one(shape=b"[02]"), "integers"),
    "trailing comma": (one(shape=b"[2,]"), "integers"),
    "negative dimension": (one(shape=b"[-2]"), "integers"),
    "huge dimension": (one(shape=b"[" + b"9" * 5000 + b"]"), "integers"),
    "shape of another kind": (one(shape=b'"2"'), "integers"),
    "form feed in a shape": (one(shape=b"[\f2]"), "integers"),
    "vertical tab after a dimension": (one(shape=b"[2\v]"), "integers"),
    "form feed after a comma": (one(data_offsets=b"[0,\f8]"), "integers"),
    "form feed between fields": (file_bytes(b'{"a":\f' + ONE + b"}"), "expected '{'"),
    "offsets overlapping": (two((0, 8), (4, 12), 12), "'b' at byte .* overlaps 'a'"),
    "offsets overlapping the same": (two((0, 8), (0, 8), 8), "overlaps"),
    "offsets with a hole": (two((0, 8), (12, 20), 20), "'b' at byte .* leaves a hole after 'a'"),
    "offsets with a hole in front": (one(data_offsets=b"[4,12]"), "leaves a hole after the header"),
    "offsets reversed": (one(data_offsets=b"[8,0]"), "reversed"),
    "offsets past the end": (two((0, 8), (8, 16), 8), "ends at byte .* cut short"),
    "offsets one": (one(data_offsets=b"[8]"), "two numbers, here 1"),
    "offsets three": (one(data_offsets=b"[0,4,8]"), "more than 2"),
    "offsets above 2**63": (one(data_offsets=b"[0,18446744073709551615]"), "integers"),
    "offsets not dtype x shape": (one(shape=b"[3]"), "takes 12 bytes, its data_offsets 8"),
    "product overflow": (one(shape=b"[4294967296,4294967296,4294967296]"), "beyond 2"),
    "product wraps to the truth": (one(shape=b"[4611686018427387906]"), "beyond 2"),
    "part of a byte": (one(dtype=b'"F4"', shape=b"[3]"), "no whole number of bytes"),
    "trailing bytes": (file_bytes(b'{"a":' + ONE + b"}", bytes(9)), "1 bytes follow"),
    "bytes after no tensor": (file_bytes(b"{}", b"x"), "1 bytes follow"),
    "truncated data": (file_bytes(b'{"a":' + ONE + b"}", bytes(7)), "cut short"),
    "unknown dtype": (one(dtype=b'"F128"'), "unknown dtype 'F128'"),
    "metadata null": (file_bytes(b'{"__metadata__":null}', b""), "expected '{'"),
    "metadata of numbers": (file_bytes(b'{"__metadata__":{"a":1}}', b""), "expected a string"),
    "metadata twice": (file_bytes(b'{"__metadata__":{},"__metadata__":{}}', b""), "stands twice"),
    "metadata key twice": (file_bytes(b'{"__metadata__":{"a":"","a":""}}', b""), "'a' twice"),
    "metadata with NUL": (file_bytes(b'{"__metadata__":{"a":"\\u0000"}}', b""), "NUL"),
}


@pytest.fixture
def write(tmp_path):
    def write_file(content, name="model.safetensors"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write_file


@pytest.fixture
def good(write):
    return write(file_bytes(b'{"a":' + ONE + b"}", bytes(range(8))))


@pytest.mark.parametrize("case", FAULTS)
def test_a_faulty_file_is_refused_with_the_reason(case, write):
    content, reason = FAULTS[case]
    path = write(content)
    with pytest.raises(SafetensorsError, match=reason) as refused:
        SafetensorsFile(path)
    assert str(path) in str(refused.value)
    assert "again" in str(refused.value)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_000])
def test_a_lying_length_is_refused_at_once(length, write):
    path = write(struct.pack("<Q", length) + b"{}")
    started = time.perf_counter()
    with pytest.raises(SafetensorsError):
        SafetensorsFile(path)
    assert time.perf_counter() - started < 0.01


def test_a_file_is_closed_when_it_is_refused(write):
    before = len(list(Path("/dev/fd").iterdir()))
    with pytest.raises(SafetensorsError):
        SafetensorsFile(write(b""))
    assert len(list(Path("/dev/fd").iterdir())) == before


@pytest.mark.parametrize("suffix", [*sorted(PICKLE_SUFFIXES), ".PT"])
def test_pickles_are_refused_by_name(suffix, write):
    path = write(file_bytes(b"{}", b""), f"model{suffix}")
    for refuse in (refuse_pickle, SafetensorsFile):
        with pytest.raises(PickleRefused, match="weights_only=True"):
            refuse(path)


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04" + bytes(60), b"\x80\x02}q\x00.", b"\x80\x04\x95\x05" + bytes(7), b"\x80\x05"]
)
def test_pickles_are_refused_by_content(content, write):
    path = write(content)
    for refuse in (refuse_pickle, SafetensorsFile):
        with pytest.raises(PickleRefused, match="first bytes"):
            refuse(path)


def test_a_header_length_that_looks_like_a_pickle_is_none(write):
    path = write(struct.pack("<Q", 0x0280) + b"{}".ljust(0x0280))
    refuse_pickle(path)
    with SafetensorsFile(path) as file:
        assert not file.tensors


def test_a_missing_file_is_named(tmp_path):
    refuse_pickle(tmp_path / "model.safetensors")
    with pytest.raises(SafetensorsError, match=r"model\.safetensors cannot be opened: No such file"):
        SafetensorsFile(tmp_path / "model.safetensors")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_regular_file_is_refused(make, tmp_path):
    path = tmp_path / "model.safetensors"
    make(path)
    with pytest.raises(SafetensorsError, match="no regular file"):
        SafetensorsFile(path)


def test_a_link_to_a_file_is_fine(good, tmp_path):
    (tmp_path / "link.safetensors").symlink_to(good)
    with SafetensorsFile(tmp_path / "link.safetensors") as file:
        assert list(file.tensors) == ["a"]


def test_a_file_is_described(good):
    with SafetensorsFile(good) as file:
        entry = file.tensors["a"]
        assert (entry.name, entry.dtype, entry.shape, entry.nbytes) == ("a", by_name("F32"), (2,), 8)
        assert entry.offset == len(file.header_bytes)
        assert file.size == entry.offset + 8 == good.stat().st_size
        assert good.read_bytes().startswith(file.header_bytes)
        assert "1 tensors" in repr(file)


@pytest.mark.parametrize(("start", "count"), [(0, 8), (3, 2), (8, 0), (0, 0)])
def test_any_bytes_of_a_tensor_are_read(start, count, good):
    buffer = bytearray(count)
    with SafetensorsFile(good) as file:
        file.read_into(file.tensors["a"], start, buffer)
    assert buffer == bytes(range(8))[start : start + count]


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (0, 9), (9, 0), (2**63, 1)])
def test_bytes_outside_a_tensor_are_not(start, count, good):
    with SafetensorsFile(good) as file, pytest.raises(SliceError, match="0:8"):
        file.read_into(file.tensors["a"], start, bytearray(count))


def test_a_file_truncated_while_it_is_read(good):
    with SafetensorsFile(good) as file:
        os.truncate(good, file.size - 1)
        with pytest.raises(SafetensorsError, match="truncated while being read"):
            file.read_into(file.tensors["a"], 0, bytearray(8))


def test_a_closed_file_is_not_read(good):
    with SafetensorsFile(good) as file:
        entry = file.tensors["a"]
    file.close()
    with pytest.raises(SafetensorsError, match="cannot be read"):
        file.read_into(entry, 0, bytearray(8))


def test_short_reads_are_continued(good, monkeypatch):
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: preadv(fd, [views[0][:3]], offset))
    buffer = bytearray(8)
    with SafetensorsFile(good) as file:
        file.read_into(file.tensors["a"], 0, buffer)
    assert buffer == bytes(range(8))


def test_threads_share_a_file(tmp_path):
    arrays = {f"layer.{number}": np.full((500, 7), number, "<f4") for number in range(16)}
    save_file(arrays, tmp_path / "m.safetensors")
    wrong = []

    def read(file, name):
        buffer = bytearray(file.tensors[name].nbytes)
        file.read_into(file.tensors[name], 0, buffer)
        if buffer != arrays[name].tobytes():
            wrong.append(name)

    with SafetensorsFile(tmp_path / "m.safetensors") as file:
        threads = [threading.Thread(target=read, args=(file, name)) for name in arrays]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_header_order_and_data_order_are_both_kept(write):
    path = write(two((8, 16), (0, 8)))
    with SafetensorsFile(path) as file:
        assert list(file.tensors) == ["a", "b"]
        assert [entry.name for entry in file.in_data_order()] == ["b", "a"]


def test_empty_tensors_stand_anywhere_between_others(write):
    entry = b'"%s":{"dtype":"F32","shape":[%d],"data_offsets":[%d,%d]}'
    parts = [(b"a", 0, 8, 8), (b"b", 2, 0, 8), (b"c", 0, 0, 0), (b"d", 2, 8, 16), (b"e", 0, 16, 16)]
    path = write(file_bytes(b"{" + b",".join(entry % part for part in parts) + b"}", bytes(16)))
    with SafetensorsFile(path) as file:
        assert [entry.name for entry in file.in_data_order()] == ["c", "b", "a", "d", "e"]


def test_blanks_and_escapes_are_read_as_json(write):
    text = b'{ "__metadata__" : { "a\\n" : "\\u00fc\\ud83d\\ude00" } ,\n\t"a" : {"shape" : [ 1 , 2 ] , '
    text += b'"data_offsets":[0,8 ],\r"dtype": "F32" } }   '
    with SafetensorsFile(write(file_bytes(text))) as file:
        assert file.metadata == {"a\n": "ü😀"}
        assert file.tensors["a"].shape == (1, 2)


def test_a_written_header_is_read_by_the_reference(tmp_path):
    tensors = aligned_order([("b", by_name("U8"), (3,)), ("ü", by_name("F64"), (2, 2)), ("a", by_name("U8"), ())])
    header = build_header(tensors, {"format": "np"})
    assert [name for name, _, _ in tensors] == ["ü", "a", "b"]
    assert len(header) % 8 == 0
    (tmp_path / "m.safetensors").write_bytes(header + np.arange(4.0).tobytes() + b"\x07\x01\x02\x03")
    loaded = load_file(tmp_path / "m.safetensors")
    assert loaded["ü"].tolist() == [[0, 1], [2, 3]]
    assert (loaded["a"].tolist(), loaded["b"].tolist()) == (7, [1, 2, 3])


@pytest.mark.parametrize(
    "tensors",
    [
        [("a", by_name("F32"), (2,)), ("a", by_name("F32"), (2,))],
        [("../a", by_name("F32"), (2,))],
        [("__metadata__", by_name("F32"), (2,))],
        [("a", by_name("F4"), (3,))],
        [("a", by_name("F32"), (1,) * 33)],
    ],
    ids=["twice", "path", "reserved", "part of a byte", "rank"],
)
def test_a_header_that_would_be_refused_is_not_written(tensors):
    with pytest.raises(SafetensorsError):
        build_header(tensors)


MANY_ENTRIES = b",".join(b'"%06d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % number for number in range(5_000))
MANY_STRINGS = b",".join(b'"%06d":"\xc3\xa9\xe2\x82\xac"' % number for number in range(15_000))


@pytest.mark.parametrize(
    "text",
    [
        b"{" + MANY_ENTRIES + b"}",
        b'{"__metadata__":{' + MANY_STRINGS + b"}}",
        b'{"__metadata__":{"a":"\\n' + "😀".encode() * 250_000 + b'"}}',
        b'{"a":{"shape":[' + b"[]," * 300_000 + b"1]}}",
        b'{"a":{"shape":[' + b"257," * 250_000 + b"1]}}",
        b'{"a":' + b"[" * 1_000_000,
        b'{"' + b"\\n" * 500_000 + b'":1}',
    ],
    ids=["entries", "strings", "one wide string", "lists", "integers", "nesting", "escapes"],
)
def test_memory_is_proportional_to_the_header(text, write):
    path = write(file_bytes(text, b""))
    tracemalloc.start()
    try:
        with contextlib.suppress(SafetensorsError), SafetensorsFile(path):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= 12 * len(text)
