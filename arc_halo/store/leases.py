"""Leases: what says to `prune` that an upload is under way, and relies on content that nothing refers to yet."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from arc_halo.database.url import is_pooled
from arc_halo.errors import DatabaseError, NotFound, TransactionConflict
from arc_halo.schema.columns import TENANT_ID, uuid7
from arc_halo.store.owners import OWNER
from arc_halo.store.rows import TOUCH_SECONDS

if TYPE_CHECKING:
    import datetime as dt
    import uuid

    import psycopg
    from sqlalchemy import Connection, Engine
    from sqlalchemy.orm import Session

LEASE_SECONDS: Final = 3600
"""An upload that was killed behind a pooler holds `prune` up no longer than this."""
RENEW_SECONDS: Final = 300

_TAKE = text("""
INSERT INTO arc_halo.upload_leases (id, tenant_id, description, nbytes, lock_key, expires_at)
VALUES (:id, :tenant, :description, :nbytes, :lock_key, now() + make_interval(secs => :seconds))
""")
# Not one that has expired, of a machine that slept: what it relied on may be gone.
_RENEW = text("""
UPDATE arc_halo.upload_leases SET expires_at = now() + make_interval(secs => :seconds)
 WHERE id = :id AND expires_at >= now()
""")
_LOCK = text("SELECT pg_advisory_lock(:lock_key)")
_IS_HELD = "SELECT EXISTS (SELECT FROM arc_halo.upload_leases WHERE id = %s AND expires_at >= now())"
_RELEASE = text("DELETE FROM arc_halo.upload_leases WHERE id = :id")
# The lock's two halves are unsigned.
_IS_LOCKED = """EXISTS (
    SELECT FROM pg_catalog.pg_locks AS k
     WHERE k.locktype = 'advisory' AND k.objsubid = 1
       AND k.classid::bigint = l.lock_key >> 32 AND k.objid::bigint = l.lock_key & 4294967295
       AND k.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database()))"""
# One that is being given back is locked until its caller commits: it is left for the next time, not waited for.
_RELEASE_GONE = text(f"""
DELETE FROM arc_halo.upload_leases AS l USING (
    SELECT l.id FROM arc_halo.upload_leases AS l
     WHERE l.expires_at < now() OR (l.lock_key IS NOT NULL AND NOT {_IS_LOCKED}) FOR UPDATE SKIP LOCKED) AS gone
 WHERE l.id = gone.id
""")  # noqa: S608  a constant of ours
_RELEASE_ONE = text(f"""
DELETE FROM arc_halo.upload_leases AS l
 WHERE l.id = :id AND (l.lock_key IS NULL OR NOT {_IS_LOCKED}) RETURNING l.id
""")  # noqa: S608
_HOLDING = text(f"""
SELECT l.id, l.description, l.nbytes, l.started_at, l.expires_at, l.lock_key IS NOT NULL AND {_IS_LOCKED}
  FROM arc_halo.upload_leases AS l
 WHERE l.expires_at >= now()
   AND l.started_at - make_interval(secs => {TOUCH_SECONDS}) < now() - make_interval(secs => :grace)
 ORDER BY l.started_at, l.id
""")  # noqa: S608

OBJECTS_LOCK: Final = (0x41524348, 0x424C4F42)
"""Advisory lock of transactions whose rows name objects that they have put."""
_ANNOUNCE = f"SELECT {OWNER}, pg_advisory_xact_lock_shared(%s, %s)"

# What a writer relies on was touched after its lease began, or so shortly before that it need not be (`TOUCH_SECONDS`).
HORIZON = f"""
least(now() - make_interval(secs => :grace),
      (SELECT min(l.started_at) - make_interval(secs => {TOUCH_SECONDS}) FROM arc_halo.upload_leases AS l
        WHERE l.expires_at >= now()))
