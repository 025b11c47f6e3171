"""Damaged chunks put right from a copy that has the bytes their digests name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from sqlalchemy import text

from arc_halo.codecs.digest import chunk_digest, payload_checksum
from arc_halo.codecs.policy import PolicyName, encode_chunk
from arc_halo.database.translate import driver_errors
from arc_halo.dtypes import by_name
from arc_halo.errors import ArcHaloError, CorruptionError
from arc_halo.schema.columns import TENANT_ID
from arc_halo.store.blobs import MIN_BLOB_NBYTES
from arc_halo.store.connections import Reading, driver_connection
from arc_halo.store.leases import announce_objects
from arc_halo.store.payloads import fetch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.codecs.abc import BytesLike
    from arc_halo.store.blobs import BlobStore
    from arc_halo.store.payloads import StoredChunk
    from arc_halo.store.sources import TensorSource

_PLACES: Final = text("""
SELECT DISTINCT ON (c.digest, w.name) c.digest, w.name, c.raw_offset, c.raw_nbytes, t.dtype, t.compression
  FROM arc_halo.tensor_chunks AS c
  JOIN arc_halo.tensor_metadata AS t ON t.id = c.tensor_id
  LEFT JOIN LATERAL (
    SELECT m.name FROM arc_halo.model_weights AS m WHERE m.tensor_id = c.tensor_id
     UNION ALL
    SELECT p.name FROM arc_halo.checkpoint_tensors AS p
     WHERE p.tensor_id = c.tensor_id AND p.component = 'weights' AND p.shard_offsets IS NULL
     UNION ALL
    SELECT a.hook_point FROM arc_halo.activation_cache AS a WHERE a.tensor_id = c.tensor_id) AS w ON true
 WHERE c.tenant_id = :tenant AND c.digest = ANY(CAST(:digests AS bytea[]))
""")
_DEPTHS: Final = text("""
SELECT digest, depth FROM arc_halo.tensor_data
 WHERE tenant_id = :tenant AND digest = ANY(CAST(:digests AS bytea[]))
""")
_RESTORE: Final = text("""
INSERT INTO arc_halo.tensor_data AS d (tenant_id, digest, raw_nbytes, stored_nbytes, codec, dtype, payload_checksum,
                                       base_digest, base_depth, payload, blob_location)
VALUES (:tenant, :digest, :raw_nbytes, :stored_nbytes, :codec, :dtype, :checksum, NULL, NULL, :payload, :location)
ON CONFLICT (tenant_id, digest) DO UPDATE
   SET raw_nbytes = excluded.raw_nbytes, stored_nbytes = excluded.stored_nbytes, codec = excluded.codec,
       dtype = excluded.dtype, payload_checksum = excluded.payload_checksum, base_digest = NULL, base_depth = NULL,
       payload = excluded.payload, blob_location = excluded.blob_location, touched_at = now()
""")
_REPLACE_OBJECT: Final = text("""
UPDATE arc_halo.tensor_data SET payload = NULL, blob_location = :location, touched_at = now()
 WHERE tenant_id = :tenant AND digest = :digest
