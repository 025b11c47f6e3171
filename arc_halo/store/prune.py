"""Content that nothing refers to, deleted beside running writers."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, text

from arc_halo.errors import ConstraintViolation, TransactionConflict

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
_UNUSED_TENSOR = """t.touched_at <= now() - make_interval(secs => :grace) AND t.id > :after AND {unreferenced}"""
_OLD_CHUNK = """d.touched_at <= now() - make_interval(secs => :grace)
   AND NOT EXISTS (SELECT FROM arc_halo.tensor_data AS u
                    WHERE u.tenant_id = d.tenant_id AND u.base_digest = d.digest)"""
_DELETE_TENSORS = """
WITH unused AS (
    SELECT t.id FROM arc_halo.tensor_metadata AS t WHERE {unused} ORDER BY t.id LIMIT :rows FOR UPDATE SKIP LOCKED)
DELETE FROM arc_halo.tensor_metadata AS t USING unused WHERE t.id = unused.id RETURNING t.id, t.nbytes
"""
_DELETE_CHUNKS = """
WITH unused AS (
    SELECT d.tenant_id, d.digest FROM arc_halo.tensor_data AS d
     WHERE {old} AND d.digest > :after
       AND NOT EXISTS (SELECT FROM arc_halo.tensor_chunks AS c WHERE c.tenant_id = d.tenant_id AND c.digest = d.digest)
     ORDER BY d.digest LIMIT :rows FOR UPDATE SKIP LOCKED)
DELETE FROM arc_halo.tensor_data AS d USING unused
 WHERE d.tenant_id = unused.tenant_id AND d.digest = unused.digest RETURNING d.digest, d.stored_nbytes
"""
_COUNT = """
WITH unused AS (SELECT t.id FROM arc_halo.tensor_metadata AS t WHERE {unused}),
     freed AS (SELECT d.stored_nbytes FROM arc_halo.tensor_data AS d
                WHERE {old}
                  AND NOT EXISTS (SELECT FROM arc_halo.tensor_chunks AS c
                                   WHERE c.tenant_id = d.tenant_id AND c.digest = d.digest
                                     AND NOT EXISTS (SELECT FROM unused WHERE unused.id = c.tensor_id)))
SELECT (SELECT count(*) FROM unused), count(*), coalesce(sum(stored_nbytes), 0)::bigint FROM freed
"""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was deleted, or would be: rows of ``tensor_metadata``, rows of ``tensor_data`` and their stored bytes."""

    tensors: int
    chunks: int
    stored_nbytes: int


def prune(engine: Engine, *, grace: dt.timedelta = GRACE, dry_run: bool = False) -> Pruned:
    """Delete tensors and chunks that nothing refers to and no writer has relied on since the grace period began.

    Runs beside writers in short transactions of its own: rows that are locked are left for the next time, and the
    foreign keys refuse what came into use in between.

    Parameters
    ----------
    grace
        At least an hour more than the longest import takes: an upload under way is not yet referred to. One that is
        pruned nevertheless stores again what is missing.
    dry_run
        Count only.
    """
    with engine.connect() as connection:
        with connection.begin():
            unused = _UNUSED_TENSOR.format(unreferenced=_unreferenced(connection))
        parameters = {"grace": grace.total_seconds(), "after": uuid.UUID(int=0)}
        if dry_run:
            with connection.begin():
                counting = text(_COUNT.format(unused=unused, old=_OLD_CHUNK))
                return Pruned(*connection.execute(counting, parameters).one())
        tensors, _ = _delete(connection, _DELETE_TENSORS.format(unused=unused), parameters)
        chunks, freed = _delete(connection, _DELETE_CHUNKS.format(old=_OLD_CHUNK), parameters | {"after": b""})
        return Pruned(tensors, chunks, freed)


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
