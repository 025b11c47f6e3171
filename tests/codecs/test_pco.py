from pathlib import Path

from arc_halo.codecs.pco import Pco
from arc_halo.testing.codecs import CodecTests

GOLDEN = Path(__file__).parents[1] / "golden" / "codecs"


class TestPco(CodecTests):
    codec = Pco()
    golden = GOLDEN / Pco.id
