"""Objects that no row needs, deleted from the blob store: those that rows let go of, and those that never had one."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from arc_halo.store.blobs import is_ours
from arc_halo.store.leases import HORIZON, OBJECTS_LOCK, release_gone

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

    from arc_halo.store.blobs import BlobStore
    from arc_halo.store.folder import Blob

GRACE: Final = dt.timedelta(hours=1)
"""A reader that found a row has as long to fetch its object."""
BATCH_ROWS: Final = 500

# Held to the end of the transaction, in which the objects are deleted: a crash leaves the request, and no two sweepers
# work on one.
_REQUESTED: Final = text("""
SELECT b.id, b.blob_location FROM arc_halo.blob_deletions AS b
 WHERE b.requested_at <= now() - make_interval(secs => :grace) ORDER BY b.id LIMIT :rows FOR UPDATE SKIP LOCKED
""")
# Nothing of ours names an object twice; who puts rows back by hand may.
_NAMED: Final = text("""
SELECT blob_location FROM arc_halo.tensor_data WHERE blob_location = ANY(CAST(:locations AS text[]))
""")
_FORGET: Final = text("DELETE FROM arc_halo.blob_deletions WHERE id = ANY(CAST(:ids AS bigint[]))")
_COUNT_REQUESTED: Final = text("""
SELECT count(*) FROM arc_halo.blob_deletions AS b WHERE b.requested_at <= now() - make_interval(secs => :grace)
""")
_NEEDED: Final = text("""
SELECT blob_location FROM arc_halo.tensor_data WHERE blob_location = ANY(CAST(:locations AS text[]))
UNION ALL
SELECT blob_location FROM arc_halo.blob_deletions WHERE blob_location = ANY(CAST(:locations AS text[]))
""")
# What holds no lease puts its objects and names them in one transaction, however long that lasts: a small save, a
# repair, a move. So every transaction under way counts, readers, too; one of another role whose beginning is hidden
# counts if it holds the lock, and may have begun at any time. The hour is for clocks: the store has one of its own.
_HORIZON: Final = text(f"""
SELECT least({HORIZON},
             (SELECT min(coalesce(a.xact_start, 'epoch')) - interval '1 hour'
                FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
               WHERE l.locktype = 'advisory' AND l.classid = {OBJECTS_LOCK[0]} AND l.objid = {OBJECTS_LOCK[1]}
                 AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())),
             (SELECT min(a.xact_start) - interval '1 hour' FROM pg_stat_activity AS a
               WHERE a.datname = current_database() AND a.backend_type = 'client backend'
                 AND a.pid <> pg_backend_pid()))
""")  # noqa: S608  constants of ours


@dataclass(slots=True)
class Swept:
    """What was deleted, or would be, and what of the store is not ours.

    ``requested`` objects were let go of by rows, ``orphans`` never had one; ``foreign`` keys are of another form.
    """

    requested: int = 0
    orphans: int = 0
    orphan_nbytes: int = 0
    foreign: int = 0


def sweep(engine: Engine, blobs: BlobStore, *, grace: dt.timedelta = GRACE, dry_run: bool = False) -> Swept:
    """Delete objects that no row needs; beside readers, writers and other sweepers.

    No key is used twice, so an object that has no row, and is older than every upload under way, will never have one.

    Parameters
    ----------
    grace
        Objects stay so long after a row let go of them, or after they were written.
    dry_run
        Count only.

    Raises
    ------
    BlobStoreError
        The store does not answer, or refuses; what was not deleted is left for the next time.
    """
    swept = Swept()
    with engine.connect() as connection:
        if dry_run:
            swept.requested = connection.scalar(_COUNT_REQUESTED, {"grace": grace.total_seconds()}) or 0
        else:
            with connection.begin():
                release_gone(connection)
            while count := _delete_requested(connection, blobs, grace):
                swept.requested += count
        connection.rollback()
        _sweep_orphans(connection, blobs, grace, swept, dry_run=dry_run)
    return swept


def _delete_requested(connection: Connection, blobs: BlobStore, grace: dt.timedelta) -> int:
    with connection.begin():
        rows = connection.execute(_REQUESTED, {"grace": grace.total_seconds(), "rows": BATCH_ROWS}).all()
        named = set(connection.scalars(_NAMED, {"locations": [location for _, location in rows]}))
        blobs.delete(location for _, location in rows if location not in named)
        connection.execute(_FORGET, {"ids": [request for request, _ in rows]})
    return len(rows)


def _sweep_orphans(
    connection: Connection, blobs: BlobStore, grace: dt.timedelta, swept: Swept, *, dry_run: bool
) -> None:
    for listed in _pages(blobs.blobs()):
        ours = [blob for blob in listed if is_ours(blob.location)]
        swept.foreign += len(listed) - len(ours)
        # In this order: an object that is older than every transaction under way has its row by now, or never will.
        horizon = connection.scalar(_HORIZON, {"grace": grace.total_seconds()})
        connection.rollback()
        old = [blob for blob in ours if _is_before(blob.modified_at, horizon)]
        needed = set(connection.scalars(_NEEDED, {"locations": [blob.location for blob in old]}))
        connection.rollback()
        orphans = [blob for blob in old if blob.location not in needed]
        if not dry_run:
            blobs.delete(blob.location for blob in orphans)
        swept.orphans += len(orphans)
        swept.orphan_nbytes += sum(blob.nbytes for blob in orphans)


def _pages(blobs: Iterator[Blob]) -> Iterator[list[Blob]]:
    while page := list(islice(blobs, BATCH_ROWS)):
        yield page


def _is_before(moment: dt.datetime, horizon: object) -> bool:
    return isinstance(horizon, dt.datetime) and moment < horizon
