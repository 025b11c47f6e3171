import os
import pickle
import struct
import threading
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

from arc_halo.dtypes import BLOCK_DTYPES, DTYPES, by_name
from arc_halo.errors import GGUFError, PickleRefused, SliceError
from arc_halo.formats.gguf import GGUFFile
from arc_halo.formats.gguf_header import TYPE_NAMES
from arc_halo.formats.gguf_values import GGUFArray, array_values
from tests.fixtures.gguf import ARRAY, STRING, entry, file_bytes, header, padded, string, tensor, u32, u64

F32, Q8_0 = 0, 8
A = tensor("a", [2], F32, 0)
DATA = bytes(range(8))
PADDING = padded(header(tensors=[A]))[len(header(tensors=[A])) :]


def one(*, data=DATA, **options):
    """A file of one tensor of eight bytes."""
    return file_bytes(tensors=[A], data=data, **options)


def with_tensor(*args, data=bytes(64)):
    return file_bytes(tensors=[tensor(*args)], data=data)


def with_entry(raw):
    return file_bytes([raw], data=b"")


def two(first, second, nbytes=64):
    """Two tensors of eight bytes at these offsets."""
    return file_bytes(tensors=[tensor("a", [2], F32, first), tensor("b", [2], F32, second)], data=bytes(nbytes))


def aligned_to(value, kind="uint32"):
    return file_bytes([entry("general.alignment", kind, value)], [A], data=bytes(64))


def nested(depth):
    return string("a") + u32(ARRAY) + (u32(ARRAY) + u64(1)) * (depth - 1) + u32(0) + u64(1) + b"\1"


