"""The sweep: what expired, what nobody can be served any more, and what is beyond a quota is deleted in short steps."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from threading import Event, Thread
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from arc_halo.errors import ArcHaloError, CacheError
from arc_halo.inference.activations import budget
from arc_halo.inference.kv.quotas import make_room
from arc_halo.inference.responses import putting
from arc_halo.store.connections import Reading

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from sqlalchemy.orm import Session

    from arc_halo.database import Database

BATCH: Final = 1000
"""Entries of each cache in one transaction: what is locked is small, and what is read meanwhile stays whole."""
SWEEP_SECONDS: Final = 60.0
AUDIT_DAYS: Final = 30
"""How long it is remembered what was found and not served."""
_log = logging.getLogger(__name__)

_EXPIRE: Final = text("SELECT * FROM arc_halo.expire_caches(:max_rows)")
_QUOTAS: Final = text("SELECT tenant_id, kind FROM arc_halo.cache_quotas ORDER BY tenant_id, kind")
_OLD_AUDITS: Final = text("""
DELETE FROM arc_halo.cache_audits
 WHERE id IN (SELECT a.id FROM arc_halo.cache_audits AS a
               WHERE a.occurred_at < now() - make_interval(days => :days)
               ORDER BY a.occurred_at
               LIMIT :max_rows)
RETURNING id
""")
# Of processes that were killed while they computed what nobody has asked for since.
_OLD_LEASES: Final = text("DELETE FROM arc_halo.cache_leases WHERE expires_at < now() - make_interval(hours => 1)")


@dataclass(slots=True)
class Swept:
    """How many entries a sweep deleted."""

    kv_cache_count: int = 0
    activation_cache_count: int = 0
    response_cache_count: int = 0
    evicted_count: int = 0
    """Entries of all caches that were beyond a quota."""

    @property
    def count(self) -> int:
        """All of them."""
        return self.kv_cache_count + self.activation_cache_count + self.response_cache_count + self.evicted_count


def sweep_caches(db: Database, *, batch: int = BATCH, progress: Callable[[int], None] | None = None) -> Swept:
    """Delete what is to go, in transactions of ``batch`` entries each; entries in use are left for the next sweep.

    Bytes of activations are those of tensors, which `prune` deletes when nothing names them any more.

    Raises
    ------
    CacheError
        ``batch`` is not positive.
    """
    if batch < 1:
        raise CacheError(f"a sweep deletes at least one entry at a time, not {batch}")
    swept = Swept()
    while True:
        row = db.transaction(lambda session: tuple(session.execute(_EXPIRE, {"max_rows": batch}).one()))
        swept.kv_cache_count += row[0]
        swept.activation_cache_count += row[1]
        swept.response_cache_count += row[2]
        if progress is not None:
            progress(swept.count)
        if not any(row):
            break
    with db.session() as session:
        quotas = session.execute(_QUOTAS).all()
    for tenant_id, kind in quotas:
        swept.evicted_count += db.transaction(partial(_keep_to_quota, tenant_id, kind))
    forget = {"days": AUDIT_DAYS, "max_rows": batch}
    while db.transaction(lambda session: len(session.execute(_OLD_AUDITS, forget).all())) == batch:
        continue
    db.transaction(lambda session: session.execute(_OLD_LEASES))
    return swept


def _keep_to_quota(tenant_id: int, kind: str, session: Session) -> int:
    if kind == "activation":
        return budget.keep_to_quota(session, tenant_id)
    if kind == "response":
        return putting.keep_to_quota(session, tenant_id)
    with Reading(session)() as connection:
        return make_room(connection, tenant_id, 0, partly=True).evicted_count


class Sweeper:
    """Sweeps now and then in a thread, until it is closed.

    Several processes may have one: each takes what the others have not locked.

    Examples
    --------
    >>> with Sweeper(db, every=60):  # doctest: +SKIP
    ...     serve()
    """

    def __init__(self, db: Database, *, every: float = SWEEP_SECONDS) -> None:
        if not every > 0:
            raise CacheError(f"a sweep every {every} seconds makes no sense: give a positive number")
        self._db = db
        self._every = every
        self._closing = Event()
        self._thread = Thread(target=self._run, name="arc-halo-sweeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; a sweep under way comes to its end first."""
        self._closing.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closing.wait(self._every):
            try:
                swept = sweep_caches(self._db)
            except ArcHaloError as error:
                _log.warning("the caches were not swept, and are the next time: %s", error)
            else:
                _log.info("swept %d entries of the caches", swept.count)
