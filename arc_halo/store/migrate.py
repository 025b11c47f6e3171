"""Payloads moved between the database and the blob store, while both are in use."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from arc_halo.codecs.digest import payload_checksum
from arc_halo.database.translate import driver_errors
from arc_halo.errors import CorruptChunk, MissingChunk, TransactionConflict
from arc_halo.schema.columns import TENANT_ID
from arc_halo.store.blobs import MIN_BLOB_NBYTES
from arc_halo.store.connections import driver_connection
from arc_halo.store.leases import announce_objects

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterator

    import psycopg
    from sqlalchemy import Engine

    from arc_halo.store.blobs import BlobStore
    from arc_halo.store.progress import Meter

BATCH_ROWS: Final = 16
"""Payloads under way at once: of at most 4 MiB each, and mostly of less than one."""
ATTEMPTS: Final = 5

Tier = Literal["database", "blobs"]

_OF_MODEL = """
   AND EXISTS (SELECT FROM arc_halo.tensor_chunks AS c JOIN arc_halo.model_weights AS w ON w.tensor_id = c.tensor_id
                WHERE c.tenant_id = d.tenant_id AND c.digest = d.digest AND w.model_id = %(model)s)
"""
_IN_DATABASE = """
SELECT d.digest, d.payload_checksum, d.stored_nbytes, d.payload FROM arc_halo.tensor_data AS d
 WHERE d.tenant_id = %(tenant)s AND d.digest > %(after)s AND d.payload IS NOT NULL
   AND d.stored_nbytes >= %(floor)s {of_model} ORDER BY d.digest LIMIT %(rows)s
"""
_IN_BLOBS = """
SELECT d.digest, d.payload_checksum, d.stored_nbytes, d.blob_location FROM arc_halo.tensor_data AS d
 WHERE d.tenant_id = %(tenant)s AND d.digest > %(after)s AND d.blob_location IS NOT NULL {of_model}
 ORDER BY d.digest LIMIT %(rows)s
"""
_TOTAL = """
SELECT coalesce(sum(d.stored_nbytes), 0)::bigint FROM arc_halo.tensor_data AS d
 WHERE d.tenant_id = %(tenant)s AND {there} {of_model}
"""
_IS_NAMED = "SELECT EXISTS (SELECT FROM arc_halo.tensor_data WHERE blob_location = %s)"
_LOCK = """
SELECT FROM arc_halo.tensor_data AS d WHERE d.tenant_id = %(tenant)s AND d.digest = ANY(%(digests)b::bytea[])
 ORDER BY d.digest FOR NO KEY UPDATE
"""
# Only what is still as it was read: who encodes a chunk anew in between has the last word.
_MOVE_TO_BLOBS = """
UPDATE arc_halo.tensor_data AS d SET payload = NULL, blob_location = u.location
  FROM unnest(%(digests)b::bytea[], %(checksums)b::bigint[], %(locations)b::text[]) AS u (digest, checksum, location)
 WHERE d.tenant_id = %(tenant)s AND d.digest = u.digest AND d.payload_checksum = u.checksum AND d.payload IS NOT NULL
RETURNING d.stored_nbytes
"""
_MOVE_TO_DATABASE = """
UPDATE arc_halo.tensor_data AS d SET payload = u.payload, blob_location = NULL
  FROM unnest(%(digests)b::bytea[], %(locations)b::text[], %(payloads)b::bytea[]) AS u (digest, location, payload)
 WHERE d.tenant_id = %(tenant)s AND d.digest = u.digest AND d.blob_location = u.location