"""  # noqa: S608  a constant of ours
"""SQL for the moment since which content may be in use by a writer; ``:grace`` in seconds."""


@dataclass(frozen=True, slots=True)
class UploadUnderWay:
    """An upload that content is kept for.

    ``is_alive`` says that its process is known to live; behind a transaction pooler that is not known of any.
    """

    id: uuid.UUID
    description: str
    nbytes: int
    started_at: dt.datetime
    expires_at: dt.datetime
    is_alive: bool


class Lease:
    """The lease of one upload, taken before it looks what is there, and renewed by a thread for as long as it runs.

    Its connection holds an advisory lock, which the server takes back however the process ends: a lease that nobody
    holds the lock of is over. A transaction pooler would keep the lock when the process is gone, so behind one there
    is none, and only time tells.
    """

    def __init__(self, engine: Engine, nbytes: int) -> None:
        self._id = uuid7()
        self._renewal_error: DatabaseError | None = None
        self._ended = threading.Event()
        self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            self._take(None if is_pooled(engine.url) else secrets.randbits(63), nbytes)
        except BaseException:
            self._connection.close()
            raise
        self._renewing = threading.Thread(target=self._renew, name="arc-halo-lease", daemon=True)
        self._renewing.start()

    def _take(self, lock_key: int | None, nbytes: int) -> None:
        if lock_key is not None:  # before its row is seen, or the lease would be over before it began
            self._connection.execute(_LOCK, {"lock_key": lock_key})
        row = {"id": self._id, "tenant": TENANT_ID, "nbytes": nbytes, "lock_key": lock_key, "seconds": LEASE_SECONDS}
        self._connection.execute(_TAKE, row | {"description": f"{socket.gethostname()} {os.getpid()}"})

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                self._connection.execute(_RENEW, {"id": self._id, "seconds": LEASE_SECONDS})
            except DatabaseError as error:  # `check` says it where somebody listens, once the lease is over
                self._renewal_error = error
                return

    def check(self, connection: psycopg.Connection[Any]) -> None:
        """Make sure that the lease is still held: part of each short transaction that writes.

        Raises
        ------
        TransactionConflict
            It is not: the machine slept, or lost its connection, and objects may have been swept that no row named yet.
        """
        if connection.execute(_IS_HELD, (self._id,)).fetchone() != (True,):
            raise TransactionConflict(
                "the upload was interrupted for so long, or so badly, that its lease is over: run it again"
            ) from self._renewal_error

    def release(self, session: Session) -> None:
        """Give it back in the caller's transaction: gone at the moment the manifest is there, not before."""
        self._end()  # a renewal would wait for the caller's commit, and the caller for its end
        session.execute(_RELEASE, {"id": self._id})

    def close(self) -> None:
        """Stop renewing; what was not given back is over now."""
        self._end()
        self._connection.close()

    def _end(self) -> None:
        self._ended.set()
        self._renewing.join()


def announce_objects(connection: psycopg.Connection[Any]) -> str:
    """Keep the sweeper from objects that this transaction is about to put, until its rows that name them are seen.

    Returns
    -------
    str
        The database whose objects they are.
    """
    row = connection.execute(_ANNOUNCE, OBJECTS_LOCK).fetchone()
    assert row is not None
    return str(row[0])


def release_gone(connection: Connection) -> None:
    """Forget the leases that have expired, and those of processes that are gone."""
    connection.execute(_RELEASE_GONE)


def uploads_under_way(connection: Connection, grace: dt.timedelta) -> tuple[UploadUnderWay, ...]:
    """The uploads that keep content older than the grace period, oldest first."""
    rows = connection.execute(_HOLDING, {"grace": grace.total_seconds()})
    return tuple(UploadUnderWay(*row) for row in rows)


def release_lease(engine: Engine, lease_id: uuid.UUID) -> None:
    """End the lease of an upload that is known to be gone; if it is not, it notices, and is run again.

    Raises
    ------
    NotFound
        There is no such lease, or its process is alive.
    """
    with engine.begin() as connection:
        if connection.execute(_RELEASE_ONE, {"id": lease_id}).first() is None:
            raise NotFound(f"no lease {lease_id} that could be released: it has ended, or its upload is alive")
