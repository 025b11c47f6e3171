"""Hits, reads and computations, counted in memory and written now and then: a lookup waits for no counter."""

from __future__ import annotations

import logging
import os
import weakref
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Final

from arc_halo.errors import ArcHaloError
from arc_halo.store.connections import Reading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from arc_halo.database import Database
    from arc_halo.inference.kv.lookup import Prefix
    from arc_halo.inference.namespaces import Namespace

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
    """Since they were last written; the columns of ``cache_statistics``."""

    lookup_count: int = 0
    hit_count: int = 0
    asked_token_count: int = 0
    hit_token_count: int = 0
    read_nbytes: int = 0
    read_seconds: float = 0.0
    computed_token_count: int = 0
    computed_seconds: float = 0.0

    def plus(self, others: Counts) -> Counts:
        """The sums of both."""
        return Counts(*(getattr(self, name) + getattr(others, name) for name in self.__slots__))


@dataclass(slots=True)
class _Pending:
    counts: Counts = field(default_factory=Counts)
    hits: dict[bytes, int] = field(default_factory=dict)


_NAMES: Final = [each.name for each in fields(Counts)]
_COUNTS: Final = f"""
INSERT INTO arc_halo.cache_statistics AS s (tenant_id, namespace_id, {", ".join(_NAMES)})
SELECT n.tenant_id, n.id, {", ".join(f"%({name})s" for name in _NAMES)}
  FROM arc_halo.cache_namespaces AS n
 WHERE n.tenant_id = %(tenant)s AND n.digest = %(digest)b
ON CONFLICT (tenant_id, namespace_id)
DO UPDATE SET {", ".join(f"{name} = s.{name} + excluded.{name}" for name in _NAMES)}
RETURNING namespace_id
"""  # noqa: S608  (of the names above)


_counters: weakref.WeakSet[Counter] = weakref.WeakSet()


class Counter:
    """Counts of one cache, written in transactions of their own by a thread that starts with the first of them.

    What is counted before the namespace has a row, misses that is, stays in memory until it has.
    What could not be written is dropped with a warning: counts choose what is evicted, and are right enough without.
    """

    def __init__(self, db: Database, namespace: Namespace) -> None:
        self._db = db
        self._key = {"tenant": namespace.tenant_id, "digest": namespace.digest}
        self._is_closed = False
        self.forget()
        _counters.add(self)

    def forget(self) -> None:
        """Begin anew: a child of `fork` has copies of what its parent writes, and of locks that its threads held."""
        self._lock, self._writing = Lock(), Lock()
        self._pending = _Pending()
        self._is_due = False
        self._wake = Event()
        self._thread: Thread | None = None

    def note_lookup(self, prefix: Prefix) -> None:
        """Count a lookup, and the blocks it found as used."""
        counts = Counts(
            lookup_count=1,
            asked_token_count=prefix.asked_token_count,
            hit_count=int(bool(prefix)),
            hit_token_count=prefix.token_count,
        )
        self._add(counts, [block.block_hash for block in prefix.blocks])

    def note_read(self, nbytes: int, seconds: float) -> None:
        """Count bytes that were read, checked and put in place."""
        self._add(Counts(read_nbytes=nbytes, read_seconds=seconds))

    def note_computed(self, token_count: int, seconds: float) -> None:
        """Count tokens that were computed."""
        self._add(Counts(computed_token_count=token_count, computed_seconds=seconds))

    def note_stored(self) -> None:
        """The namespace has a row now: what was kept for it can be written."""
        self._add(Counts())

    def flush(self) -> None:
        """Write what was counted."""
        with self._writing:  # whoever flushes next finds what had no row yet
            with self._lock:
                taken, self._pending, self._is_due = self._pending, _Pending(), False
            if taken == _Pending():
                return
            try:
                is_written = self._db.transaction(partial(self._write, taken), attempts=2)
            except ArcHaloError as error:
                _log.warning("hits of the cache were not counted: %s", error)
                return
            if not is_written:  # its hits are of blocks that went with the row
                with self._lock:
                    self._pending.counts = self._pending.counts.plus(taken.counts)

    def close(self) -> None:
        """Write what is left, and end the thread."""
        self._is_closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self.flush()

    def _add(self, counts: Counts, used: Sequence[bytes] = ()) -> None:
        with self._lock:
            self._pending.counts = self._pending.counts.plus(counts)
            for each in used:
                self._pending.hits[each] = self._pending.hits.get(each, 0) + 1
            self._is_due = True
            if self._thread is None and not self._is_closed:
                self._thread = Thread(target=self._run, name="arc-halo-cache-counts", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._wake.wait(FLUSH_SECONDS):
            if self._is_due:  # else all that is left waits for a row, and asking again would find none
                self.flush()

    def _write(self, taken: _Pending, session: Session) -> bool:
        """False if the namespace has no row."""
        with Reading(session)() as connection:
            row = connection.execute(_COUNTS, self._key | asdict(taken.counts)).fetchone()
            if row is not None and taken.hits:
                hashes = sorted(taken.hits)
                found = {"hashes": hashes, "hits": [taken.hits[each] for each in hashes]}
                connection.execute(_HITS, {"tenant": self._key["tenant"], "namespace": row[0]} | found)
        return row is not None


def _forget_all() -> None:
    for each in list(_counters):
        each.forget()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_forget_all)
