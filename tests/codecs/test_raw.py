from pathlib import Path

from arc_halo.codecs.raw import Raw
from arc_halo.testing.codecs import CodecTests

GOLDEN = Path(__file__).parents[1] / "golden" / "codecs"


class TestRaw(CodecTests):
    codec = Raw()
    golden = GOLDEN / Raw.id