""")


class Place(Protocol):
    """Where else the bytes of a tensor may be."""

    def source(self, name: str) -> TensorSource | None:
        """The tensor of that name, if the copy has one."""


@dataclass(slots=True)
class Repaired:
    """Digests of the chunks that were put right, and of those that no copy has."""

    repaired: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Use:
    """A place of a damaged chunk in a tensor."""

    name: str | None
    offset: int
    nbytes: int
    dtype: str
    compression: PolicyName


def repair_chunks(
    session: Session, digests: Iterable[bytes], copies: Sequence[Place], blobs: BlobStore | None
) -> Repaired:
    """Put damaged or missing chunks right, in the caller's transaction.

    A copy is asked for the same span of the tensor of the same name; objects of the blob store are found by their
    keys, whatever became of their rows. Only bytes that the digest names are taken.

    Parameters
    ----------
    digests
        Of chunks that are not sound; those that are stay as they are.
    copies
        Files or models that may have the tensors.
    """
    suspects = _bases_first(session, dict.fromkeys(digests))
    uses: dict[bytes, list[_Use]] = {digest: [] for digest in suspects}
    for digest, *use in session.execute(_PLACES, {"tenant": TENANT_ID, "digests": suspects}):
        uses[digest].append(_Use(*use))
    done = Repaired()
    for digest in suspects:
        if _is_sound(session, digest):
            continue  # or it became so with its base
        is_repaired = _restore_object(session, digest, blobs) or _restore_copy(
            session, digest, uses[digest], copies, blobs
        )
        (done.repaired if is_repaired else done.missing).append(digest.hex())
    return done


def _bases_first(session: Session, digests: Iterable[bytes]) -> list[bytes]:
    asked = list(digests)
    rows = session.execute(_DEPTHS, {"tenant": TENANT_ID, "digests": asked})
    depths: dict[bytes, int] = {digest: depth for digest, depth in rows}  # noqa: C416  rows are no pairs to mypy
    return sorted(asked, key=lambda digest: depths.get(digest, 0))


def _is_sound(session: Session, digest: bytes) -> bool:
    try:
        return chunk_digest(_read(session, digest)) == digest
    except CorruptionError:
        return False


def _read(session: Session, digest: bytes) -> memoryview:
    connect = Reading(session)
    blobs = connect.blobs
    with connect() as connection:
        payloads = fetch(connection, TENANT_ID, [digest], None if blobs is None else blobs.start_get)
    return payloads.decode(digest, f"chunk {digest.hex()}")


def _restore_object(session: Session, digest: bytes, blobs: BlobStore | None) -> bool:
    """Point the row at another object that has its payload: the checksum tells which."""
    if blobs is None:
        return False
    with Reading(session)() as connection:
        chunk: StoredChunk | None = fetch(connection, TENANT_ID, [digest], blobs.start_get).chunks.get(digest)
    if chunk is None:
        return False
    for blob in blobs.blobs(digest):
        if blob.nbytes < chunk.stored_nbytes or blob.location == chunk.blob_location:
            continue
        try:
            payload = blobs.get(blob.location, chunk.stored_nbytes)
        except CorruptionError:
            continue  # the sweeper has been there since it was listed
        if payload_checksum(payload) == chunk.payload_checksum:
            with session.begin_nested() as attempt:
                # A new object: the one that was found may be on the sweeper's list.
                location = _put(session, blobs, digest, payload)
                session.execute(_REPLACE_OBJECT, {"tenant": TENANT_ID, "digest": digest, "location": location})
                if _is_sound(session, digest):
                    return True
                attempt.rollback()
    return False


def _restore_copy(
    session: Session, digest: bytes, uses: Sequence[_Use], copies: Sequence[Place], blobs: BlobStore | None
) -> bool:
    for use, raw in _candidates(uses, copies):
        if chunk_digest(raw) != digest:
            continue
        codec, payload, _ = encode_chunk(raw, by_name(use.dtype), use.compression)
        is_away = blobs is not None and len(payload) >= MIN_BLOB_NBYTES
        values: dict[str, Any] = {
            "tenant": TENANT_ID,
            "digest": digest,
            "raw_nbytes": raw.nbytes,
            "stored_nbytes": len(payload),
            "codec": codec,
            "dtype": use.dtype,
            "checksum": payload_checksum(payload),
            "payload": None if is_away else bytes(payload),
            "location": _put(session, blobs, digest, payload) if blobs is not None and is_away else None,
        }
        session.execute(_RESTORE, values)
        return True
    return False


def _put(session: Session, blobs: BlobStore, digest: bytes, payload: BytesLike) -> str:
    with driver_errors():
        owner = announce_objects(driver_connection(session.connection()))
    return blobs.put(digest, payload, owner)


def _candidates(uses: Sequence[_Use], copies: Sequence[Place]) -> Iterator[tuple[_Use, memoryview]]:
    for use in uses:
        for copy in copies:
            source = None if use.name is None else copy.source(use.name)
            if source is None or use.offset + use.nbytes > source.nbytes:
                continue
            raw = np.empty(use.nbytes, np.uint8).data
            try:
                source.read_into(use.offset, raw)
            except (ArcHaloError, OSError):
                continue  # that copy is damaged, too, here; another may not be
            yield use, raw
