import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_halo.codecs import codec
from arc_halo.codecs.abc import MAX_RAW_NBYTES
from arc_halo.codecs.policy import POLICIES, encode_chunk
from arc_halo.dtypes import by_name
from arc_halo.errors import CodecError, ConfigurationError
from arc_halo.testing.codecs import chunks

MIB = 1 << 20
RNG = np.random.default_rng(11)
WEIGHTS = RNG.normal(scale=0.02, size=MIB // 4)
BF16 = WEIGHTS.astype(ml_dtypes.bfloat16).tobytes()
F32 = WEIGHTS.astype("<f4").tobytes()
NOISE = RNG.bytes(MIB)


def encoded(raw, name, policy):
    codec_id, payload, is_delta = encode_chunk(memoryview(raw), by_name(name), policy)
    assert not is_delta
    assert bytes(codec(codec_id).decode(payload, by_name(name), len(raw))) == raw
    return codec_id, len(payload) / max(len(raw), 1)


@settings(deadline=None)
@given(chunks(), st.sampled_from(POLICIES))
def test_whatever_is_chosen_decodes_and_is_never_larger(chunk, policy):
    raw, dtype = chunk
    _, ratio = encoded(raw, dtype.name, policy)
    assert ratio <= 1


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("raw", [b"", NOISE], ids=["nothing", "noise"])
@pytest.mark.parametrize("name", ["U8", "BF16", "F32", "I64"])
def test_what_no_codec_helps_stays_as_it_is(raw, name, policy):
    assert encoded(raw, name, policy) == ("raw", len(raw) / max(len(raw), 1))


@pytest.mark.parametrize("policy", ["fast", "balanced", "dense"])
@pytest.mark.parametrize("name", ["U8", "BOOL", "BF16", "F32", "F64", "I64", "F4", "C64"])
@pytest.mark.parametrize("element", [bytes(8), b"\x3f\x80" * 4], ids=["zeros", "constant"])
def test_a_constant_chunk_costs_next_to_nothing(element, name, policy):
    _, ratio = encoded(element * (MIB // 8), name, policy)
    assert ratio < 0.001


@pytest.mark.parametrize(
    ("raw", "name", "policy", "codec_id", "ratio"),
    [
        (BF16, "BF16", "none", "raw", 1),
        (BF16, "BF16", "fast", "blosc2-zstd", 0.70),
        (BF16, "BF16", "balanced", "pco", 0.67),
        (BF16, "BF16", "dense", "pco", 0.67),
        (F32, "F32", "balanced", "blosc2-zstd", 0.85),
        (F32, "F32", "dense", "pco", 0.84),
        (bytes(MIB // 2) + NOISE[: MIB // 2], "U8", "balanced", "blosc2-zstd", 0.51),
        (BF16[:768] * 1000, "BF16", "balanced", "blosc2-zstd", 0.01),
        (np.arange(MIB // 8).tobytes(), "I64", "balanced", "pco", 0.001),
    ],
)
def test_what_is_chosen(raw, name, policy, codec_id, ratio):
    chosen, reached = encoded(raw, name, policy)
    assert chosen == codec_id
    assert reached <= ratio


def test_policies_order_by_size():
    sizes = [encoded(BF16, "BF16", policy)[1] for policy in POLICIES]
    assert sizes == sorted(sizes, reverse=True)


def test_a_chunk_no_reader_takes_back_is_refused():
    with pytest.raises(CodecError, match="smaller"):
        encode_chunk(np.zeros(MAX_RAW_NBYTES + 1, np.uint8).data, by_name("U8"), "none")


def test_an_unknown_policy_is_refused():
    with pytest.raises(ConfigurationError, match=r"'zip'.*none, fast, balanced, dense"):
        encode_chunk(memoryview(b""), by_name("U8"), "zip")
