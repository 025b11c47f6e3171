"""The codec of last resort: the payload is the chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arc_halo.codecs.abc import MAX_RAW_NBYTES, Codec
from arc_halo.errors import CodecError

if TYPE_CHECKING:
    from arc_halo.dtypes import DType


class Raw(Codec):
    """Bytes as they are; `encode` copies nothing."""

    id = "raw"

    def encode(self, raw: memoryview, dtype: DType) -> memoryview | None:  # noqa: ARG002, the contract's
        """The chunk itself."""
        return raw if raw.nbytes <= MAX_RAW_NBYTES else None

    def _check(self, payload: memoryview, dtype: DType, raw_nbytes: int) -> None:  # noqa: ARG002, the contract's
        if payload.nbytes != raw_nbytes:
            raise CodecError(f"{self.id}: payload has {payload.nbytes} bytes where {raw_nbytes} are expected")

    def _decode_into(self, payload: memoryview, dtype: DType, out: memoryview) -> None:  # noqa: ARG002, the contract's
        out[:] = payload
