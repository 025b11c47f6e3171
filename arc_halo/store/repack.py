"""Chunks encoded anew: under another policy, or leaning on another chunk, or on none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from arc_halo.codecs import codec, delta
from arc_halo.codecs.delta import Base
from arc_halo.codecs.digest import chunk_digest, payload_checksum
from arc_halo.codecs.policy import MAX_DEPTH, POLICIES, Encoded, PolicyName, encode_chunk
from arc_halo.database.translate import driver_errors
from arc_halo.dtypes import by_name
from arc_halo.errors import ConstraintViolation, CorruptChunk, DigestMismatch, LockTimeout, TransactionConflict
from arc_halo.schema.columns import TENANT_ID
from arc_halo.store.blobs import MIN_BLOB_NBYTES
from arc_halo.store.connections import driver_connection
from arc_halo.store.leases import announce_objects
from arc_halo.store.payloads import Payloads, fetch

if TYPE_CHECKING:
    from collections.abc import Iterable

    import psycopg
    from sqlalchemy import Engine

    from arc_halo.dtypes import DType
    from arc_halo.store.blobs import BlobStore
    from arc_halo.store.payloads import StoredChunk
    from arc_halo.store.progress import Meter

ATTEMPTS: Final = 5

_UPDATE = """
UPDATE arc_halo.tensor_data
   SET codec = %(codec)s, stored_nbytes = %(stored_nbytes)s, payload_checksum = %(payload_checksum)s,
       base_digest = %(base_digest)s, base_depth = %(base_depth)s, payload = %(payload)b,
       blob_location = %(blob_location)s
 WHERE tenant_id = %(tenant)s AND digest = %(digest)s AND payload_checksum = %(was)s
"""
_LEANING = """
SELECT d.digest,
       coalesce((SELECT t.compression FROM arc_halo.tensor_chunks AS c
                   JOIN arc_halo.tensor_metadata AS t ON t.id = c.tensor_id
                  WHERE c.tenant_id = d.tenant_id AND c.digest = d.digest
                  ORDER BY array_position(%s::text[], t.compression) DESC LIMIT 1), 'balanced')
  FROM arc_halo.tensor_data AS d WHERE d.tenant_id = %s AND d.base_digest = %s ORDER BY d.stored_nbytes, d.digest
