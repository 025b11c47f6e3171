"""Content that nothing refers to, deleted beside running writers."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, text

from arc_halo.errors import ConstraintViolation, CorruptionError, TransactionConflict
from arc_halo.store.leases import HORIZON, UploadUnderWay, release_gone, uploads_under_way
from arc_halo.store.progress import Meter
from arc_halo.store.repack import reroot

if TYPE_CHECKING:
    from arc_halo.store.blobs import BlobStore

GRACE = dt.timedelta(days=1)
"""Content that nothing refers to lives this long before it may be taken."""
BATCH_ROWS = 500
ATTEMPTS = 5

# Which columns refer to a tensor is asked of the catalog, so that no table added later can be forgotten. What goes
# with the tensor (ON DELETE CASCADE) does not keep it.
_REFERRERS = """
SELECT c.conrelid::pg_catalog.regclass::text, pg_catalog.quote_ident(a.attname)
  FROM pg_catalog.pg_constraint AS c
  JOIN pg_catalog.pg_attribute AS a
    ON a.attrelid = c.conrelid AND a.attnum = c.conkey[pg_catalog.cardinality(c.conkey)]
 WHERE c.contype = 'f' AND c.confrelid = 'arc_halo.tensor_metadata'::pg_catalog.regclass
   AND c.conparentid = 0 AND c.confdeltype <> 'c' ORDER BY 1, 2
"""
_UNUSED_TENSOR = f"t.touched_at <= {HORIZON} AND t.id > :after AND {{unreferenced}}"
_OLD_CHUNK = f"d.touched_at <= {HORIZON}"
_NO_TENSOR = """NOT EXISTS (
    SELECT FROM arc_halo.tensor_chunks AS c WHERE c.tenant_id = d.tenant_id AND c.digest = d.digest)"""
_HAS_DELTAS = """EXISTS (
    SELECT FROM arc_halo.tensor_data AS u WHERE u.tenant_id = d.tenant_id AND u.base_digest = d.digest)"""
_DELETE_TENSORS = """
WITH unused AS (
    SELECT t.id FROM arc_halo.tensor_metadata AS t WHERE {unused} ORDER BY t.id LIMIT :rows FOR UPDATE SKIP LOCKED)
DELETE FROM arc_halo.tensor_metadata AS t USING unused WHERE t.id = unused.id RETURNING t.id, t.nbytes
"""
_DELETE_CHUNKS = f"""
WITH unused AS (
    SELECT d.tenant_id, d.digest FROM arc_halo.tensor_data AS d
     WHERE {_OLD_CHUNK} AND d.digest > :after AND {_NO_TENSOR} AND NOT {_HAS_DELTAS}
     ORDER BY d.digest LIMIT :rows FOR UPDATE SKIP LOCKED)
DELETE FROM arc_halo.tensor_data AS d USING unused
 WHERE d.tenant_id = unused.tenant_id AND d.digest = unused.digest RETURNING d.digest, d.stored_nbytes
"""  # noqa: S608  made of constants, as those below
# Deepest first: what leans on them leans on their base afterwards, which may be one of them.
_UNUSED_BASES = f"""
SELECT d.digest FROM arc_halo.tensor_data AS d
 WHERE {_OLD_CHUNK} AND {_NO_TENSOR} AND {_HAS_DELTAS} AND d.digest <> ALL(CAST(:skipped AS bytea[]))
 ORDER BY d.depth DESC, d.digest LIMIT :rows
"""  # noqa: S608
_COUNT = f"""
WITH unused AS (SELECT t.id FROM arc_halo.tensor_metadata AS t WHERE {{unused}}),
     freed AS (SELECT d.stored_nbytes FROM arc_halo.tensor_data AS d
                WHERE {_OLD_CHUNK}
                  AND NOT EXISTS (SELECT FROM arc_halo.tensor_chunks AS c
                                   WHERE c.tenant_id = d.tenant_id AND c.digest = d.digest
                                     AND NOT EXISTS (SELECT FROM unused WHERE unused.id = c.tensor_id)))
SELECT (SELECT count(*) FROM unused), count(*), coalesce(sum(stored_nbytes), 0)::bigint FROM freed
"""  # noqa: S608
# Whatever the grace: a row is the answer to those who lost theirs a moment ago.
_DELETE_OPERATIONS = "DELETE FROM arc_halo.operations WHERE committed_at < now() - interval '1 day'"


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was deleted, or would be: rows of ``tensor_metadata``, rows of ``tensor_data`` and stored bytes.

    Bytes are net of those that deltas grew by when their base went; a dry run does not know these. ``held_up_by`` are
    the uploads for whose sake more stayed than the grace period asks for.
    """

    tensors: int
    chunks: int
    stored_nbytes: int
    held_up_by: tuple[UploadUnderWay, ...] = ()


