"""The contract of a codec: the bytes of one chunk to a payload and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import numpy as np

from arc_halo.codecs.numbers import Numbers
from arc_halo.errors import CodecError

if TYPE_CHECKING:
    from arc_halo.dtypes import DType

BytesLike: TypeAlias = bytes | bytearray | memoryview

# A chunk is about 1 MiB. The bound is what a forged row can make a reader allocate.
MAX_RAW_NBYTES = 1 << 30


class Codec(ABC):
    """Turns the raw bytes of a chunk into a payload and back, losslessly.

    An instance holds no state that a call changes, so threads share it; implementations release the GIL while they
    work. What `encode` of any released version wrote, `decode` of every later one reads: a codec whose format changes
    gets a new ``id``.
    """

    id: ClassVar[str]
    """The name stored beside each payload, for ever."""

    @abstractmethod
    def encode(self, raw: memoryview, dtype: DType) -> bytes | memoryview | None:
        """The payload of a chunk.

        Parameters
        ----------
        raw
            Contiguous bytes, little-endian elements of ``dtype``, aligned to nothing.
        dtype
            Element type; a hint to compress by, needed again to decode.

        Returns
        -------
        bytes, memoryview or None
            None if the codec cannot take these bytes or has no use for them, and beyond `MAX_RAW_NBYTES`, which no
            `decode` gives back. The payload may be larger than ``raw``.
        """

    def decode(self, payload: BytesLike, dtype: DType, raw_nbytes: int, out: memoryview | None = None) -> memoryview:
        """The raw bytes of a payload, in ``out`` if given.

        Parameters
        ----------
        payload
            What `encode` returned.
        dtype
            The element type it was encoded with.
        raw_nbytes
            Size of the raw bytes. A payload that stands for more or fewer is refused, and never makes this method
            allocate more than that.
        out
            Writable, contiguous, ``raw_nbytes`` long. Its content is undefined after an error.

        Returns
        -------
        memoryview
            Bytes, ``raw_nbytes`` long.

        Raises
        ------
        CodecError
            The payload is not one of this codec, or not of this size, or ``out`` does not fit. A payload damaged
            inside may also decode to other bytes: compare its checksum before, or the digest of the bytes after.
        """
        source = memoryview(payload).cast("B")
        if not 0 <= raw_nbytes <= MAX_RAW_NBYTES:
            raise CodecError(f"{self.id}: a chunk of {raw_nbytes} bytes is outside 0 to {MAX_RAW_NBYTES}")
        self._check(source, dtype, raw_nbytes)
        target = np.empty(raw_nbytes, np.uint8).data if out is None else fitting(out, raw_nbytes, self.id)
        self._decode_into(source, dtype, target)
        return target

    def decode_numbers(self, payload: BytesLike, dtype: DType, raw_nbytes: int) -> Numbers:
        """As `decode`, in the form that the codec has them in, for a delta to lean on."""
        return Numbers.of(self.decode(payload, dtype, raw_nbytes), dtype)

    @abstractmethod
    def _check(self, payload: memoryview, dtype: DType, raw_nbytes: int) -> None:
        """Raise `CodecError` if the payload's own header, where it has one, disagrees with the caller."""

    @abstractmethod
    def _decode_into(self, payload: memoryview, dtype: DType, out: memoryview) -> None:
        """Fill ``out`` to the last byte from a checked payload, or raise `CodecError`."""


def fitting(out: memoryview, raw_nbytes: int, codec_id: str) -> memoryview:
    """The buffer as bytes, or `CodecError` where a chunk of that size cannot be decoded into it."""
    if out.readonly or not out.c_contiguous or out.nbytes != raw_nbytes:
        raise CodecError(
            f"{codec_id}: the buffer to decode into must be writable, contiguous and {raw_nbytes} bytes long; "
            f"this one has {out.nbytes}"
        )
    return out.cast("B") if raw_nbytes else out  # an empty view cannot be cast
