"""Stored payloads, with those they lean on, back into the bytes of a chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from arc_halo.codecs import codec, delta
from arc_halo.codecs.digest import payload_checksum
from arc_halo.dtypes import by_name
from arc_halo.errors import BlobStoreNotConfigured, CodecError, CorruptChunk, MissingChunk, TensorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from concurrent.futures import Future

    import psycopg

    StartGet: TypeAlias = Callable[[str, int], Future[bytes]]

MAX_DEPTH = 8
"""How many deltas may lean on one another: what the schema allows."""

# One statement, so that it sees a chunk and its bases at one moment, whoever encodes them anew meanwhile. It walks no
# further than a chain may be long: a forged one may be a circle. Chunks that share a base bring it each. LIMIT keeps
# the planner, which takes chains for much longer than they are, from reading the whole table for a join. What does not
# fit is walked, too, but its payloads stay where they are.
_CHAINS = """
WITH RECURSIVE chain (place, steps, digest, raw_nbytes, stored_nbytes, codec, dtype, payload_checksum, base_digest,
                      depth, payload, blob_location) AS (
    SELECT w.place, 0, d.digest, d.raw_nbytes, d.stored_nbytes, d.codec, d.dtype, d.payload_checksum, d.base_digest,
           d.depth, d.payload, d.blob_location
      FROM unnest(%(digests)b::bytea[]) WITH ORDINALITY AS w (digest, place)
      CROSS JOIN LATERAL (SELECT * FROM arc_halo.tensor_data AS t
                           WHERE t.tenant_id = %(tenant)s AND t.digest = w.digest LIMIT 1) AS d
    UNION ALL
    SELECT c.place, c.steps + 1, d.digest, d.raw_nbytes, d.stored_nbytes, d.codec, d.dtype, d.payload_checksum,
           d.base_digest, d.depth, d.payload, d.blob_location
      FROM chain AS c
      CROSS JOIN LATERAL (SELECT * FROM arc_halo.tensor_data AS t
                           WHERE t.tenant_id = %(tenant)s AND t.digest = c.base_digest LIMIT 1) AS d
     WHERE c.steps < %(max_depth)s),
sized (place, nbytes) AS (
    SELECT place, sum(sum(stored_nbytes)) OVER (ORDER BY place) FROM chain GROUP BY place)
SELECT place, digest, raw_nbytes, stored_nbytes, codec, dtype, payload_checksum, base_digest, depth, payload,
       blob_location
  FROM chain
 WHERE place <= (SELECT coalesce(max(place) FILTER (WHERE nbytes <= %(max_nbytes)s), min(place)) FROM sized)
