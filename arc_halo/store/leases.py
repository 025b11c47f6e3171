"""Leases: what says to `prune` that an upload is under way, and relies on content that nothing refers to yet."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from arc_halo.errors import TransactionConflict
from arc_halo.schema.columns import TENANT_ID, uuid7
from arc_halo.store.rows import TOUCH_SECONDS

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy.orm import Session

LEASE_SECONDS: Final = 3600
"""An upload that was killed holds `prune` up no longer than this; a publication has as long to follow its upload."""
RENEW_SECONDS: Final = 300

_TAKE = """
INSERT INTO arc_halo.upload_leases (id, tenant_id, description, nbytes, expires_at)
VALUES (%s, %s, %s, %s, now() + make_interval(secs => %s))
"""
_RENEW = "UPDATE arc_halo.upload_leases SET expires_at = now() + make_interval(secs => %s) WHERE id = %s"
_IS_HELD = "SELECT EXISTS (SELECT FROM arc_halo.upload_leases WHERE id = %s AND expires_at >= now())"
_RELEASE = text("DELETE FROM arc_halo.upload_leases WHERE id = :id")
OBJECTS_LOCK: Final = (0x41524348, 0x424C4F42)
"""Advisory lock of transactions whose rows name objects that they have put."""
# One that is being given back is locked until its caller commits: it is left for the next time, not waited for.
DELETE_EXPIRED = """
DELETE FROM arc_halo.upload_leases AS l USING (
    SELECT id FROM arc_halo.upload_leases WHERE expires_at < now() FOR UPDATE SKIP LOCKED) AS expired
 WHERE l.id = expired.id
"""

# What a writer relies on was touched after its lease began, or so shortly before that it need not be (`TOUCH_SECONDS`).
HORIZON = f"""
least(now() - make_interval(secs => :grace),
      (SELECT min(l.started_at) - make_interval(secs => {TOUCH_SECONDS}) FROM arc_halo.upload_leases AS l
        WHERE l.expires_at >= now()))
"""  # noqa: S608  a constant of ours
"""SQL for the moment since which content may be in use by a writer; ``:grace`` in seconds."""


class Lease:
    """The lease of one upload, taken before it looks what is there."""

    def __init__(self, nbytes: int) -> None:
        self._id = uuid7()
        self._nbytes = nbytes
        self._renewed = 0.0

    def keep(self, connection: psycopg.Connection[Any]) -> None:
        """Take the lease, or make sure that it is still held, and renew it when some time has passed.

        Part of each short transaction that writes. Renewed by every one of them the row would be a queue for all.

        Raises
        ------
        TransactionConflict
            The lease has expired: the machine slept, and objects may have been swept that no row named yet.
        """
        now = time.monotonic()
        if not self._renewed:
            description = f"{socket.gethostname()} {os.getpid()}"
            connection.execute(_TAKE, (self._id, TENANT_ID, description, self._nbytes, LEASE_SECONDS))
            self._renewed = now
            return
        held = connection.execute(_IS_HELD, (self._id,)).fetchone()
        if held != (True,):
            raise TransactionConflict("the upload was interrupted for so long that its lease expired: run it again")
        if now - self._renewed > RENEW_SECONDS:
            connection.execute(_RENEW, (LEASE_SECONDS, self._id))
            self._renewed = now

    def release(self, session: Session) -> None:
        """Give it back in the caller's transaction: gone at the moment the manifest is there, not before."""
        session.execute(_RELEASE, {"id": self._id})
