"""Hits, reads and computations, counted in memory and written now and then: a lookup waits for no counter."""

from __future__ import annotations

import logging
import os
import weakref
from dataclasses import dataclass, field, fields
from functools import partial
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Final

from arc_halo.errors import ArcHaloError
from arc_halo.store.connections import Reading

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from arc_halo.database import Database
    from arc_halo.inference.kv.lookup import Prefix

FLUSH_SECONDS: Final = 1.0
_log = logging.getLogger(__name__)

# In the order of their keys: of two processes that count the same blocks neither waits for the other in a circle. A
# block that went in the meantime is not counted, and one that is about to go is left alone.
_HITS: Final = """
WITH counted AS MATERIALIZED (
    SELECT b.tenant_id, b.namespace_id, b.block_hash, c.hits
      FROM unnest(%(hashes)b::bytea[], %(hits)b::bigint[]) AS c (block_hash, hits)
      JOIN arc_halo.kv_cache AS b
        ON b.tenant_id = %(tenant)s AND b.namespace_id = %(namespace)s AND b.block_hash = c.block_hash
     ORDER BY b.block_hash
       FOR KEY SHARE OF b SKIP LOCKED)
INSERT INTO arc_halo.kv_cache_statistics AS s (tenant_id, namespace_id, block_hash, hit_count, last_hit_at)
SELECT tenant_id, namespace_id, block_hash, hits, now() FROM counted ORDER BY block_hash
ON CONFLICT (tenant_id, namespace_id, block_hash)
DO UPDATE SET hit_count = s.hit_count + excluded.hit_count, last_hit_at = excluded.last_hit_at
"""


@dataclass(slots=True)
class Counts:
    """Of one namespace, since they were last written; the columns of ``cache_statistics``."""

    lookup_count: int = 0
    hit_count: int = 0
    asked_token_count: int = 0
    hit_token_count: int = 0
    read_nbytes: int = 0
    read_seconds: float = 0.0
    computed_token_count: int = 0
    computed_seconds: float = 0.0


@dataclass(slots=True)
class _Pending:
    counts: Counts = field(default_factory=Counts)
    hits: dict[bytes, int] = field(default_factory=dict)


_NAMES: Final = [each.name for each in fields(Counts)]
_COUNTS: Final = f"""
INSERT INTO arc_halo.cache_statistics AS s (tenant_id, namespace_id, {", ".join(_NAMES)})
SELECT n.tenant_id, n.id, {", ".join(f"%({name})s" for name in _NAMES)}
  FROM arc_halo.cache_namespaces AS n
 WHERE n.tenant_id = %(tenant)s AND n.id = %(namespace)s
ON CONFLICT (tenant_id, namespace_id)
DO UPDATE SET {", ".join(f"{name} = s.{name} + excluded.{name}" for name in _NAMES)}
"""  # noqa: S608  (of the names above)


_counters: weakref.WeakSet[Counter] = weakref.WeakSet()


class Counter:
    """Counts of one cache, written in transactions of their own by a thread that starts with the first of them.

    What could not be written is dropped with a warning: counts choose what is evicted, and are right enough without.
    """

    def __init__(self, db: Database, tenant_id: int) -> None:
        self._db = db
        self._tenant_id = tenant_id
        self._is_closed = False
        self.forget()
        _counters.add(self)

    def forget(self) -> None:
        """Begin anew: a child of `fork` has copies of what its parent writes, and of locks that its threads held."""
        self._lock = Lock()
        self._pending: dict[int, _Pending] = {}
        self._wake = Event()
        self._thread: Thread | None = None

    def note_lookup(self, prefix: Prefix) -> None:
        """Count a lookup, and the blocks it found as used."""
        if prefix.namespace_id is None:
            return
        with self._lock:
            pending = self._of(prefix.namespace_id)
            pending.counts.lookup_count += 1
            pending.counts.asked_token_count += prefix.asked_token_count
            pending.counts.hit_count += bool(prefix)
            pending.counts.hit_token_count += prefix.token_count
            for block in prefix.blocks:
                pending.hits[block.block_hash] = pending.hits.get(block.block_hash, 0) + 1
        self._start()

    def note_read(self, namespace_id: int, nbytes: int, seconds: float) -> None:
        """Count bytes that were read, checked and put in place."""
        with self._lock:
            counts = self._of(namespace_id).counts
            counts.read_nbytes += nbytes
            counts.read_seconds += seconds
        self._start()

    def note_computed(self, namespace_id: int, token_count: int, seconds: float) -> None:
        """Count tokens that were computed."""
        with self._lock:
            counts = self._of(namespace_id).counts
            counts.computed_token_count += token_count
            counts.computed_seconds += seconds
        self._start()

    def flush(self) -> None:
        """Write what was counted."""
        with self._lock:
            taken, self._pending = self._pending, {}
        for namespace_id, pending in sorted(taken.items()):
            try:
                self._db.transaction(partial(self._write, namespace_id, pending), attempts=2)
            except ArcHaloError as error:
                _log.warning("hits of the cache were not counted: %s", error)

    def close(self) -> None:
        """Write what is left, and end the thread."""
        self._is_closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self.flush()

    def _of(self, namespace_id: int) -> _Pending:
        return self._pending.setdefault(namespace_id, _Pending())

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._is_closed:
                self._thread = Thread(target=self._run, name="arc-halo-cache-counts", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._wake.wait(FLUSH_SECONDS):
            self.flush()

    def _write(self, namespace_id: int, pending: _Pending, session: Session) -> None:
        key = {"tenant": self._tenant_id, "namespace": namespace_id}
        hashes = sorted(pending.hits)
        with Reading(session)() as connection:
            connection.execute(_COUNTS, key | {name: getattr(pending.counts, name) for name in _NAMES})
            if hashes:
                connection.execute(_HITS, key | {"hashes": hashes, "hits": [pending.hits[each] for each in hashes]})


def _forget_all() -> None:
    for each in list(_counters):
        each.forget()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_forget_all)
