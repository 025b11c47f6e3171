import pytest

from arc_halo.codecs import CODECS, codec
from arc_halo.errors import CodecError


def test_stored_ids_stay():
    assert set(CODECS) >= {"raw", "blosc2-zstd", "pco"}


@pytest.mark.parametrize("codec_id", CODECS)
def test_an_id_leads_to_its_codec(codec_id):
    assert codec(codec_id).id == codec_id


def test_an_unknown_id_asks_for_an_upgrade():
    with pytest.raises(CodecError, match=r"'zstd-9000'.*upgrade"):
        codec("zstd-9000")
