"""Hits and measured times: collected in memory and written beside, where losing some of them costs nothing."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from arc_halo.errors import ArcHaloError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import Session

    from arc_halo.database import Database
    from arc_halo.inference.activations.reading import StoredActivation
    from arc_halo.inference.namespaces import Namespace

_log = logging.getLogger(__name__)
_WEIGHT: Final = 0.3
"""Of a new measurement in the smoothed one: an outlier is forgotten after some ten of them."""
_STREAK: Final = 4
_TRIES: Final = 2
_NEAR: Final = 2.0

# Whoever holds a row is counting it or deleting it: neither is worth waiting for.
_COUNT: Final = text("""
WITH given AS (
    SELECT * FROM unnest(CAST(:hook_points AS text[]), CAST(:input_digests AS bytea[]), CAST(:hit_counts AS bigint[]),
                         CAST(:ages AS float8[]), CAST(:read_ms AS float8[]), CAST(:recompute_ms AS float8[]))
                  AS g (hook_point, input_digest, hit_count, age, read_ms, recompute_ms)
), locked AS (
    SELECT a.tenant_id, a.namespace_id, g.*
      FROM given AS g
      JOIN arc_halo.cache_namespaces AS n ON n.tenant_id = :tenant_id AND n.digest = :digest
      JOIN arc_halo.activation_cache AS a
        ON a.tenant_id = n.tenant_id AND a.namespace_id = n.id
           AND a.hook_point = g.hook_point AND a.input_digest = g.input_digest
       FOR NO KEY UPDATE OF a SKIP LOCKED
)
UPDATE arc_halo.activation_cache AS a
   SET hit_count = a.hit_count + l.hit_count,
       last_hit_at = CASE WHEN l.hit_count = 0 THEN a.last_hit_at
                          ELSE greatest(a.last_hit_at, now() - make_interval(secs => l.age)) END,
       read_ms = coalesce(l.read_ms, a.read_ms),
       recompute_ms = coalesce(l.recompute_ms, a.recompute_ms)
  FROM locked AS l
 WHERE a.tenant_id = l.tenant_id AND a.namespace_id = l.namespace_id
   AND a.hook_point = l.hook_point AND a.input_digest = l.input_digest
""")
_SUM_UP: Final = text("""
INSERT INTO arc_halo.cache_statistics AS s (
       tenant_id, namespace_id, lookup_count, hit_count, read_nbytes, read_seconds, computed_seconds)
SELECT n.tenant_id, n.id, :lookups, :hits, :read_nbytes, :read_seconds, :computed_seconds
  FROM arc_halo.cache_namespaces AS n
 WHERE n.tenant_id = :tenant_id AND n.digest = :digest
    ON CONFLICT (tenant_id, namespace_id) DO UPDATE
   SET lookup_count = s.lookup_count + excluded.lookup_count,
       hit_count = s.hit_count + excluded.hit_count,
       read_nbytes = s.read_nbytes + excluded.read_nbytes,
       read_seconds = s.read_seconds + excluded.read_seconds,
       computed_seconds = s.computed_seconds + excluded.computed_seconds
