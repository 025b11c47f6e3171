from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone

from arc_halo.codecs.pco import Pco
from arc_halo.dtypes import by_name
from arc_halo.errors import CodecError
from arc_halo.testing.codecs import CodecTests, chunks

GOLDEN = Path(__file__).parents[1] / "golden" / "codecs"


class TestPco(CodecTests):
    codec = Pco()
    golden = GOLDEN / Pco.id


@pytest.mark.parametrize("codec", [Pco(0), Pco(8, search=False), Pco(12)], ids=["0", "8 plain", "12"])
@settings(deadline=None)
@given(chunk=chunks())
def test_payloads_of_all_settings_decode_alike(codec, chunk):
    raw, dtype = chunk
    assert bytes(Pco().decode(codec.encode(memoryview(raw), dtype), dtype, len(raw))) == raw


def test_part_of_a_number_is_declined():
    assert Pco().encode(memoryview(bytes(7)), by_name("F32")) is None


class Panic(BaseException):
    """What pyo3 raises when Rust code panics: no `Exception`, its class not importable."""


Panic.__name__ = "PanicException"


@pytest.mark.parametrize(("raised", "expected"), [(Panic, CodecError), (KeyboardInterrupt, KeyboardInterrupt)])
def test_a_panic_is_an_error_and_an_interrupt_is_not(monkeypatch, raised, expected):
    payload = Pco().encode(memoryview(bytes(64)), by_name("F32"))

    def fail(*_):
        raise raised

    monkeypatch.setattr("arc_halo.codecs.pco.standalone.simple_decompress_into", fail)
    with pytest.raises(expected):
        Pco().decode(payload, by_name("F32"), 64)


@pytest.mark.parametrize("window", [25, 28, 32])
def test_a_window_far_beyond_the_numbers_is_refused(window):
    """Before pcodec 1.0.3 the decoder allocated it, and where that failed the process ended."""
    config = ChunkConfig(delta_spec=DeltaSpec.try_lookback(), mode_spec=ModeSpec.classic())
    numbers = np.resize(np.random.default_rng(0).integers(0, 2**63, 50, np.uint64), 1000)
    payload = bytearray(standalone.simple_compress(numbers, config))
    assert bytes(Pco().decode(payload, by_name("U64"), 8000)) == numbers.tobytes()
    assert (payload[14], payload[15]) == (0x20, 10 - 1)  # lookback, in a window of 2**10
    payload[15] = window - 1
    with pytest.raises(CodecError, match="does not decode"):
        Pco().decode(payload, by_name("U64"), 8000)