RETURNING d.stored_nbytes
"""


@dataclass(slots=True)
class Migrated:
    """Payloads that were moved, and their bytes."""

    payloads: int = 0
    nbytes: int = 0


def migrate_payloads(
    engine: Engine, blobs: BlobStore, to: Tier, meter: Meter, *, model_id: uuid.UUID | None = None
) -> Migrated:
    """Move payloads into the blob store or back, a few at a time, each batch in a transaction of its own.

    Beside readers, writers and `prune`; run again after an interruption, it goes on with what is left. The object is
    there before its row says so, and goes by way of the sweeper after no row says so any more.

    Parameters
    ----------
    to
        ``"blobs"`` or ``"database"``. Small payloads stay in the database.
    model_id
        Only chunks of this model; all by default.

    Raises
    ------
    BlobStoreError, CorruptionError
        The blob store does not answer, or a payload is not as it was written; what was moved before stays so.
    TransactionConflict
        Others encode the same chunks anew as fast as they are to be moved.
    """
    moved = Migrated()
    place = {"tenant": TENANT_ID, "model": model_id, "floor": MIN_BLOB_NBYTES, "rows": BATCH_ROWS}
    of_model = "" if model_id is None else _OF_MODEL
    with engine.connect() as connection, driver_errors():
        driver = driver_connection(connection)
        there = "d.blob_location IS NOT NULL"
        if to == "blobs":
            there = f"d.payload IS NOT NULL AND d.stored_nbytes >= {MIN_BLOB_NBYTES}"
        row = driver.execute(_TOTAL.format(there=there, of_model=of_model), place).fetchone()
        meter.total = row[0] if row else 0
        driver.rollback()
        statement = (_IN_DATABASE if to == "blobs" else _IN_BLOBS).format(of_model=of_model)
        for rows in _batches(driver, statement, place):
            sizes = _to_blobs(driver, blobs, rows) if to == "blobs" else _to_database(driver, blobs, rows)
            moved.payloads += len(sizes)
            moved.nbytes += sum(sizes)
            meter.add(sum(row[2] for row in rows))
    return moved


def _batches(driver: psycopg.Connection[Any], statement: str, place: dict[str, Any]) -> Iterator[list[tuple[Any, ...]]]:
    after = b""
    while True:
        with driver.cursor(binary=True) as cursor:
            rows = cursor.execute(statement, place | {"after": after}).fetchall()
        driver.rollback()  # no snapshot is held while objects travel
        if not rows:
            return
        yield rows
        after = rows[-1][0]


def _to_blobs(driver: psycopg.Connection[Any], blobs: BlobStore, rows: list[tuple[Any, ...]]) -> list[int]:
    for digest, checksum, _, payload in rows:
        _compare(digest, checksum, payload)
    with driver.transaction():
        owner = announce_objects(driver)  # else the sweeper could take an object before its row names it
        started = [blobs.start_put(digest, payload, owner) for digest, _, _, payload in rows]
        parameters = {
            "tenant": TENANT_ID,
            "digests": [row[0] for row in rows],
            "checksums": [row[1] for row in rows],
            "locations": [future.result() for future in started],
        }
        return _update(driver, _MOVE_TO_BLOBS, parameters)


def _to_database(driver: psycopg.Connection[Any], blobs: BlobStore, rows: list[tuple[Any, ...]]) -> list[int]:
    fetched = list(_fetch(driver, blobs, rows))
    for (digest, checksum, _, _), payload in fetched:
        _compare(digest, checksum, payload)
    parameters = {
        "tenant": TENANT_ID,
        "digests": [row[0] for row, _ in fetched],
        "locations": [row[3] for row, _ in fetched],
        "payloads": [payload for _, payload in fetched],
    }
    return _update(driver, _MOVE_TO_DATABASE, parameters)


def _fetch(
    driver: psycopg.Connection[Any], blobs: BlobStore, rows: list[tuple[Any, ...]]
) -> Iterator[tuple[tuple[Any, ...], bytes]]:
    """Rows with their objects, but for those that went together since the rows were read."""
    started = [(row, blobs.start_get(row[3], row[2])) for row in rows]
    for row, future in started:
        try:
            payload = future.result()
        except MissingChunk as error:
            is_named = driver.execute(_IS_NAMED, (row[3],)).fetchone()
            driver.rollback()
            if is_named == (True,):
                raise MissingChunk(f"chunk {row[0].hex()}: {error}; repair it, then migrate again") from error
        else:
            yield row, payload


def _compare(digest: bytes, checksum: int, payload: bytes) -> None:
    if payload_checksum(payload) != checksum:
        raise CorruptChunk(
            f"chunk {digest.hex()}: the payload's checksum does not match; repair it, then migrate again"
        )


def _update(driver: psycopg.Connection[Any], statement: str, parameters: dict[str, Any]) -> list[int]:
    """Change rows, locked in the order of everybody; once more where that met one who changes a base and its deltas."""
    for _attempt in range(ATTEMPTS):
        with suppress(TransactionConflict), driver_errors(), driver.transaction():
            driver.execute(_LOCK, parameters)
            return [row[0] for row in driver.execute(statement, parameters)]
    raise TransactionConflict("payloads are being encoded anew all the time; migrate again later")
