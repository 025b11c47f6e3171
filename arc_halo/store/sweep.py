"""Objects that no row needs, deleted from the blob store: those that rows let go of, and those that never had one."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from arc_halo.store.blobs import owner_in
from arc_halo.store.leases import HORIZON, OBJECTS_LOCK, release_gone
from arc_halo.store.owners import owner_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sqlalchemy import Connection, Engine

    from arc_halo.store.blobs import BlobStore
    from arc_halo.store.folder import Blob

GRACE: Final = dt.timedelta(hours=1)
"""A reader that found a row has as long to fetch its object."""
BATCH_ROWS: Final = 500

# What rows of a copied database let go of may be needed by the one it was copied from: it stays, and the request, too.
_IS_OWN: Final = """
coalesce(split_part(substring(b.blob_location FROM '^../[0-9a-f]{64}-[0-9a-f]{16}-'), '-', 2)
         = ANY(CAST(:owners AS text[])), true)
"""
# Held to the end of the transaction, in which the objects are deleted: a crash leaves the request, and no two sweepers
# work on one.
_REQUESTED: Final = text(f"""
SELECT b.id, b.blob_location FROM arc_halo.blob_deletions AS b
 WHERE b.requested_at <= now() - make_interval(secs => :grace) AND {_IS_OWN}
 ORDER BY b.id LIMIT :rows FOR UPDATE SKIP LOCKED
""")  # noqa: S608  a constant of ours
# Nothing of ours names an object twice; who puts rows back by hand may.
_NAMED: Final = text("""
SELECT blob_location FROM arc_halo.tensor_data WHERE blob_location = ANY(CAST(:locations AS text[]))
""")
_FORGET: Final = text("DELETE FROM arc_halo.blob_deletions WHERE id = ANY(CAST(:ids AS bigint[]))")
_COUNT_REQUESTED: Final = text(f"""
SELECT count(*) FROM arc_halo.blob_deletions AS b
 WHERE b.requested_at <= now() - make_interval(secs => :grace) AND {_IS_OWN}
""")  # noqa: S608  as above
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

    ``requested`` objects were let go of by rows, ``orphans`` never had one; ``others`` counts those of other databases,
    by their identities; ``foreign`` keys are of another form.
    """

    requested: int = 0
    orphans: int = 0
    orphan_nbytes: int = 0
    foreign: int = 0
    others: dict[str, int] = field(default_factory=dict)


def sweep(
    engine: Engine,
    blobs: BlobStore,
    *,
    grace: dt.timedelta = GRACE,
    dry_run: bool = False,
    formerly: Collection[str] = (),
) -> Swept:
    """Delete objects of this database that no row needs; beside readers, writers and other sweepers.

    No key is used twice, so an object that has no row, and is older than every upload under way, will never have one.
    Objects of other databases that share the store are left, whether rows here name them or not.

    Parameters
    ----------
    grace
        Objects stay so long after a row let go of them, or after they were written.
    dry_run
        Count only.
    formerly
        Identities under which this database put objects before it was moved to this server: nobody else may be using
        what has them.

    Raises
    ------
    BlobStoreError
        The store does not answer, or refuses; what was not deleted is left for the next time.
    """
    swept = Swept()
    with engine.connect() as connection:
        owners = {owner_of(connection), *formerly}
        if dry_run:
            counted = {"grace": grace.total_seconds(), "owners": list(owners)}
            swept.requested = connection.scalar(_COUNT_REQUESTED, counted) or 0
        else:
            connection.rollback()
            with connection.begin():
                release_gone(connection)
            while count := _delete_requested(connection, blobs, grace, owners):
                swept.requested += count
        connection.rollback()
        _sweep_orphans(connection, blobs, grace, swept, owners, dry_run=dry_run)
    return swept


def _delete_requested(connection: Connection, blobs: BlobStore, grace: dt.timedelta, owners: Collection[str]) -> int:
    asked = {"grace": grace.total_seconds(), "rows": BATCH_ROWS, "owners": list(owners)}
    with connection.begin():
        rows = connection.execute(_REQUESTED, asked).all()
        named = set(connection.scalars(_NAMED, {"locations": [location for _, location in rows]}))
        blobs.delete(each for _, each in rows if each not in named and owner_in(each) in owners)
        connection.execute(_FORGET, {"ids": [request for request, _ in rows]})
    return len(rows)


def _sweep_orphans(
    connection: Connection,
    blobs: BlobStore,
    grace: dt.timedelta,
    swept: Swept,
    owners: Collection[str],
    *,
    dry_run: bool,
) -> None:
    for listed in _pages(blobs.blobs()):
        ours = []
        for blob in listed:
            owner = owner_in(blob.location)
            if owner is None:
                swept.foreign += 1
            elif owner in owners:
                ours.append(blob)
            else:
                swept.others[owner] = swept.others.get(owner, 0) + 1
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
