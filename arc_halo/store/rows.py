"""The statements of the store: which content is there, and new rows in the order that cannot deadlock."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from arc_halo.schema.columns import TENANT_ID, uuid7
from arc_halo.store.bulk import TENSOR_CHUNKS, TENSOR_DATA, TENSOR_METADATA
from arc_halo.store.manifest import seal
from arc_halo.store.statistics import Statistics

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Sequence

    import psycopg

    from arc_halo.codecs.abc import BytesLike
    from arc_halo.codecs.chunking import ChunkSpan
    from arc_halo.dtypes import DType

TOUCH_SECONDS = 3600
"""Content that a writer relies on is touched if it was not for this long: re-imports within it write nothing."""

_FIND_TENSORS = """
SELECT digest, id FROM arc_halo.tensor_metadata WHERE tenant_id = %s AND digest = ANY(%b::bytea[])
"""
_FIND_CHUNKS = """
SELECT digest FROM arc_halo.tensor_data WHERE tenant_id = %s AND digest = ANY(%b::bytea[])
"""
# A row that somebody has locked is being touched or pruned: in the one case there is nothing to do, in the other the
# foreign key will tell.
_TOUCH = """
WITH old AS (
    SELECT tenant_id, digest FROM arc_halo.{table}
     WHERE tenant_id = %s AND digest = ANY(%b::bytea[]) AND touched_at < now() - make_interval(secs => %s)
     ORDER BY digest FOR NO KEY UPDATE SKIP LOCKED)
UPDATE arc_halo.{table} AS t SET touched_at = now() FROM old WHERE t.tenant_id = old.tenant_id AND t.digest = old.digest
"""


@dataclass(slots=True)
class ChunkRow:
    """A row of ``tensor_data`` about to be written."""

    digest: bytes
    raw_nbytes: int
    codec: str
    dtype: str
    payload_checksum: int
    stored_nbytes: int
    payload: BytesLike | None
    base_digest: bytes | None = None
    base_depth: int | None = None
    blob_location: str | None = None


@dataclass(slots=True)
class TensorRow:
    """A row of ``tensor_metadata`` and its chunks, filled while the bytes stream by."""

    dtype: DType
    shape: tuple[int, ...]
    nbytes: int
    chunk_nbytes: int
    compression: str
    id: uuid.UUID = field(default_factory=uuid7)
    digest: bytes = b""
    statistics: Statistics = field(default_factory=Statistics)
    chunks: list[tuple[ChunkSpan, bytes]] = field(default_factory=list)

    def values(self) -> tuple[Any, ...]:
        """Columns in the order of ``TENSOR_METADATA``."""
        sealed = seal(self.digest, self.dtype.name, self.shape, self.chunk_nbytes, (d for _, d in self.chunks))
        sizes = (self.nbytes, prod(self.shape), self.chunk_nbytes)
        return (
            *(self.id, TENANT_ID, self.digest, self.dtype.name, self.shape, *sizes, self.compression, sealed),
            *self.statistics.columns(),
        )


def find_tensors(
    connection: psycopg.Connection[Any], digests: Iterable[bytes], *, touch: bool
) -> dict[bytes, uuid.UUID]:
    """Ids of the tensors that are there; ``touch`` keeps them from ``prune`` for its grace less an hour."""
    asked = sorted(set(digests))
    with connection.cursor(binary=True) as cursor:
        if touch:
            cursor.execute(_TOUCH.format(table="tensor_metadata"), (TENANT_ID, asked, TOUCH_SECONDS))
        return dict(cursor.execute(_FIND_TENSORS, (TENANT_ID, asked)).fetchall())


def find_chunks(connection: psycopg.Connection[Any], digests: Iterable[bytes], *, touch: bool) -> set[bytes]:
    """Digests of the chunks that are there; ``touch`` as in `find_tensors`."""
    asked = sorted(set(digests))
    with connection.cursor(binary=True) as cursor:
        if touch:
            cursor.execute(_TOUCH.format(table="tensor_data"), (TENANT_ID, asked, TOUCH_SECONDS))
        return {digest for (digest,) in cursor.execute(_FIND_CHUNKS, (TENANT_ID, asked))}


def insert_chunks(connection: psycopg.Connection[Any], chunks: Sequence[ChunkRow], *, by_copy: bool) -> None:
    """Insert chunks in the order of their digests: everybody locks in that order, so nobody deadlocks.

    A chunk that is there by now raises a unique violation; a base that was pruned, or encoded anew at another depth, a
    foreign key violation.
    """
    if chunks:
        ordered = sorted(chunks, key=lambda chunk: chunk.digest)
        TENSOR_DATA.insert(connection, [_chunk_values(chunk) for chunk in ordered], by_copy=by_copy)


def insert_tensors(connection: psycopg.Connection[Any], tensors: Sequence[TensorRow], *, by_copy: bool) -> None:
    """Insert tensors in the order of their digests, and the places of their chunks.

    A tensor that is there by now is left as it is; a chunk that was pruned raises a foreign key violation.
    """
    ordered = sorted(tensors, key=lambda tensor: tensor.digest)
    values = [tensor.values() for tensor in ordered]
    inserted = set(TENSOR_METADATA.insert_new(connection, values, conflict=("tenant_id", "digest")))
    spans = [
        (TENANT_ID, tensor.id, span.index, digest, span.first_row, span.offset, span.nbytes)
        for tensor in ordered
        if tensor.id in inserted
        for span, digest in tensor.chunks
    ]
    if spans:
        TENSOR_CHUNKS.insert(connection, spans, by_copy=by_copy)


def _chunk_values(chunk: ChunkRow) -> tuple[Any, ...]:
    sizes = (chunk.raw_nbytes, chunk.stored_nbytes)
    base = (chunk.base_digest, chunk.base_depth)
    encoding = (chunk.codec, chunk.dtype, chunk.payload_checksum)
    return (TENANT_ID, chunk.digest, *sizes, *encoding, *base, chunk.payload, chunk.blob_location)
