"""Single flight: of all who miss the same key at once one computes, and the others wait for what it stored."""

from __future__ import annotations

import logging
import math
import os
import random
import socket
import threading
import time
import uuid
from typing import TYPE_CHECKING, Final, TypeVar

from blake3 import blake3
from sqlalchemy import text

from arc_halo.errors import CacheError, DatabaseError, DatabaseUnavailable, PoolExhausted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from sqlalchemy import Engine, TextClause

    from arc_halo.database import Database

Result = TypeVar("Result")

LEASE_SECONDS: Final = 10.0
"""Who was killed while it computed keeps the others waiting no longer than this."""
WAIT_SECONDS: Final = 120.0
"""Who waited this long for somebody else's result computes it, too."""
RENEWALS_PER_LEASE: Final = 3
FIRST_POLL_SECONDS: Final = 0.005
LONGEST_POLL_SECONDS: Final = 0.1

_log = logging.getLogger(__name__)

# By the clock, not by when the statement began: it may have waited for somebody who took the lease at the same moment.
_TAKE: Final = text("""
INSERT INTO arc_halo.cache_leases AS l (tenant_id, key_digest, holder_id, description, expires_at)
VALUES (:tenant_id, :key_digest, :holder_id, :description, clock_timestamp() + make_interval(secs => :seconds))
ON CONFLICT (tenant_id, key_digest) DO UPDATE
   SET holder_id = excluded.holder_id, description = excluded.description, started_at = clock_timestamp(),
       expires_at = clock_timestamp() + make_interval(secs => :seconds)
 WHERE l.expires_at < clock_timestamp()
RETURNING true
""")
_IS_HELD: Final = text("""
SELECT EXISTS (SELECT FROM arc_halo.cache_leases
                WHERE tenant_id = :tenant_id AND key_digest = :key_digest AND expires_at >= clock_timestamp())
""")
# One that has expired, too, as long as nobody has taken it over.
_RENEW: Final = text("""
UPDATE arc_halo.cache_leases SET expires_at = clock_timestamp() + make_interval(secs => :seconds)
 WHERE tenant_id = :tenant_id AND key_digest = :key_digest AND holder_id = :holder_id
RETURNING true
""")
_RELEASE: Final = text("""
DELETE FROM arc_halo.cache_leases
 WHERE tenant_id = :tenant_id AND key_digest = :key_digest AND holder_id = :holder_id
RETURNING true
""")


def single_flight(
    db: Database,
    tenant_id: int,
    key_digest: bytes,
    look: Callable[[], Result | None],
    compute: Callable[[], Result],
    *,
    lease_seconds: float = LEASE_SECONDS,
    wait_seconds: float = WAIT_SECONDS,
) -> tuple[Result, bool]:
    """What ``look`` finds, or else what ``compute`` gives, computed by one of all who ask for it at the same time.

    Who computes holds a row of ``arc_halo.cache_leases``, which a thread renews; the others poll it, and look again
    when it is gone. Every statement is a transaction of its own, so this works behind a transaction pooler, and none
    is open while ``look`` or ``compute`` runs. Correctness never depends on the lease, only how often is computed
    does: whoever cannot have it, or wait for it, computes.

    Parameters
    ----------
    key_digest
        Of all that the result depends on; 32 bytes.
    look
        Finds what is stored, None if nothing is.
    compute
        Computes the result, and stores it where ``look`` finds it before it returns. It must bear being run by two at
        once, and must not ask for its own key.
    lease_seconds
        How long the lease of a process that was killed is waited for. It is renewed three times as often.
    wait_seconds
        How long one waits for the others in all.

    Returns
    -------
    tuple
        The result, and whether it was computed here.

    Raises
    ------
    CacheError
        The key is no digest, or a time not positive.
    Exception
        What ``compute`` raises, to its own caller; one of those who wait then computes. What ``look`` raises, but for
        a database that is away: then it is computed without a lease.
    """
    if len(key_digest) != blake3.digest_size:
        raise CacheError(f"key_digest has {len(key_digest)} bytes; a BLAKE3-256 digest has {blake3.digest_size}")
    if not (0 < lease_seconds < math.inf and wait_seconds >= 0):
        raise CacheError(f"a lease of {lease_seconds} s, waited for {wait_seconds} s: give positive numbers")
    with _Lease(db.engine, tenant_id, key_digest, lease_seconds) as lease:
        try:
            found = _find_or_take(lease, look, time.monotonic() + wait_seconds)
        except (DatabaseUnavailable, PoolExhausted) as error:
            _log.warning("nothing could be looked for, so it is computed: %s", error)
            found = None
        if found is not None:
            return found, False
        lease.keep()
        return compute(), True


def _find_or_take(lease: _Lease, look: Callable[[], Result | None], deadline: float) -> Result | None:
    """What was found; None if the lease is ours, cannot be had, or was waited for until the deadline."""
    while (found := look()) is None and lease.take() is False:
        if lease.outlasts(deadline):
            return None
    # Between the look and the lease somebody may have stored it and given the lease back.
    return look() if found is None and lease.is_held else found


def _pauses() -> Iterator[float]:
    longest = FIRST_POLL_SECONDS
    while True:
        yield random.uniform(longest / 2, longest)  # noqa: S311  no secret is drawn
        longest = min(2 * longest, LONGEST_POLL_SECONDS)


class _Lease:
    """The lease of one key for one caller; it is released when its block is left, however that happens.

    What is asked of the database here answers None where that is away, and says so in the log.
    """

    def __init__(self, engine: Engine, tenant_id: int, key_digest: bytes, seconds: float) -> None:
        self.is_held = False
        self._engine = engine
        self._seconds = seconds
        self._row = {
            "tenant_id": tenant_id,
            "key_digest": key_digest,
            "holder_id": uuid.uuid4(),
            "description": f"{socket.gethostname()} {os.getpid()}",
            "seconds": seconds,
        }
        self._ended = threading.Event()

    def take(self) -> bool | None:
        """Whether it is ours now; False if somebody else holds it."""
        is_taken = self._ask(_TAKE)
        self.is_held = is_taken is True
        return is_taken

    def outlasts(self, deadline: float) -> bool:
        """Wait until nobody holds it, or until the deadline: true if somebody still does then."""
        for pause in _pauses():
            time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
            if not self._ask(_IS_HELD):
                return False
            if time.monotonic() >= deadline:
                return True
        raise AssertionError("pauses do not end")

    def keep(self) -> None:
        """Renew it, if it is ours, until the block is left."""
        if self.is_held:
            threading.Thread(target=self._renew, name="arc-halo-single-flight", daemon=True).start()

    def _renew(self) -> None:
        while not self._ended.wait(self._seconds / RENEWALS_PER_LEASE):
            if self._ask(_RENEW) is False:  # this machine slept, and somebody else computes by now
                return

    def _ask(self, statement: TextClause) -> bool | None:
        try:
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                return bool(connection.execute(statement, self._row).scalar())
        except DatabaseError as error:
            _log.warning("the lease of what is computed could not be asked for: %s", error)
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        # The thread is not waited for: a renewal that comes late finds no row.
        self._ended.set()
        if self.is_held:
            self._ask(_RELEASE)