RETURNING true
""")


@dataclass(slots=True)
class _Entry:
    """What is to be written of one entry."""

    hit_count: int = 0
    last_hit: float = 0.0
    read_ms: float | None = None
    recompute_ms: float | None = None


@dataclass(slots=True)
class _Totals:
    """What is to be added to the statistics of the namespace."""

    lookups: int = 0
    hits: int = 0
    read_nbytes: int = 0
    read_seconds: float = 0.0
    computed_seconds: float = 0.0

    def plus(self, others: _Totals) -> _Totals:
        """The sums of both."""
        return _Totals(*(getattr(self, name) + getattr(others, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Said:
    """What is stored of how long entries take together, in milliseconds; None where it was not measured."""

    read_ms: float | None = None
    recompute_ms: float | None = None


@dataclass(slots=True)
class Habit:
    """What the same hook points took for the inputs before, in this process; threads may overwrite each other's."""

    read_ms: float | None = None
    recompute_ms: float | None = None
    read_count: int = 0
    recompute_count: int = 0
    """Of entries that are stored."""
    streak: int = 0
    """Stored entries in a row of which computing was the cheaper way."""
    read_bias: float = 1.0
    recompute_bias: float = 1.0
    """What either takes now, of what the entries say: the first time, which they were stored with, is a slow one."""

    @property
    def computes(self) -> bool:
        """Whether computing is the cheaper way so regularly that it need not be looked up."""
        if self.read_ms is None or self.recompute_ms is None:
            return False
        return self.streak >= _STREAK and self.recompute_ms < self.read_ms

    @property
    def milliseconds(self) -> tuple[float, float]:
        """Both; where ``computes`` is false they may be 0."""
        return self.read_ms or 0.0, self.recompute_ms or 0.0

    def expect(self, said: Said) -> tuple[float, float] | None:
        """Milliseconds that reading and computing entries will take; None where that cannot be told yet.

        What was never read itself is taken to be as the others were: to read all of many once, only to find out that
        computing is cheaper, costs more than that saves.
        """
        others = self.read_ms if self.read_count >= _STREAK else None
        read_ms = others if said.read_ms is None else said.read_ms * self.read_bias
        if read_ms is None or said.recompute_ms is None:
            return None
        recompute_ms = said.recompute_ms * self.recompute_bias
        self.streak = self.streak + 1 if recompute_ms < read_ms else 0
        self.read_ms = read_ms if self.read_ms is None else self.read_ms
        self.recompute_ms = recompute_ms if self.recompute_ms is None else self.recompute_ms
        return read_ms, recompute_ms

    def is_to_be_tried(self, read_ms: float, recompute_ms: float) -> bool:
        """Whether computing is to be measured again before reading is preferred: the two are near each other, and what
        entries say of computing is of their first time, which storing them between made slow.
        """
        return self.recompute_count < _TRIES and max(read_ms, recompute_ms) < _NEAR * min(read_ms, recompute_ms)

    def read(self, seconds: float, said_ms: float | None = None) -> None:
        """Take a measurement of reading, and what the entries said of it."""
        self.read_count += 1
        self.read_ms = _follow(self.read_ms, 1e3 * seconds)
        self.read_bias *= _correction(said_ms, 1e3 * seconds, self.read_bias)

    def computed(self, seconds: float, said_ms: float | None = None) -> None:
        """Take a measurement of computing, and what the entries said of it."""
        self.recompute_count += said_ms is not None
        self.recompute_ms = _follow(self.recompute_ms, 1e3 * seconds)
        self.recompute_bias *= _correction(said_ms, 1e3 * seconds, self.recompute_bias)


_instances: weakref.WeakSet[Measurements] = weakref.WeakSet()


