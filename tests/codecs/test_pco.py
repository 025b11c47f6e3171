from pathlib import Path

import pytest
from hypothesis import given, settings

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
