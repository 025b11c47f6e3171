from contextlib import suppress

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_halo.codecs import DELTAS, delta
from arc_halo.codecs.delta import Base, PcoDelta, XorDelta, is_comparable, predict
from arc_halo.codecs.grouped import GroupedDelta
from arc_halo.codecs.numbers import Numbers
from arc_halo.codecs.packed import PackedDelta
from arc_halo.codecs.policy import encode_chunk
from arc_halo.dtypes import DTYPES, by_name
from arc_halo.errors import CodecError
from arc_halo.testing.codecs import chunks
from tests.fixtures.deltas import GOLDEN, golden_pairs

F32, BF16, U8 = by_name("F32"), by_name("BF16"), by_name("U8")
EITHER = pytest.mark.parametrize("codec", DELTAS.values(), ids=DELTAS)


def bits(value, dtype="<u4"):
    return np.array([value], dtype)


@EITHER
@settings(deadline=None)
@given(chunk=chunks(), base=st.binary(max_size=3000))
def test_a_chunk_comes_back_whatever_it_leans_on(codec, chunk, base):
    raw, dtype = chunk
    base = base[: len(base) // dtype.component_nbytes * dtype.component_nbytes]
    payload = codec.encode(memoryview(raw), dtype, Base(memoryview(base), dtype))
    assert bytes(codec.decode(payload, dtype, len(raw), memoryview(base))) == raw


@EITHER
@settings(deadline=None)
@given(values=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=300))
def test_bfloat16_of_float32_and_back_come_back_with_any_bits(codec, values):
    whole = np.array(values, "<u4")
    half = (whole >> 16).astype("<u2")
    for raw, dtype, base, base_dtype in ((half, BF16, whole, F32), (whole, F32, half, BF16)):
        payload = codec.encode(memoryview(raw.tobytes()), dtype, Base(memoryview(base.tobytes()), base_dtype))
        out = memoryview(bytearray(raw.nbytes))
        assert bytes(codec.decode(payload, dtype, raw.nbytes, memoryview(base.tobytes()), out)) == raw.tobytes()


