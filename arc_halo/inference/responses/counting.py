"""Hits counted in memory and written now and then: losing some costs less than a write for each."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from arc_halo.errors import DatabaseError

if TYPE_CHECKING:
    import uuid

    from sqlalchemy.orm import Session

    from arc_halo.database import Database
    from arc_halo.inference.namespaces import Namespace
    from arc_halo.inference.responses.finding import FoundResponse

FLUSH_LOOKUPS: Final = 256
FLUSH_SECONDS: Final = 10.0
_log = logging.getLogger(__name__)

# Rows that somebody writes are skipped, so counting waits for nobody and takes part in no deadlock.
_ADD_HITS: Final = text("""
WITH counted AS (
    SELECT p.id, c.hits
      FROM arc_halo.response_cache AS p
      JOIN unnest(CAST(:ids AS uuid[]), CAST(:hits AS bigint[])) AS c (id, hits) ON c.id = p.id
     ORDER BY p.id
       FOR NO KEY UPDATE OF p SKIP LOCKED)
UPDATE arc_halo.response_cache AS p SET hit_count = p.hit_count + c.hits, last_hit_at = clock_timestamp()
  FROM counted AS c WHERE p.id = c.id
""")
_ADD_LOOKUPS: Final = text("""
INSERT INTO arc_halo.cache_statistics AS s (tenant_id, namespace_id, lookup_count, hit_count)
SELECT n.tenant_id, n.id, :lookups, :hits
  FROM arc_halo.cache_namespaces AS n WHERE n.tenant_id = :tenant_id AND n.digest = :digest
ON CONFLICT (tenant_id, namespace_id) DO UPDATE
   SET lookup_count = s.lookup_count + excluded.lookup_count, hit_count = s.hit_count + excluded.hit_count
RETURNING true
""")


_instances: weakref.WeakSet[HitCounts] = weakref.WeakSet()


class HitCounts:
    """Lookups of one namespace, and hits of its responses, that are not written yet.

    Lookups before the namespace has a row, misses that is, stay in memory until it has.
    """

    def __init__(self, db: Database, namespace: Namespace) -> None:
        self._db, self._namespace = db, namespace
        self.forget()
        _instances.add(self)

    def forget(self) -> None:
        """Begin anew: a child of `fork` has copies of what its parent writes, and of locks that its threads held."""
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._lookups = self._lookups_since = 0
        self._hits: Counter[uuid.UUID] = Counter()
        self._flushed_at = time.monotonic()

    def add(self, found: FoundResponse | None) -> None:
        """Count a lookup, and the hit if it was one; write when there are many, or the last time is long ago."""
        with self._lock:
            self._lookups += 1
            self._lookups_since += 1
            if found is not None:
                self._hits[found.id] += 1
            is_due = self._lookups_since >= FLUSH_LOOKUPS or time.monotonic() - self._flushed_at > FLUSH_SECONDS
        if is_due:
            self.flush()

    def flush(self) -> None:
        """Write what was counted."""
        with self._writing:  # whoever flushes next finds what had no row yet
            with self._lock:
                lookups, hits = self._lookups, self._hits
                self._lookups, self._hits, self._lookups_since = 0, Counter(), 0
                self._flushed_at = time.monotonic()
            if not lookups:
                return
            try:
                is_written = self._db.transaction(lambda session: self._write(session, lookups, hits), attempts=1)
            except DatabaseError as error:
                _log.warning("%d lookups of responses were not counted: %s", lookups, error)
                return
            if not is_written:
                with self._lock:
                    self._lookups += lookups

    def _write(self, session: Session, lookups: int, hits: Counter[uuid.UUID]) -> bool:
        """False if the namespace has no row."""
        if hits:
            session.execute(_ADD_HITS, {"ids": list(hits), "hits": list(hits.values())})
        key = {"tenant_id": self._namespace.tenant_id, "digest": self._namespace.digest}
        counts = {"lookups": lookups, "hits": hits.total()}
        return session.scalar(_ADD_LOOKUPS, key | counts) is not None


def _forget_all() -> None:
    for each in list(_instances):
        each.forget()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_forget_all)
