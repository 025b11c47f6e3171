import math
import struct

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arc_halo.dtypes import by_name
from arc_halo.errors import FormatError, GGUFError
from arc_halo.formats.gguf import GGUFFile
from arc_halo.formats.gguf_header import DEFAULT_ALIGNMENT, TYPE_NAMES, gaps, parse_stored
from arc_halo.formats.gguf_values import Float32, GGUFArray
from tests.fixtures.gguf import KINDS, entry, header, padded, tensor
from tests.formats.test_gguf import plain

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

INTEGERS = {name: (kind, struct.calcsize(kind) * 8) for name, (_, kind) in KINDS.items() if "int" in name}
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
keys = st.from_regex(r"[a-z][a-z_]{0,8}(\.[a-z0-9_-]{1,8}){0,2}", fullmatch=True)
names = st.from_regex(r"[a-z][a-z0-9_]{0,8}(\.[a-z0-9_]{1,8}){0,2}", fullmatch=True)


def numbers(kind):
    if kind == "bool":
        return st.booleans()
    if kind.startswith("float"):
        return st.floats(width=int(kind[5:]))
    bits = INTEGERS[kind][1]
    return st.integers(0, 2**bits - 1) if kind.startswith("u") else st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


scalars = st.sampled_from([*KINDS, "string"]).flatmap(
    lambda kind: st.tuples(st.just(kind), texts if kind == "string" else numbers(kind))
)
arrays = st.sampled_from([*KINDS, "string"]).flatmap(
    lambda kind: st.tuples(st.just([kind]), st.lists(texts if kind == "string" else numbers(kind), max_size=4))
)
nested = st.tuples(st.just([["uint16"]]), st.lists(st.lists(st.integers(0, 65535), max_size=3), max_size=3))
metadata = st.dictionaries(keys.filter(lambda key: key != "general.alignment"), scalars | arrays | nested, max_size=5)
shapes = st.lists(st.integers(0, 4), max_size=4)
tensors = st.dictionaries(names, st.tuples(st.sampled_from(list(TYPE_NAMES)), shapes), max_size=5).map(
    lambda chosen: [(name, each, _in_blocks(TYPE_NAMES[each], shape)) for name, (each, shape) in chosen.items()]
)
alignments = st.sampled_from([None, 8, 32, 64, 4096])


def _in_blocks(name, shape):
    elements = by_name(name).block_elements
    return (*shape[:-1], shape[-1] * elements) if shape else () if elements == 1 else (elements,)


layouts = st.fixed_dictionaries(
    {
        "entries": metadata,
        "chosen": tensors,
        "random": st.randoms(use_true_random=False),
        "alignment": alignments,
        "tail": st.booleans(),
        "version": st.sampled_from([2, 3]),
    }
)


def build(*, entries, chosen, random, alignment, tail, version):
    """A whole file by our own writer, and its tensors' bytes."""
    raw_entries = [entry(key, kind, value) for key, (kind, value) in entries.items()]
    if alignment is not None:
        raw_entries.append(entry("general.alignment", "uint32", alignment))
    alignment = alignment or DEFAULT_ALIGNMENT
    infos, data, contents = [], b"", {}
    for name, type_id, shape in chosen:
        infos.append(tensor(name, shape[::-1], type_id, len(data)))
        contents[name] = random.randbytes(by_name(TYPE_NAMES[type_id]).nbytes(math.prod(shape)))
        end = len(data) + len(contents[name])
        data = padded(data + contents[name], alignment)
    if not tail and chosen:
        data = data[:end]
    return padded(header(raw_entries, infos, version=version), alignment) + data, contents


@pytest.fixture
def opened(tmp_path):
    def open_bytes(content):
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return GGUFFile(path)

    return open_bytes


def read(file, name):
    buffer = bytearray(file.tensors[name].nbytes)
    file.read_into(file.tensors[name], 0, buffer)
    return bytes(buffer)


def same_bits(found, value):
    if isinstance(value, float):
        return (math.isnan(found) and math.isnan(value)) or struct.pack("<d", found) == struct.pack("<d", value)
    return type(found) is type(value) and found == value


