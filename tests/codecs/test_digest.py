import random
import struct

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.codecs.digest import TensorHasher, chunk_digest, manifest_root, payload_checksum
from arc_halo.dtypes import by_name
from arc_halo.errors import TensorError

F32, I32 = by_name("F32"), by_name("I32")

# Names of content in every database: if these change, each stored digest is wrong.
TENSOR_DIGEST = "c0cca15e9c511f49aedd3c6501744f382d7ce86296367afe4286798376285e77"
MANIFEST_ROOT = "84bd5413ae06aea07a98360bc2e1e8617b4a1971292f2066d0f47e838ec92a35"


def tensor_digest(dtype, shape, *parts):
    hasher = TensorHasher(dtype, shape)
    for part in parts:
        hasher.update(part)
    return hasher.digest()


def entry(name, dtype=F32, shape=(1,), digest=bytes(32)):
    return name, dtype, shape, digest


def test_a_chunk_is_named_by_plain_blake3():
    assert chunk_digest(memoryview(b"abc")) == blake3(b"abc").digest()


@given(st.binary(max_size=100))
def test_a_checksum_is_the_digest_s_first_eight_bytes_signed(payload):
    assert struct.pack("<q", payload_checksum(payload)) == blake3(payload).digest()[:8]


@given(st.binary(max_size=300), st.integers(0, 300))
def test_a_tensor_digest_does_not_depend_on_the_pieces(raw, cut):
    assert tensor_digest(F32, (3,), raw[:cut], raw[cut:]) == tensor_digest(F32, (3,), raw)


def test_a_tensor_digest_names_type_and_shape():
    digests = {
        tensor_digest(dtype, shape, bytes(24)) for dtype in (F32, I32) for shape in [(6,), (2, 3), (3, 2), (6, 1)]
    }
    assert len(digests) == 8


def test_kinds_of_digests_never_meet():
    header = b"\x03F32" + struct.pack("<IQ", 1, 1)
    leaf = struct.pack("<Q", 1) + b"a" + header + bytes(32)
    kinds = {tensor_digest(F32, (1,), bytes(4)), chunk_digest(header + bytes(4)), chunk_digest(bytes(4))}
    assert len(kinds | {manifest_root([entry("a")]), chunk_digest(leaf)}) == 5


def test_stored_digests_stay():
    assert tensor_digest(F32, (2, 3), bytes(24)).hex() == TENSOR_DIGEST
    assert manifest_root([entry("a"), entry("b", I32), entry("c", F32, ())]).hex() == MANIFEST_ROOT


@given(st.integers(0, 40), st.randoms())
def test_a_root_does_not_depend_on_the_order(count, shuffler: random.Random):
    entries = [entry(f"layer.{number}") for number in range(count)]
    root = manifest_root(entries)
    shuffler.shuffle(entries)
    assert manifest_root(entries) == root


@given(st.integers(1, 40), st.data())
def test_a_root_changes_with_anything(count, data):
    entries = [entry(f"layer.{number}") for number in range(count)]
    place = data.draw(st.integers(0, count - 1))
    changes = [entry("other"), entry(f"layer.{place}", I32), entry(f"layer.{place}", F32, (1, 1))]
    changes += [entry(f"layer.{place}", digest=b"\x01" * 32)]
    variants = [entries, entries[:place] + entries[place + 1 :]]
    variants += [[*entries[:place], change, *entries[place + 1 :]] for change in changes]
    assert len({manifest_root(variant) for variant in variants}) == len(variants)


def test_a_name_twice_is_refused():
    with pytest.raises(TensorError, match="'a' stands twice"):
        manifest_root([entry("a"), entry("a")])
