from pathlib import Path

import blosc2
import pytest

from arc_halo.codecs.zstd import BloscZstd
from arc_halo.dtypes import by_name
from arc_halo.errors import CodecError
from arc_halo.testing.codecs import CodecTests

GOLDEN = Path(__file__).parents[1] / "golden" / "codecs"


class TestBloscZstd(CodecTests):
    codec = BloscZstd()
    golden = GOLDEN / BloscZstd.id


def test_the_interpreter_lock_is_released():
    assert blosc2.set_releasegil(True)  # the state before


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (2, 0x01),
        (3, 2),
        (11, 0x10),
        (16, 34),
        (17, 1),
        (22, 1),
        (22, 160),
        (23, 1),
        (24, 1),
        (30, 1),
        (31, 0x08),
        (31, 0x40),
    ],
    ids=lambda number: f"{number:#x}",
)
def test_a_header_of_another_making_is_refused(place, value):
    payload = bytearray(BloscZstd().encode(memoryview(bytes(range(256)) * 16), by_name("F32")))
    payload[place] = value
    with pytest.raises(CodecError):
        BloscZstd().decode(payload, by_name("F32"), 4096)