"""
_ANY_NBYTES = 1 << 62


class StoredChunk(NamedTuple):
    """A row of ``tensor_data``."""

    digest: bytes
    raw_nbytes: int
    stored_nbytes: int
    codec: str
    dtype: str
    payload_checksum: int
    base_digest: bytes | None
    depth: int
    payload: bytes | None
    blob_location: str | None


class _Link(NamedTuple):
    """A chunk of a chain, its checked payload, and what errors call it."""

    chunk: StoredChunk
    payload: bytes
    where: str


@dataclass(frozen=True, slots=True)
class Payloads:
    """What one statement found: chunks and all that they lean on; payloads of the blob store are on their way."""

    chunks: Mapping[bytes, StoredChunk]
    fetched: Mapping[str, Future[bytes]]
    asked: frozenset[bytes]
    """The digests that this tells of, there or not."""

    def decode(self, digest: bytes, where: str, out: memoryview | None = None) -> memoryview:
        """The raw bytes of a chunk, in ``out`` if it fits; the caller compares their digest.

        Raises
        ------
        MissingChunk, CorruptChunk
            The chunk, or one that it leans on, is not there or was changed.
        BlobStoreError
            The blob store does not answer.
        """
        chain = self._chain(digest, where)
        top = chain[0].chunk
        if out is not None and out.nbytes != top.raw_nbytes:
            raise CorruptChunk(
                f"{where}: holds {top.raw_nbytes} bytes where {out.nbytes} belong; restore it from a copy"
            )
        numbers = None
        for link in reversed(chain):
            chunk = link.chunk
            try:
                dtype = by_name(chunk.dtype)
                if numbers is not None:
                    numbers = delta(chunk.codec).apply(link.payload, dtype, chunk.raw_nbytes, numbers)
                elif chunk is top:
                    return codec(chunk.codec).decode(link.payload, dtype, chunk.raw_nbytes, out)
                else:
                    numbers = codec(chunk.codec).decode_numbers(link.payload, dtype, chunk.raw_nbytes)
            except (CodecError, TensorError) as error:
                raise CorruptChunk(f"{link.where}: {error}; restore it from a copy") from error
        assert numbers is not None
        target = np.empty(top.raw_nbytes, np.uint8).data if out is None else out
        numbers.write(target)
        return target

    def line(self, digest: bytes) -> Iterator[StoredChunk]:
        """A chunk and those it leans on, as far as they are there and each is shallower: a forged line is a circle."""
        chunk, depth = self.chunks.get(digest), MAX_DEPTH + 1
        while chunk is not None and chunk.depth < depth:
            yield chunk
            depth = chunk.depth
            chunk = None if chunk.base_digest is None else self.chunks.get(chunk.base_digest)

    def shallow(self, digest: bytes, max_depth: int) -> StoredChunk | None:
        """The chunk, or the first of those it leans on, that a delta ``max_depth`` deep may lean on."""
        return next((chunk for chunk in self.line(digest) if chunk.depth < max_depth), None)

    def _chain(self, digest: bytes, where: str) -> list[_Link]:
        """The chunk and all that it leans on, down to one that leans on nothing."""
        chain: list[_Link] = []
        wanted: bytes | None = digest
        while wanted is not None:
            chunk = self.chunks.get(wanted)
            if chunk is None:
                raise MissingChunk(f"{where}: not in tensor_data; restore it from a copy")
            # Each is shallower than what leans on it, so this comes to an end.
            if chain and chunk.depth + 1 != chain[-1].chunk.depth:
                raise CorruptChunk(f"{where}: that is at another depth than its row says; restore it from a copy")
            payload = self._payload(chunk, where)
            if len(payload) != chunk.stored_nbytes or payload_checksum(payload) != chunk.payload_checksum:
                raise CorruptChunk(f"{where}: the payload's checksum does not match; restore it from a copy")
            chain.append(_Link(chunk, payload, where))
            wanted = chunk.base_digest
            where = f"{where}, which leans on {wanted.hex()}" if wanted is not None else where
        return chain

    def _payload(self, chunk: StoredChunk, where: str) -> bytes:
        if chunk.payload is not None:
            return chunk.payload
        if chunk.blob_location is None:
            raise CorruptChunk(f"{where}: its row has no payload; restore it from a copy")
        try:
            return self.fetched[chunk.blob_location].result()
        except (MissingChunk, CorruptChunk) as error:
            raise type(error)(f"{where}: {error}") from error


def fetch(
    connection: psycopg.Connection[Any],
    tenant_id: int,
    digests: Iterable[bytes],
    start_get: StartGet | None,
    max_nbytes: int = _ANY_NBYTES,
) -> Payloads:
    """Find chunks and what they lean on.

    Parameters
    ----------
    start_get
        Begins to get an object of the blob store, given its location and size; None where no store is configured.
    max_nbytes
        Payloads of the first chunks are found until those of the next would make them more than so many bytes, and
        those of one chunk in any case. Ask again for the others.

    Raises
    ------
    BlobStoreNotConfigured
        A payload is in a blob store, and none is configured.
    """
    asked = list(dict.fromkeys(digests))
    parameters = {"tenant": tenant_id, "digests": asked, "max_depth": MAX_DEPTH, "max_nbytes": max_nbytes}
    chunks: dict[bytes, StoredChunk] = {}
    last = 0
    with connection.cursor(binary=True) as cursor:
        for place, *row in cursor.stream(_CHAINS, parameters):  # a row at a time, or all of them are in memory twice
            last = max(last, place)
            chunks[row[0]] = StoredChunk(*row)
    away = {chunk.blob_location: chunk.stored_nbytes for chunk in chunks.values() if chunk.blob_location is not None}
    if away and start_get is None:
        raise BlobStoreNotConfigured(
            "payloads are in a blob store; set ARC_HALO_BLOB_URL to the URL they were written to"
        )
    fetched = {} if start_get is None else {key: start_get(key, size) for key, size in away.items()}
    return Payloads(chunks, fetched, frozenset(asked[:last] if last else asked))
