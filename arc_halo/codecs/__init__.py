"""Bytes to bytes: how a tensor is cut, named, compressed and checked.

Chunk
    About a mebibyte of a tensor's raw bytes, whole rows where they fit; the unit that is stored, shared and read.
Layout
    The places of all chunks of a tensor, computed from its shape, type and chunk size.
Codec
    Turns the raw bytes of a chunk into a payload and back. Its id is stored beside the payload, for ever.
Delta
    A codec that needs another chunk, its base, to encode and to decode.
Payload
    The bytes that are stored for a chunk.
Policy
    Which codecs a chunk is offered to: ``none``, ``fast``, ``balanced``, ``dense``.
Digest
    BLAKE3-256 of raw bytes: the name of content. A tensor's covers its type and shape, too; a manifest's root covers
    all tensors of a model.
Checksum
    64 bits of a payload's BLAKE3, compared before it is decoded: it finds errors, it names nothing.
"""

from __future__ import annotations

from types import MappingProxyType

from arc_halo.codecs.abc import Codec
from arc_halo.codecs.delta import Delta, PcoDelta, XorDelta
from arc_halo.codecs.grouped import GroupedDelta
from arc_halo.codecs.packed import PackedDelta
from arc_halo.codecs.pco import Pco
from arc_halo.codecs.raw import Raw
from arc_halo.codecs.zstd import BloscZstd
from arc_halo.errors import CodecError

__all__ = ["CODECS", "DELTAS", "Codec", "Delta", "codec", "delta"]

CODECS = MappingProxyType({each.id: each for each in (Raw(), BloscZstd(), Pco())})
DELTAS = MappingProxyType[str, Delta](
    {each.id: each for each in (PcoDelta(), PackedDelta(), GroupedDelta(), XorDelta())}
)


def codec(codec_id: str) -> Codec:
    """The codec of a stored id.

    Raises
    ------
    CodecError
        This version has no such codec.
    """
    try:
        return CODECS[codec_id]
    except KeyError:
        raise CodecError(
            f"codec {codec_id!r} is not known to this version, which reads {', '.join(CODECS)}; upgrade arc-halo"
        ) from None


def delta(codec_id: str) -> Delta:
    """The delta codec of a stored id.

    Raises
    ------
    CodecError
        This version has no such codec, or it is none for deltas.
    """
    try:
        return DELTAS[codec_id]
    except KeyError:
        raise CodecError(
            f"codec {codec_id!r} is no delta codec of this version, which has {', '.join(DELTAS)}; upgrade arc-halo"
        ) from None