@settings(deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_the_prediction_of_bfloat16_is_the_nearest(values):
    whole = np.array(values, "<f4")
    predicted = predict(Numbers.of(whole.tobytes(), F32), BF16, whole.size).bits.view(ml_dtypes.bfloat16)
    expected = whole.astype(ml_dtypes.bfloat16)
    is_nan = np.isnan(whole)
    assert predicted[~is_nan].tobytes() == expected[~is_nan].tobytes()


def test_a_cast_copy_costs_next_to_nothing():
    whole = np.random.default_rng(0).normal(size=1 << 18).astype("<f4")
    half = whole.astype(ml_dtypes.bfloat16).tobytes()
    payload = PcoDelta().encode(memoryview(half), BF16, Base(memoryview(whole.tobytes()), F32))
    assert len(payload) < 100


@EITHER
@pytest.mark.parametrize("name", DTYPES)
def test_a_copy_costs_next_to_nothing(codec, name):
    raw = memoryview(np.random.default_rng(0).bytes(1 << 18))
    assert len(codec.encode(raw, by_name(name), Base(raw, by_name(name)))) < 1000


@EITHER
@pytest.mark.parametrize("base_nbytes", [0, 4, 4096, 12000])
def test_a_base_may_be_shorter_or_longer(codec, base_nbytes):
    raw, base = (np.random.default_rng(seed).bytes(8192) for seed in (0, 1))
    base = memoryview((base * 2)[:base_nbytes])
    payload = codec.encode(memoryview(raw), F32, Base(base, F32))
    assert bytes(codec.decode(payload, F32, len(raw), base)) == raw


@EITHER
def test_types_that_say_nothing_of_each_other_are_declined(codec):
    assert not is_comparable(U8, F32)
    assert codec.encode(memoryview(bytes(64)), F32, Base(memoryview(bytes(64)), U8)) is None
    assert codec.encode(memoryview(bytes(63)), F32, Base(memoryview(bytes(64)), F32)) is None
    assert codec.encode(memoryview(b""), F32, Base(memoryview(bytes(64)), F32)) is None


@EITHER
@settings(deadline=None)
@given(payload=st.binary(max_size=200), raw_nbytes=st.integers(0, 400))
def test_any_payload_gives_bytes_or_an_error(codec, payload, raw_nbytes):
    with suppress(CodecError):
        assert len(codec.decode(payload, F32, raw_nbytes, memoryview(bytes(400)))) == raw_nbytes


@EITHER
@pytest.mark.parametrize("header", [b"\x03F9", b"\x02F9", b"\x02U8", b"\xff", b"\x01\xff", b"", b"\x00"])
def test_a_header_that_names_no_base_is_refused(codec, header):
    with pytest.raises(CodecError):
        codec.decode(header, F32, 64, memoryview(bytes(64)))


@EITHER
def test_a_buffer_that_does_not_fit_is_refused(codec):
    raw = memoryview(bytes(64))
    payload = codec.encode(raw, F32, Base(raw, F32))
    for out in (memoryview(bytes(64)), memoryview(bytearray(63))):
        with pytest.raises(CodecError):
            codec.decode(payload, F32, 64, raw, out)


@EITHER
def test_golden_payloads_decode_for_ever(codec):
    for name, raw, dtype, base in golden_pairs():
        payload = (GOLDEN / codec.id / name).read_bytes()
        assert bytes(codec.decode(payload, dtype, raw.nbytes, base.raw)) == bytes(raw)


def test_other_codecs_are_no_deltas():
    assert delta("pco-delta").id == PcoDelta.id
    with pytest.raises(CodecError, match="no delta codec"):
        delta("pco")


def step(seed=0, count=1 << 18):
    """Weights, and the same after a step of training."""
    rng = np.random.default_rng(seed)
    before = rng.normal(scale=0.03, size=count)
    after = before + rng.normal(scale=3e-5, size=count)
    return before.astype(ml_dtypes.bfloat16).tobytes(), after.astype(ml_dtypes.bfloat16).tobytes()


@pytest.mark.parametrize(("policy", "is_delta"), [("none", False), ("fast", True), ("balanced", True), ("dense", True)])
def test_every_policy_but_none_takes_the_delta(policy, is_delta):
    before, after = step()
    encoded = encode_chunk(memoryview(after), BF16, policy, Base(memoryview(before), BF16))
    assert encoded.is_delta == is_delta == (encoded.codec in DELTAS)
    if is_delta:
        assert len(encoded.payload) < 0.3 * len(after)


@settings(deadline=None)
@given(chunks(), st.binary(max_size=4000), st.sampled_from(["fast", "balanced", "dense"]))
def test_a_base_never_makes_a_payload_larger(chunk, base, policy):
    raw, dtype = chunk
    base = base[: len(base) // dtype.component_nbytes * dtype.component_nbytes]
    alone = encode_chunk(memoryview(raw), dtype, policy)
    leaning = encode_chunk(memoryview(raw), dtype, policy, Base(memoryview(base), dtype))
    assert len(leaning.payload) <= len(alone.payload)


@pytest.mark.parametrize("policy", ["fast", "balanced", "dense"])
@pytest.mark.parametrize("raw", [bytes(1 << 20), b"\x80\x3f" * (1 << 19)], ids=["zeros", "constant"])
def test_a_constant_chunk_leans_on_nothing(policy, raw):
    before, _ = step(count=1 << 19)
    encoded = encode_chunk(memoryview(raw), BF16, policy, Base(memoryview(before), BF16))
    assert not encoded.is_delta
    assert len(encoded.payload) < 1000


@pytest.mark.parametrize("policy", ["fast", "balanced"])
def test_a_stranger_is_not_leaned_on(policy):
    encoded = encode_chunk(memoryview(step(0)[0]), BF16, policy, Base(memoryview(step(1)[0]), BF16))
    assert not encoded.is_delta


def test_few_changes_are_for_the_planes_to_find():
    before = np.frombuffer(step()[0], "<u2")
    after = before.copy()
    after[::5000] ^= 0x55
    encoded = encode_chunk(memoryview(after.tobytes()), BF16, "dense", Base(memoryview(before.tobytes()), BF16))
    assert encoded.codec in (XorDelta.id, GroupedDelta.id)
    assert len(encoded.payload) < 2000


@pytest.mark.parametrize("dtype", [BF16, F32, by_name("F16"), by_name("F64")], ids=lambda dtype: dtype.name)
def test_differences_of_one_exponent_are_smaller_together(dtype):
    rng = np.random.default_rng(5)
    before = rng.normal(scale=0.03, size=1 << 17)
    after = before + rng.normal(scale=3e-5, size=1 << 17)
    raw, base = (memoryview(each.astype(dtype.numpy).tobytes()) for each in (after, before))
    payloads = [codec.encode(raw, dtype, Base(base, dtype)) for codec in (PcoDelta(9), GroupedDelta(9))]
    assert len(payloads[1]) < len(payloads[0])
    assert GroupedDelta().decode(payloads[1], dtype, raw.nbytes, base) == raw


def test_groups_that_do_not_add_up_are_refused():
    raw = memoryview(np.random.default_rng(0).normal(size=1 << 14).astype("<f4").tobytes())
    base = memoryview(np.random.default_rng(1).normal(size=1 << 14).astype("<f4").tobytes())
    payload = bytearray(GroupedDelta().encode(raw, F32, Base(base, F32)))
    for at in (1, 2, 6, 10):
        changed = bytearray(payload)
        changed[at] ^= 1
        with pytest.raises(CodecError):
            GroupedDelta().decode(changed, F32, raw.nbytes, base)


@pytest.mark.parametrize("policy", ["balanced", "fast"])
def test_numbers_of_16_bits_are_packed_where_that_reads_fast_enough(policy):
    before, after = step()
    encoded = encode_chunk(memoryview(after), BF16, policy, Base(memoryview(before), BF16))
    assert encoded.codec == {"balanced": PackedDelta.id, "fast": XorDelta.id}[policy]


@settings(deadline=None)
@given(st.lists(st.sampled_from([0, 1, -1, 7, -7, -8, 8, 100, -(2**15), 2**15 - 1]), min_size=1, max_size=99))
def test_differences_around_the_escape_come_back(differences):
    base = np.arange(1000, 1000 + len(differences), dtype="<i2")
    raw = (base + np.array(differences, "<i2")).tobytes()
    leaning = Base(memoryview(base.tobytes()), by_name("I16"))
    payload = PackedDelta().encode(memoryview(raw), by_name("I16"), leaning)
    assert bytes(PackedDelta().decode(payload, by_name("I16"), len(raw), leaning.raw)) == raw


def test_escapes_that_do_not_agree_are_refused():
    before, after = (memoryview(each) for each in step(count=1 << 12))
    payload = bytearray(PackedDelta().encode(after, BF16, Base(before, BF16)))
    for at in (1, 2, 5, 6):
        changed = bytearray(payload)
        changed[at] ^= 1
        with pytest.raises(CodecError):
            PackedDelta().decode(changed, BF16, after.nbytes, before)
    with pytest.raises(CodecError, match="ends within its header"):
        PackedDelta().decode(payload[:8], BF16, after.nbytes, before)


@settings(deadline=None)
@given(chunks(), st.lists(st.sampled_from(list(DELTAS)), min_size=1, max_size=4), st.integers(0, 2**32))
def test_a_chain_of_any_codecs_is_that_of_its_links(chunk, codecs, seed):
    raw, dtype = chunk
    rng = np.random.default_rng(seed)
    numbers = Numbers.of(raw, dtype)
    for codec_id in codecs:
        after = bytearray(raw)
        after[rng.integers(len(after))] ^= 1
        payload = delta(codec_id).encode(memoryview(after), dtype, Base(memoryview(raw), dtype))
        numbers = delta(codec_id).apply(payload, dtype, len(after), numbers)
        raw = bytes(after)
    out = bytearray(len(raw))
    numbers.write(memoryview(out))
    assert bytes(out) == raw


def test_as_many_groups_as_there_are_exponents_come_back():
    base = np.repeat(np.arange(256, dtype="<u2") << 7, 4096).tobytes()
    raw = (np.frombuffer(base, "<u2") + np.uint16(1)).tobytes()
    payload = GroupedDelta().encode(memoryview(raw), BF16, Base(memoryview(base), BF16))
    assert bytes(GroupedDelta().decode(payload, BF16, len(raw), memoryview(base))) == raw


@EITHER
@pytest.mark.parametrize("nbytes", [-1, 0, (1 << 30) + 4])
def test_a_size_that_no_chunk_has_is_what_the_error_speaks_of(codec, nbytes):
    payload = codec.encode(memoryview(bytes(8)), F32, Base(memoryview(bytes(8)), F32))
    with pytest.raises(CodecError, match=f"a chunk of {nbytes} bytes"):
        codec.decode(payload, F32, nbytes, memoryview(bytes(8)))