@relaxed
@given(layouts)
def test_what_we_write_is_read_the_same_and_can_be_written_again(opened, layout):
    written, contents = build(**layout)
    with opened(written) as file:
        assert {name: read(file, name) for name in file.tensors} == contents
        assert [(each.name, each.dtype.name, each.shape) for each in file.tensors.values()] == [
            (name, TYPE_NAMES[type_id], tuple(shape)) for name, type_id, shape in layout["chosen"]
        ]
        assert file.metadata.keys() - {"general.alignment"} == layout["entries"].keys()
        assert all(same_value(file, key, *each) for key, each in layout["entries"].items())
        assert rebuilt(file) == written


def same_value(file, key, kind, value):
    found = file.metadata[key]
    if not isinstance(found, GGUFArray):
        return same_bits(found, value)
    expected = [each.encode() for each in value] if kind == ["string"] else value
    return all(map(same_bits, plain(file.header_bytes, found), expected)) and found.count == len(value)


def rebuilt(file):
    """The file from its stored header, its tensors, and zeros."""
    stored = parse_stored(file.header_bytes, file.size, "stored")
    parts = {each.offset: read(file, each.name) for each in stored.tensors.values() if each.nbytes}
    parts |= {offset: bytes(nbytes) for offset, nbytes in gaps(stored, file.size) if offset >= len(stored.content)}
    return stored.content + b"".join(parts[offset] for offset in sorted(parts))


REFERENCE = {
    "uint8": "add_uint8", "int8": "add_int8", "uint16": "add_uint16", "int16": "add_int16", "uint32": "add_uint32",
    "int32": "add_int32", "float32": "add_float32", "uint64": "add_uint64", "int64": "add_int64",
    "float64": "add_float64", "bool": "add_bool", "string": "add_string",
}  # fmt: skip


@relaxed
@given(st.dictionaries(keys, scalars, max_size=5), tensors, st.randoms(use_true_random=False))
def test_what_the_reference_writes_we_read(tmp_path, entries, chosen, random):
    entries = {key: each for key, each in entries.items() if not key.startswith("general.") and each[1] != ""}
    chosen = [each for each in chosen if math.prod(each[2]) and each[2]]
    path = tmp_path / "reference.gguf"
    writer = gguf.GGUFWriter(path, "test")
    for key, (kind, value) in entries.items():
        getattr(writer, REFERENCE[kind])(key, value)
    contents = {}
    for name, type_id, shape in chosen:
        dtype = by_name(TYPE_NAMES[type_id])
        row_nbytes = dtype.nbytes(shape[-1])
        array = np.frombuffer(random.randbytes(row_nbytes * math.prod(shape[:-1])), np.uint8)
        contents[name] = array.tobytes()
        writer.add_tensor(name, array.reshape(*shape[:-1], row_nbytes), raw_dtype=gguf.GGMLQuantizationType(type_id))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile(path) as file:
        assert {name: read(file, name) for name in file.tensors} == contents
        assert {each.name: each.shape for each in file.tensors.values()} == {name: shape for name, _, shape in chosen}
        assert file.metadata["general.architecture"] == "test"
        assert all(same_bits(file.metadata[key], value) for key, (_, value) in entries.items())
        assert rebuilt(file) == path.read_bytes()


@relaxed
@given(layouts, st.data())
def test_a_file_with_any_byte_changed_is_read_or_refused(opened, layout, data):
    written, _ = build(**layout)
    place = data.draw(st.integers(0, len(written) - 1))
    changed = bytearray(written)
    changed[place] ^= data.draw(st.integers(1, 255))
    try:
        with opened(bytes(changed)) as file:
            again = rebuilt(file)
    except FormatError:
        return
    assert again == changed


@relaxed
@given(layouts, st.data())
def test_a_file_cut_anywhere_is_refused(opened, layout, data):
    written, contents = build(**(layout | {"tail": False}))
    end = len(written) if any(contents.values()) else 24
    with pytest.raises(GGUFError):
        opened(written[: data.draw(st.integers(0, end - 1))])


@given(st.floats(width=32))
def test_the_shortest_decimal_is_the_same_number(value):
    shortest = Float32(value).shortest()
    assert math.isnan(value) or struct.pack("<f", shortest) == struct.pack("<f", value)