class Measurements:
    """Hits and times of one namespace; several threads may use it.

    What is counted before the namespace has a row, misses that is, stays in memory until it has.

    Parameters
    ----------
    flush_seconds
        How long they stay in memory at most, while the process lives.
    """

    def __init__(self, database: Database, namespace: Namespace, flush_seconds: float) -> None:
        self._database = database
        self._key = {"tenant_id": namespace.tenant_id, "digest": namespace.digest}
        self._flush_seconds = flush_seconds
        self.forget()
        _instances.add(self)

    def forget(self) -> None:
        """Begin anew: a child of `fork` has copies of what its parent writes, and of locks that its threads held."""
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._timer: threading.Timer | None = None
        self._entries: dict[tuple[str, bytes], _Entry] = {}
        self._totals = _Totals()

    def said(self, digest: bytes, found: Mapping[str, StoredActivation]) -> Said:
        """Reading takes the sum of what each takes; one computation gives all of them."""
        known = [self.known(digest, entry) for entry in found.values()]
        reading = [read for read, _ in known if read is not None]
        computing = [recompute for _, recompute in known if recompute is not None]
        return Said(sum(reading) if len(reading) == len(known) else None, max(computing, default=None))

    def known(self, digest: bytes, entry: StoredActivation) -> tuple[float | None, float | None]:
        """``read_ms`` and ``recompute_ms`` of an entry, with what is not written yet."""
        with self._lock:
            own = self._entries.get((entry.hook_point, digest), _Entry())
        return (
            entry.read_ms if own.read_ms is None else own.read_ms,
            entry.recompute_ms if own.recompute_ms is None else own.recompute_ms,
        )

    def hit(self, digest: bytes, found: Mapping[str, StoredActivation], seconds: float) -> None:
        """Entries were read together; each has the part of the time that it has of the bytes."""
        nbytes = sum(entry.nbytes for entry in found.values())
        whole = nbytes + len(found)  # those without bytes take some time, too
        known = {name: self.known(digest, entry)[0] for name, entry in found.items()}
        with self._lock:
            self._totals.lookups += 1
            self._totals.hits += 1
            self._totals.read_nbytes += nbytes
            self._totals.read_seconds += seconds
            for name, entry in found.items():
                own = self._entries.setdefault((name, digest), _Entry())
                own.hit_count += 1
                own.last_hit = time.monotonic()
                own.read_ms = _smooth(known[name], 1e3 * seconds * (entry.nbytes + 1) / whole)
        self._plan()

    def computed(self, digest: bytes, found: Mapping[str, StoredActivation], seconds: float) -> None:
        """All was computed, in that time, although these entries are stored."""
        known = {name: self.known(digest, entry)[1] for name, entry in found.items()}
        with self._lock:
            self._totals.lookups += 1
            self._totals.computed_seconds += seconds
            for name in found:
                own = self._entries.setdefault((name, digest), _Entry())
                # No hit: what is cheaper to compute is the first to go when there is no room.
                own.recompute_ms = _smooth(known[name], 1e3 * seconds)
        self._plan()

    def missed(self) -> None:
        """Not all was there, and nothing was computed."""
        with self._lock:
            self._totals.lookups += 1
        self._plan()

    def flush(self) -> None:
        """Write what was collected, in a transaction of its own; what cannot be written is lost, and logged."""
        with self._writing:
            with self._lock:
                self._timer = None
                entries, self._entries = self._entries, {}
                totals, self._totals = self._totals, _Totals()
            if not totals.lookups:
                return
            try:
                is_written = self._database.transaction(
                    lambda session: self._write(session, entries, totals), attempts=1
                )
            except (ArcHaloError, SQLAlchemyError) as error:
                _log.warning("hits of %d activations are not counted: %s", len(entries), error)
                return
            if not is_written:  # entries went with the row
                with self._lock:
                    self._totals = self._totals.plus(totals)

    def flush_hits(self) -> None:
        """As `flush`, unless there are no hits or measurements of entries to write."""
        with self._lock:
            nothing = not self._entries
        if not nothing:
            self.flush()

    def close(self) -> None:
        """Write what was collected, and wait for a thread that does."""
        with self._lock:
            timer = self._timer
        if timer is not None:
            timer.cancel()
        self.flush()

    def _plan(self) -> None:
        """Have a thread flush later, unless one is about to."""
        with self._lock:
            if self._timer is None:
                self._timer = threading.Timer(self._flush_seconds, self.flush)
                self._timer.name = "arc-halo-hits"
                self._timer.daemon = True
                self._timer.start()

    def _write(self, session: Session, entries: Mapping[tuple[str, bytes], _Entry], totals: _Totals) -> bool:
        """False if the namespace has no row."""
        now = time.monotonic()
        values = {
            "hook_points": [name for name, _ in entries],
            "input_digests": [digest for _, digest in entries],
            "hit_counts": [each.hit_count for each in entries.values()],
            "ages": [now - each.last_hit for each in entries.values()],
            "read_ms": [each.read_ms for each in entries.values()],
            "recompute_ms": [each.recompute_ms for each in entries.values()],
        }
        if entries:
            session.execute(_COUNT, self._key | values)
        counts = {name: getattr(totals, name) for name in _Totals.__slots__}
        return session.scalar(_SUM_UP, self._key | counts) is not None


def _forget_all() -> None:
    for each in list(_instances):
        each.forget()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_forget_all)


def _correction(said: float | None, measured: float, bias: float) -> float:
    """The factor for a bias; smoothed as a geometric mean, since times are off by factors."""
    return (measured / (said * bias)) ** _WEIGHT if said and measured else 1.0


def _follow(known: float | None, measured: float) -> float:
    """As `_smooth`, by factors: one time that is ten times as long shall not break a habit."""
    return measured if not known else known * _correction(known, measured, 1.0)


def _smooth(known: float | None, measured: float) -> float:
    return measured if known is None else known + _WEIGHT * (measured - known)