FAULTS = {
    "empty": (b"", "the magic number ends at byte 4, the file ends at 0"),
    "three bytes": (b"GGU", "magic number"),
    "bad magic": (one(magic=b"GGML"), "begins with b'GGML'"),
    "magic backwards": (one(magic=b"FUGG"), "begins with b'FUGG'"),
    "no version": (b"GGUF", "the version ends"),
    "version 0": (one(version=0), "version 0 is not known"),
    "version 1": (one(version=1), "version 1 is not known"),
    "version 4": (one(version=4), "version 4 is not known"),
    "version 99": (one(version=99), "version 99 is not known"),
    "byte-swapped": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "counts missing": (b"GGUF" + u32(3) + bytes(15), "metadata entries ends at byte 24"),
    "2**40 tensors": (one(counts=(2**40, 0)), "1099511627776 tensors"),
    "2**63 tensors": (one(counts=(2**63, 0)), "9223372036854775808 tensors"),
    "2**40 entries": (one(counts=(0, 2**40)), "1099511627776 metadata entries"),
    "2**63 entries": (one(counts=(1, 2**63)), "9223372036854775808 metadata entries"),
    "one tensor too many": (file_bytes(counts=(1, 0)), "announces 1 tensors"),
    "key of 2**60 bytes": (with_entry(u64(2**60) + b"a" * 20), "1152921504606846976 bytes long"),
    "key of 70,000 bytes": (with_entry(entry("a" * 70_000, "uint8", 1)), "at most 65535"),
    "key empty": (with_entry(entry("", "uint32", 1)), "is empty"),
    "key not UTF-8": (with_entry(entry(b"\xff", "uint32", 1)), "not UTF-8"),
    "key with an escape sequence": (with_entry(entry("\x1b[2J", "uint32", 1)), "cannot be printed"),
    "key twice": (file_bytes([entry("a", "uint8", 1), entry("a", "string", "b")]), "'a' stands twice"),
    "value of unknown type": (with_entry(string("a") + u32(13) + bytes(8)), "unknown type 13"),
    "value missing": (header([string("a") + u32(10) + b"\0"]), "value of 'a' ends"),
    "value neither true nor false": (with_entry(string("a") + u32(7) + b"\2"), "neither 0 nor 1"),
    "string of 2**60 bytes": (with_entry(string("a") + u32(STRING) + u64(2**60)), "1152921504606846976 bytes long"),
    "string past the end": (with_entry(string("a") + u32(STRING) + u64(99_999_999)), "the file ends at"),
    "string not UTF-8": (with_entry(entry("a", "string", b"\xff")), "not UTF-8"),
    "array of 2**40 strings": (with_entry(string("a") + u32(ARRAY) + u32(STRING) + u64(2**40)), "announces"),
    "array of 2**63 numbers": (with_entry(string("a") + u32(ARRAY) + u32(0) + u64(2**63)), "announces"),
    "array of 2**61 numbers": (with_entry(string("a") + u32(ARRAY) + u32(10) + u64(2**61)), "announces"),
    "array of 2**40 arrays": (with_entry(string("a") + u32(ARRAY) + u32(ARRAY) + u64(2**40)), "announces"),
    "array of unknown type": (with_entry(string("a") + u32(ARRAY) + u32(99) + u64(0)), "unknown type 99"),
    "array with a long string": (with_entry(string("a") + u32(ARRAY) + u32(STRING) + u64(1) + u64(2**60)), "ends at"),
    "array neither true nor false": (with_entry(string("a") + u32(ARRAY) + u32(7) + u64(3) + b"\0\1\2"), "neither 0"),
    "arrays five deep": (with_entry(nested(5)), "nested deeper than 4"),
    "arrays 100k deep": (with_entry(nested(100_000)), "nested deeper than 4"),
    "name empty": (with_tensor("", [2], F32, 0), "is empty"),
    "name with NUL": (with_tensor("a\0b", [2], F32, 0), "control characters"),
    "name ../": (with_tensor("../../etc/passwd", [2], F32, 0), "leads out"),
    "name of 2 kB": (with_tensor("a" * 2000, [2], F32, 0), "longer than 1024"),
    "name not UTF-8": (with_tensor(b"\xfe\xff", [2], F32, 0), "not UTF-8"),
    "name of 2**60 bytes": (file_bytes(tensors=[u64(2**60) + b"a" * 99], data=bytes(64)), "bytes long"),
    "name twice": (file_bytes(tensors=[A, tensor("a", [2], F32, 32)], data=bytes(64)), "'a' stands twice"),
    "five dimensions": (with_tensor("a", [1, 1, 1, 1, 2], F32, 0), "has 5 dimensions"),
    "2**32 - 1 dimensions": (file_bytes(tensors=[string("a") + u32(2**32 - 1)], data=bytes(99)), "4294967295 dim"),
    "dimension 2**63": (with_tensor("a", [2**63], F32, 0), "beyond 2"),
    "dimensions 0 and 2**63": (with_tensor("a", [0, 2**63], F32, 0), "beyond 2"),
    "product overflow": (with_tensor("a", [2**32, 2**32], F32, 0), "beyond 2"),
    "product wraps to the truth": (with_tensor("a", [2**62 + 2], F32, 0), "beyond 2"),
    "type 4, which was withdrawn": (with_tensor("a", [2], 4, 0), "unknown type 4"),
    "type 36, which was withdrawn": (with_tensor("a", [32], 36, 0), "unknown type 36"),
    "type 99": (with_tensor("a", [2], 99, 0), "unknown type 99"),
    "type 2**32 - 1": (with_tensor("a", [2], 2**32 - 1, 0), "unknown type 4294967295"),
    "row of half a block": (with_tensor("a", [48], Q8_0, 0), "no whole blocks"),
    "rows of half a block": (with_tensor("a", [16, 2], Q8_0, 0), "no whole blocks"),
    "scalar of blocks": (with_tensor("a", [], Q8_0, 0), "no whole blocks"),
    "offset unaligned": (two(0, 40), "not at a multiple of 32"),
    "offset 2**64 - 32": (with_tensor("a", [2], F32, 2**64 - 32), "not at a multiple of 32 inside any file"),
    "offset 2**63": (with_tensor("a", [2], F32, 2**63), "inside any file"),
    "offsets overlapping the same": (two(0, 0), "overlaps 'a'"),
    "offset in the middle": (
        file_bytes(tensors=[tensor("a", [16], F32, 0), tensor("b", [2], F32, 32)], data=bytes(96)),
        "'b' at byte .* overlaps 'a'",
    ),
    "offsets with a hole": (two(0, 64, 96), "leaves a hole after 'a'"),
    "offsets with a hole in front": (with_tensor("a", [2], F32, 32), "leaves a hole after the header"),
    "offset past the end": (two(0, 32, 39), "cut short"),
    "truncated data": (one(data=DATA[:-1]), "cut short"),
    "no data": (header(tensors=[A]), "cut short"),
    "trailing bytes": (one(data=bytes(33)), "1 bytes follow 'a'"),
    "bytes after no tensor": (file_bytes(data=b"x"), "1 bytes follow the header"),
    "padding of the header": (header(tensors=[A]) + PADDING[:-1] + b"\1" + DATA, "are not zero"),
    "padding between": (file_bytes(tensors=[A, tensor("b", [2], F32, 32)], data=DATA + b"\1" * 24 + DATA), "not zero"),
    "padding at the end": (one(data=DATA + bytes(23) + b"\1"), "not zero"),
    "alignment 0": (aligned_to(0), "no power of two"),
    "alignment 1": (aligned_to(1), "no power of two from 8"),
    "alignment 3": (aligned_to(3), "no power of two"),
    "alignment 2**31": (aligned_to(2**31), "no power of two from 8 to 65536"),
    "alignment of text": (aligned_to("32", "string"), "no power of two"),
    "alignment true": (aligned_to(True, "bool"), "no power of two"),
}  # fmt: skip
SLOW_IN_THE_REFERENCE = [case for case in FAULTS if "2**" in case or "deep" in case]


