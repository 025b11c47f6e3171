"""What became of a transaction whose COMMIT nobody answered."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from arc_halo.errors import CommitUnanswered, DatabaseError

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from arc_halo.errors import DatabaseUnavailable

PATIENCE_SECONDS: Final = 60.0
ABANDONED_SECONDS: Final = 10.0
"""A transaction that is under way so long after its client went is ended: its server process waits for a COMMIT that
will not come, over a link that only looks alive."""
_PAUSE_SECONDS: Final = 0.1

# In this order: a transaction that has ended when it is asked after is seen by the statement that follows. The row is
# the truth. The lock, which every transaction holds on its own number to its end, says only whether to go on waiting;
# pg_xact_status() would be an error for a number that after a failover is still to come. A server in recovery, which
# may be about to become the primary, has perhaps not come to the COMMIT in its log yet.
_IS_UNDER_WAY: Final = text("""
SELECT pg_is_in_recovery()
    OR EXISTS (SELECT FROM pg_locks WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock'
                  AND transactionid = CAST(CAST(CAST(:xid AS text) AS xid8) AS xid))
""")
_IS_NOTED: Final = text("SELECT EXISTS (SELECT FROM arc_halo.operations WHERE id = :operation)")
_END: Final = text("""
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE datname = current_database() AND usename = current_user
   AND backend_xid = CAST(CAST(CAST(:xid AS text) AS xid8) AS xid)
""")


def was_committed(
    open_session: Callable[[], Session], operation: uuid.UUID, transaction_id: str, error: DatabaseUnavailable
) -> bool:
    """Ask over new connections until it is certain whether the transaction was committed.

    Parameters
    ----------
    operation
        Id of the row of ``arc_halo.operations`` that it inserted.
    transaction_id
        Its ``xid8``, in decimal digits.
    error
        What came in the place of the answer.

    Raises
    ------
    CommitUnanswered
        The database does not answer, or the transaction does not end, for a minute.
    """
    began = time.monotonic()
    latest: DatabaseError = error
    while (waited := time.monotonic() - began) < PATIENCE_SECONDS:
        try:
            with open_session() as session:
                is_under_way = session.scalar(_IS_UNDER_WAY, {"xid": transaction_id})
                session.rollback()  # a transaction, and snapshot, for each look
                if session.scalar(_IS_NOTED, {"operation": operation}):
                    return True
                if not is_under_way:
                    return False
                if waited > ABANDONED_SECONDS:
                    session.execute(_END, {"xid": transaction_id})
        except DatabaseError as trouble:
            # Whatever it is, a full pool or a privilege taken away, it says nothing about the COMMIT.
            latest = trouble
        time.sleep(_PAUSE_SECONDS)
    raise CommitUnanswered(
        f"the connection was lost during COMMIT ({error}), and for {PATIENCE_SECONDS:.0f} s nobody could be asked what "
        f"became of it; it is stored if arc_halo.operations has a row {operation}",
        sqlstate=error.sqlstate,
    ) from latest