"""


@dataclass(frozen=True, slots=True)
class Wish:
    """A chunk to be encoded anew, and the chunk it may lean on; ``base_dtype`` says how to read that."""

    digest: bytes
    policy: PolicyName
    base_digest: bytes | None = None
    base_dtype: DType | None = None


@dataclass(slots=True)
class Repacked:
    """Chunks looked at and encoded anew, and the bytes they took before and take now."""

    chunks: int = 0
    changed: int = 0
    before_nbytes: int = 0
    after_nbytes: int = 0


def repack_chunks(engine: Engine, blobs: BlobStore | None, wishes: Iterable[Wish], meter: Meter) -> Repacked:
    """Encode chunks anew, each in a transaction of its own, beside readers, writers and `prune`.

    A chunk leans on what its wish names, or on what that leans on, if that is smaller and allowed: not on what leans on
    it, and no deeper than the policy says.

    Raises
    ------
    CorruptionError
        A chunk, or what it is to lean on, is not sound; it is left as it is.
    """
    done = Repacked()
    with engine.connect() as connection:
        for wish in wishes:
            for _attempt in range(ATTEMPTS):
                try:
                    with driver_errors(), connection.begin():
                        connection.exec_driver_sql("SET LOCAL synchronous_commit TO off")
                        change = _repack(driver_connection(connection), blobs, wish)
                    break
                except (ConstraintViolation, TransactionConflict, LockTimeout) as error:
                    # A base that went or moved, or grew too deep for what leans on it: without one it always fits.
                    if isinstance(error, ConstraintViolation):
                        wish = Wish(wish.digest, wish.policy)  # noqa: PLW2901  the same chunk, asking for less
            else:
                raise TransactionConflict(f"chunk {wish.digest.hex()} is in use by others all the time; try later")
            done.chunks += 1
            done.changed += change.is_made
            done.before_nbytes += change.before_nbytes
            done.after_nbytes += change.after_nbytes
            meter.add(change.before_nbytes)
    return done


class _Change(NamedTuple):
    """Whether a chunk was encoded anew, and the bytes it took and takes."""

    is_made: bool
    before_nbytes: int
    after_nbytes: int


def _repack(connection: psycopg.Connection[Any], blobs: BlobStore | None, wish: Wish) -> _Change:
    """Encode one chunk anew if that changes it."""
    asked = [wish.digest] if wish.base_digest is None else [wish.digest, wish.base_digest]
    payloads = fetch(connection, TENANT_ID, asked, None if blobs is None else blobs.start_get)
    chunk = payloads.chunks.get(wish.digest)
    if chunk is None:
        return _Change(is_made=False, before_nbytes=0, after_nbytes=0)  # pruned since it was listed
    raw = _decode(payloads, chunk)
    base_chunk = _allowed(payloads, wish, MAX_DEPTH[wish.policy])
    base = None
    if base_chunk is not None:
        raw_base = _decode(payloads, base_chunk)
        dtype = wish.base_dtype if base_chunk.digest == wish.base_digest else None
        base = Base(raw_base, dtype or by_name(base_chunk.dtype))
    encoded = encode_chunk(raw, by_name(chunk.dtype), wish.policy, base)
    leans_on = base_chunk if encoded.is_delta else None
    if (encoded.codec, len(encoded.payload)) == (chunk.codec, chunk.stored_nbytes) and chunk.base_digest == (
        None if leans_on is None else leans_on.digest
    ):
        return _Change(is_made=False, before_nbytes=chunk.stored_nbytes, after_nbytes=chunk.stored_nbytes)
    _check(encoded, chunk, raw, base)
    is_made = _update(connection, blobs, chunk, encoded, leans_on)
    return _Change(is_made, chunk.stored_nbytes, len(encoded.payload) if is_made else chunk.stored_nbytes)


def _decode(payloads: Payloads, chunk: StoredChunk) -> memoryview:
    """Bytes that the digest names: a delta of any others would be lost as soon as its base is repaired."""
    where = f"chunk {chunk.digest.hex()}"
    raw = payloads.decode(chunk.digest, where)
    if chunk_digest(raw) != chunk.digest:
        raise DigestMismatch(f"{where} decodes to other bytes than its digest names; repair it first")
    return raw


def _allowed(payloads: Payloads, wish: Wish, max_depth: int) -> StoredChunk | None:
    """The base that is wished for, or what it leans on where it is too deep; none that leans on the chunk itself."""
    base = payloads.shallow(wish.base_digest, max_depth) if wish.base_digest is not None else None
    if base is None or any(below.digest == wish.digest for below in payloads.line(base.digest)):
        return None
    return base


def _check(encoded: Encoded, chunk: StoredChunk, raw: memoryview, base: Base | None) -> None:
    """Decode what is about to replace the only copy."""
    dtype = by_name(chunk.dtype)
    if encoded.is_delta:
        assert base is not None
        again = delta(encoded.codec).decode(encoded.payload, dtype, raw.nbytes, base.raw)
    else:
        again = codec(encoded.codec).decode(encoded.payload, dtype, raw.nbytes)
    if chunk_digest(again) != chunk.digest:
        raise CorruptChunk(f"chunk {chunk.digest.hex()} would not come back from {encoded.codec}; it is left as it is")


def _update(
    connection: psycopg.Connection[Any],
    blobs: BlobStore | None,
    chunk: StoredChunk,
    encoded: Encoded,
    leans_on: StoredChunk | None,
) -> bool:
    """Replace the payload; False if somebody else did since it was read."""
    if blobs is not None:  # else a crash could bring the row back when its object is swept already
        connection.execute("SET LOCAL synchronous_commit TO DEFAULT")
    is_away = blobs is not None and len(encoded.payload) >= MIN_BLOB_NBYTES
    location = None
    if blobs is not None and is_away:
        location = blobs.put(chunk.digest, encoded.payload, announce_objects(connection))
    updated = connection.execute(
        _UPDATE,
        {
            "tenant": TENANT_ID,
            "digest": chunk.digest,
            "was": chunk.payload_checksum,
            "codec": encoded.codec,
            "stored_nbytes": len(encoded.payload),
            "payload_checksum": payload_checksum(encoded.payload),
            "base_digest": None if leans_on is None else leans_on.digest,
            "base_depth": None if leans_on is None else leans_on.depth,
            "payload": None if is_away else encoded.payload,
            "blob_location": location,
        },
    )
    return updated.rowcount > 0


def reroot(engine: Engine, blobs: BlobStore | None, digest: bytes, meter: Meter) -> Repacked:
    """Let nothing lean on a chunk any more.

    What leans on it is made to lean on its own base, where it has one. Otherwise the smallest of them becomes the new
    root, and the others lean on that.
    """
    with engine.connect() as connection, driver_errors(), connection.begin():
        driver = driver_connection(connection)
        leaning = driver.execute(_LEANING, (list(POLICIES), TENANT_ID, digest)).fetchall()
        root = fetch(driver, TENANT_ID, [digest], None if blobs is None else blobs.start_get).chunks.get(digest)
    if root is None or not leaning:
        return Repacked()
    if root.base_digest is not None:
        wishes = [Wish(each, policy, root.base_digest) for each, policy in leaning]
    else:
        (heir, policy), *others = leaning
        wishes = [Wish(heir, policy), *(Wish(each, policy, heir) for each, policy in others)]
    return repack_chunks(engine, blobs, wishes, meter)