@pytest.fixture
def write(tmp_path):
    def write_file(content, name="model.gguf"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write_file


@pytest.mark.parametrize("case", FAULTS)
def test_a_faulty_file_is_refused_with_the_reason(case, write):
    content, reason = FAULTS[case]
    path = write(content)
    with pytest.raises(GGUFError, match=reason) as refused:
        GGUFFile(path)
    assert str(path) in str(refused.value)
    assert "again" in str(refused.value) or "convert" in str(refused.value)
    assert len(str(refused.value)) < 700
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("case", SLOW_IN_THE_REFERENCE)
def test_a_lying_count_or_length_is_refused_at_once_and_for_nothing(case, write):
    path = write(FAULTS[case][0])
    tracemalloc.start()
    try:
        started = time.perf_counter()
        with pytest.raises(GGUFError):
            GGUFFile(path)
        assert time.perf_counter() - started < 0.05  # 10 ms without the tracing
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("case", ["2**40 entries", "2**63 tensors", "string of 2**60 bytes", "array of 2**40 strings"])
def test_it_takes_less_than_ten_milliseconds(case, write):
    path = write(FAULTS[case][0])
    fastest = min(timed(path) for _ in range(5))
    assert fastest < 0.01


def timed(path):
    started = time.perf_counter()
    with pytest.raises(GGUFError):
        GGUFFile(path)
    return time.perf_counter() - started


def test_a_count_that_a_big_file_could_hold_is_refused_too(write):
    path = write(one(counts=(0, 2**24)))
    os.truncate(path, 1 << 40)  # a hole: no disk is used
    with pytest.raises(GGUFError, match="16777216 metadata entries"):
        GGUFFile(path)


def test_memory_is_bounded_by_the_header(write):
    names = [f"blk.{i}.attn_q.weight" for i in range(20_000)]
    tensors = [tensor(name, [8], F32, 32 * i) for i, name in enumerate(names)]
    tokens = entry("tokenizer.ggml.tokens", ["string"], [f"token {i}" for i in range(100_000)])
    raw = header([tokens], tensors)
    path = write(padded(raw) + bytes(32 * len(names)))
    tracemalloc.start()
    try:
        with GGUFFile(path) as file:
            assert len(file.tensors) == len(names)
        assert tracemalloc.get_traced_memory()[1] < 12 * len(raw)
    finally:
        tracemalloc.stop()


def test_a_file_is_closed_when_it_is_refused(write):
    before = len(list(Path("/dev/fd").iterdir()))
    with pytest.raises(GGUFError):
        GGUFFile(write(b""))
    assert len(list(Path("/dev/fd").iterdir())) == before


@pytest.mark.parametrize("content", [pickle.dumps({"a": 1}), b"PK\x03\x04" + bytes(60), b"\x80\x02}q\x00."])
def test_pickles_in_disguise_are_refused_with_advice(content, write):
    with pytest.raises(PickleRefused, match="weights_only=True"):
        GGUFFile(write(content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(GGUFError, match=r"model\.gguf cannot be opened: No such file"):
        GGUFFile(tmp_path / "model.gguf")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_regular_file_is_refused(make, tmp_path):
    make(tmp_path / "model.gguf")
    with pytest.raises(GGUFError, match=r"no regular file; give the path of a \.gguf file"):
        GGUFFile(tmp_path / "model.gguf")


def test_a_file_is_described(write):
    path = write(file_bytes([entry("general.name", "string", "tiny")], [A], data=DATA))
    with GGUFFile(path) as file:
        found = file.tensors["a"]
        assert (found.name, found.dtype, found.shape, found.nbytes) == ("a", by_name("F32"), (2,), 8)
        assert found.offset == len(file.header_bytes)
        assert file.header.version == 3
        assert file.metadata == {"general.name": "tiny"}
        assert path.read_bytes().startswith(file.header_bytes)
        buffer = bytearray(5)
        file.read_into(found, 2, buffer)
        assert buffer == DATA[2:7]
        with pytest.raises(SliceError, match="0:8"):
            file.read_into(found, 7, bytearray(2))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("tail", [b"", bytes(24)])
def test_both_versions_with_and_without_padding_at_the_end(version, tail, write):
    with GGUFFile(write(one(version=version, data=DATA + tail))) as file:
        assert file.header.version == version


def test_a_file_without_tensors_may_end_with_its_header(write):
    for content in (header(), padded(header())):
        with GGUFFile(write(content)) as file:
            assert file.header_bytes == content
            assert not file.tensors


def test_shapes_are_in_row_major_order(write):
    with GGUFFile(write(with_tensor("a", [64, 3, 2], Q8_0, 0, data=bytes(6 * 68)))) as file:
        assert file.tensors["a"].shape == (2, 3, 64)
        assert file.tensors["a"].nbytes == 6 * 2 * 34


def test_another_alignment_is_kept(write):
    raw = header([entry("general.alignment", "uint32", 256)], [A, tensor("b", [2], F32, 256)])
    with GGUFFile(write(padded(raw, 256) + padded(DATA, 256) + DATA)) as file:
        assert [each.offset % 256 for each in file.in_data_order()] == [0, 0]
        buffer = bytearray(8)
        file.read_into(file.tensors["b"], 0, buffer)
        assert buffer == DATA


def test_tensors_may_stand_in_any_order(write):
    tensors = [tensor("a", [2], F32, 32), tensor("b", [2], F32, 0), tensor("none", [0], F32, 32)]
    with GGUFFile(write(file_bytes(tensors=tensors, data=bytes(40)))) as file:
        assert list(file.tensors) == ["a", "b", "none"]
        assert [each.name for each in file.in_data_order()] == ["b", "none", "a"]


def test_arrays_of_arrays_are_read_to_a_depth_of_four(write):
    value = [[[[1, 2], []], []], [[[3]]]]
    with GGUFFile(write(with_entry(entry("a", [[[["uint16"]]]], value)))) as file:
        assert plain(file.header_bytes, file.metadata["a"]) == value


def plain(content, array):
    """A whole array as lists."""
    values = array_values(content, array)
    return [plain_each(each) for each in values]


def plain_each(value):
    return [plain_each(each) for each in value] if hasattr(value, "__next__") else value


def test_tokens_need_not_be_text(write):
    with GGUFFile(write(with_entry(entry("tokens", ["string"], [b"\xff\xfe", b"a"])))) as file:
        assert file.metadata["tokens"] == GGUFArray("string", 2, file.metadata["tokens"].start)
        assert list(array_values(file.header_bytes, file.metadata["tokens"])) == [b"\xff\xfe", b"a"]


def test_types_are_those_of_the_reference():
    assert {each.value: each.name for each in gguf.GGMLQuantizationType if each.value in TYPE_NAMES} == TYPE_NAMES
    for type_id, name in TYPE_NAMES.items():
        elements, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(type_id)]
        assert (by_name(name).block_elements, by_name(name).bits) == (elements, nbytes * 8)
    assert set(BLOCK_DTYPES) == set(TYPE_NAMES.values()) - set(DTYPES)


def test_a_file_truncated_while_it_is_read(write):
    path = write(one())
    with GGUFFile(path) as file:
        os.truncate(path, file.size - 1)
        with pytest.raises(GGUFError, match="truncated while being read"):
            file.read_into(file.tensors["a"], 0, bytearray(8))


def test_threads_share_a_file(write):
    arrays = [np.full((500, 8), number, "<f4") for number in range(16)]
    tensors = [tensor(f"t{i}", array.shape[::-1], F32, i * array.nbytes) for i, array in enumerate(arrays)]
    path = write(file_bytes(tensors=tensors, data=b"".join(array.tobytes() for array in arrays)))
    wrong = []

    def read(file, number):
        buffer = bytearray(arrays[number].nbytes)
        file.read_into(file.tensors[f"t{number}"], 0, buffer)
        if buffer != arrays[number].tobytes():
            wrong.append(number)

    with GGUFFile(path) as file:
        threads = [threading.Thread(target=read, args=(file, number)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