def prune(
    engine: Engine, *, blobs: BlobStore | None = None, grace: dt.timedelta = GRACE, dry_run: bool = False
) -> Pruned:
    """Delete tensors and chunks that nothing refers to and no writer has relied on since the grace period began.

    Runs beside writers in short transactions of its own: rows that are locked are left for the next time, what an
    upload under way relies on is younger than its lease, and the foreign keys refuse what came into use in between.
    Chunks that only deltas need go, too: the deltas are encoded anew, leaning on something else.

    Parameters
    ----------
    blobs
        The blob store, if payloads are in one. Its objects are deleted by the sweeper, when nobody reads them.
    grace
        How long content stays that nothing refers to; small saves that hold no lease want an hour more than their
        transaction takes. What is pruned under a writer nevertheless is stored again by it.
    dry_run
        Count only.
    """
    with engine.connect() as connection:
        with connection.begin():
            unused = _UNUSED_TENSOR.format(unreferenced=_unreferenced(connection))
        parameters = {"grace": grace.total_seconds(), "after": uuid.UUID(int=0)}
        if dry_run:
            with connection.begin():
                counted = connection.execute(text(_COUNT.format(unused=unused)), parameters).one()
                return Pruned(counted[0], counted[1], counted[2], uploads_under_way(connection, grace))
        with connection.begin():
            release_gone(connection)
            connection.execute(text(_DELETE_OPERATIONS))
        tensors, _ = _delete(connection, _DELETE_TENSORS.format(unused=unused), parameters)
        chunks = freed = 0
        while True:  # a chunk whose last delta went is free after it
            more, nbytes = _delete(connection, _DELETE_CHUNKS, parameters | {"after": b""})
            chunks, freed = chunks + more, freed + nbytes
            if not more:
                grown = _release_bases(connection, blobs, grace)
                if grown is None:
                    break
                freed -= grown
        with connection.begin():
            return Pruned(tensors, chunks, freed, uploads_under_way(connection, grace))


def _release_bases(connection: Connection, blobs: BlobStore | None, grace: dt.timedelta) -> int | None:
    """Let nothing lean on chunks that only deltas need; returns the bytes that those grew by, None if there are none.

    A chunk that is damaged, or has damaged deltas, is left for `verify` and `repair`.
    """
    grown, released, skipped = 0, False, list[bytes]()
    while True:
        with connection.begin():
            asked = {"grace": grace.total_seconds(), "rows": BATCH_ROWS, "skipped": skipped}
            digests = connection.scalars(text(_UNUSED_BASES), asked).all()
        if not digests:
            return grown if released else None
        for digest in digests:
            try:
                repacked = reroot(connection.engine, blobs, digest, Meter(None, "repack", 0))
            except (CorruptionError, TransactionConflict):
                skipped.append(digest)
            else:
                grown += repacked.after_nbytes - repacked.before_nbytes
                released = True


def _unreferenced(connection: Connection) -> str:
    referrers = connection.execute(text(_REFERRERS)).all()
    return " AND ".join(
        f"NOT EXISTS (SELECT FROM {table} AS r WHERE r.{column} = t.id)"  # names from the catalog, quoted
        for table, column in referrers
    )


def _delete(connection: Connection, statement: str, parameters: dict[str, Any]) -> tuple[int, int]:
    """Delete batch by batch, in the order of the key; returns rows and bytes."""
    rows = nbytes = 0
    while deleted := _delete_batch(connection, statement, parameters):
        rows += len(deleted)
        nbytes += sum(size for _, size in deleted)
        parameters = parameters | {"after": max(key for key, _ in deleted)}
    return rows, nbytes


def _delete_batch(connection: Connection, statement: str, parameters: dict[str, Any]) -> list[tuple[Any, int]]:
    for _attempt in range(ATTEMPTS):
        try:
            with connection.begin():
                result = connection.execute(text(statement), parameters | {"rows": BATCH_ROWS})
                return [(key, size) for key, size in result]
        except ConstraintViolation as error:
            # Somebody began to use a row between our snapshot and our lock; the next snapshot shows it.
            if not error.is_dangling:
                raise
    raise TransactionConflict("content came into use as fast as it was found unused; prune again later")
