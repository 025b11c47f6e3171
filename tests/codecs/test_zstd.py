from pathlib import Path

from arc_halo.codecs.zstd import BloscZstd
from arc_halo.testing.codecs import CodecTests

GOLDEN = Path(__file__).parents[1] / "golden" / "codecs"


class TestBloscZstd(CodecTests):
    codec = BloscZstd()
    golden = GOLDEN / BloscZstd.id
