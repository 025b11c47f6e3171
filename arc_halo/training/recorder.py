"""From the training loop into the database: a thread that writes points and heartbeats, and what it does in trouble."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.exc import SQLAlchemyError

from arc_halo.errors import (
    ArcHaloError,
    AttemptLost,
    ConstraintViolation,
    DatabaseUnavailable,
    FileNotWritten,
    MetricError,
)
from arc_halo.training.buffer import CAPACITY, PointBuffer
from arc_halo.training.spool import read_or_set_aside
from arc_halo.training.storing import PointStore, wait_for_locks

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from sqlalchemy.orm import Session

    from arc_halo.database import Database
    from arc_halo.training.buffer import Taken
    from arc_halo.training.keys import Goal, SeriesKey
    from arc_halo.training.spool import Outcome, Spool

    Beat = Callable[[Session, int | None, float | None], None]
    Drain = Callable[[Session], None]

FLUSH_SECONDS: Final = 1.0
"""Points are visible to others after about so long."""
_ATTEMPTS: Final = 2
_PAUSES: Final = (0.5, 15.0)
_HURRIED_SECONDS: Final = 0.5
_log = logging.getLogger(__name__)
_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


class Recorder:
    """Takes points without ever waiting, and has a thread of its own write them.

    Points are in one of three places, each later than the one before: on disk (`Spool`), held by whoever writes them,
    and in the buffer. While the database takes none, they go to disk.

    Parameters
    ----------
    beat
        Says in the session's transaction that the attempt is alive, and how far; raises `AttemptLost` if it is not
        ours any more.
    beat_seconds
        How often at least.
    seal_old
        Told now and then how many points are stored.
    capacity
        Points in memory.
    """

    def __init__(
        self,
        database: Database,
        attempt_id: uuid.UUID,
        spool: Spool,
        beat: Beat,
        *,
        goals: Mapping[str, Goal],
        beat_seconds: float,
        seal_old: Callable[[int], None] | None = None,
        capacity: int = CAPACITY,
    ) -> None:
        self._database, self._spool, self._beat, self._seal_old = database, spool, beat, seal_old
        self._beat_seconds = beat_seconds
        self._wake = threading.Event()
        self.buffer = PointBuffer(self._spill, self._wake.set, capacity)
        self._store = PointStore(attempt_id, goals)
        self._writing = threading.Lock()  # held by whoever moves points into the database
        self._held: Taken | None = None
        self._told_step: int | None = None
        self._last_beat = time.monotonic()
        self._refusal: ArcHaloError | None = None
        self._unspooled: FileNotWritten | None = None
        self._failures, self._next_try = 0, 0.0
        self._progress = threading.Condition()  # of the four below
        self._stored = self._round = self._failed_round = self._waiting = 0
        self._error: Exception | None = None
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="arc-halo-recorder", daemon=True)
        _recorders.add(self)
        self._thread.start()

    def log(
        self, metrics: Mapping[str, Any], step: int, epoch: float | None, scope: str, context: Mapping[str, Any] | None
    ) -> None:
        """Take the points of one step; see `PointBuffer.append`.

        Raises
        ------
        MetricError
            One of them cannot be recorded, the recorder is closed, or the process was forked from its own.
        AttemptLost
            The attempt was taken over.
        """
        if self._refusal is not None:
            self.check()
        self.buffer.append(metrics, step, epoch, scope, context)

    def check(self) -> None:
        """Raise what keeps this recorder from taking points, if anything does."""
        if self._refusal is not None:
            raise type(self._refusal)(*self._refusal.args) from self._refusal

    def flush(self, timeout: float | None = None) -> None:
        """Wait until what was logged so far is stored.

        Parameters
        ----------
        timeout
            Seconds; try again until they have passed. None: until the database has been asked once.

        Raises
        ------
        DatabaseError
            It is not, and waits on this machine.
        FileNotWritten
            Points were lost: neither the database nor the disk took them.
        """
        target = self.buffer.logged
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._progress:
            first = self._round + 1
            self._waiting += 1
            self._next_try = 0.0
            self._wake.set()
            try:
                while self._stored < target:
                    self.check()
                    self._wait(first, deadline, target)
            finally:
                self._waiting -= 1
        dropped, self.buffer.dropped = self.buffer.dropped, 0
        if dropped:
            raise FileNotWritten(f"{dropped} points are lost: neither database nor disk took them; free space there")

    def _wait(self, first: int, deadline: float | None, target: int) -> None:
        if deadline is None:
            if self._error is not None and self._failed_round >= first:
                raise self._error
            self._progress.wait()
            return
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise DatabaseUnavailable(
                f"the database has not taken {target - self._stored} points yet"
                + (f" ({self._error})" if self._error else "")
                + f"; they wait in memory and in {self._spool.folder}, and are written as soon as it does"
            ) from self._error
        self._progress.wait(remaining)

    @contextmanager
    def draining(self) -> Iterator[Drain]:
        """Let a transaction of the caller's write everything that was logged before it ends.

        The function it gives writes in the session it is given, and may be called again where a transaction is run
        again; nobody else writes points from its first call to the end of the block. If the block raises, the points
        stay where they are.
        """
        segments: list[Path] = []
        is_mine = False

        def drain(session: Session) -> None:
            nonlocal is_mine
            self.check()
            if not is_mine:
                is_mine = self._writing.acquire()
            held = self._hold()
            self._store.begin()
            segments[:] = self._spool.segments(held.number)
            for path in segments:
                segment = read_or_set_aside(path)
                if segment is not None:
                    self._store.store(session, segment.keys, segment.points)
            self._store.store(session, held.keys, held.points)

        try:
            yield drain
            if is_mine:
                self._store.commit()
                self._spool.remove(segments)
                self._is_stored()
        finally:
            if is_mine:
                self._writing.release()

    def close(self) -> None:
        """Take no more points, and let the thread end; `flush` comes before."""
        self._refusal = self._refusal or MetricError("the run has ended and takes no more points; begin another one")
        self._is_closing = True
        self._wake.set()
        self._thread.join(FLUSH_SECONDS)
        self._spool.close()

    def leave_behind(self, outcome: Outcome | None) -> None:
        """Write everything to disk, and how the attempt ended if that is ours to say: the next run hands it on.

        Raises
        ------
        FileNotWritten
            The disk does not take it.
        """
        self._is_closing = True
        is_mine = self._writing.acquire(timeout=FLUSH_SECONDS)  # not where the thread hangs: it finds that it may not
        try:
            held, self._held = self._held, None
            failed: FileNotWritten | None = None
            if held is not None and len(held.points):
                try:
                    self._spool.append(held.keys, held.points, held.number)
                except FileNotWritten as error:  # what comes next may still find a place
                    failed = error
            self.buffer.spill()
            if outcome is not None:
                self._spool.append_outcome(outcome)
            if (failed := failed or self._unspooled) is not None:
                raise failed
        finally:
            if is_mine:
                self._writing.release()

    def _run(self) -> None:
        while not self._is_closing and not isinstance(self._refusal, AttemptLost):
            self._wake.wait(min(FLUSH_SECONDS, self._beat_seconds))
            self._wake.clear()
            try:
                self._work()
                if self._seal_old is not None:
                    self._seal_old(self._stored)
            except Exception as error:  # noqa: BLE001  and said where somebody waits
                # Without this thread nothing is stored and the attempt falls silent: it goes on.
                _log.exception("the recorder failed, and tries again")
                self._tell(error)

    def _work(self) -> None:
        pause = _HURRIED_SECONDS if self._waiting else None
        if self._failures and time.monotonic() < self._next_try:
            self.buffer.spill()  # so that a kill takes nothing
            self._beat_if_due()
            if pause:
                self._next_try = min(self._next_try, time.monotonic() + pause)
            return
        with self._progress:
            self._round += 1
        # Whoever publishes a checkpoint may hold it for long, and the attempt lives meanwhile.
        if not self._writing.acquire(timeout=self._beat_seconds):
            self._beat_alone()
            return
        try:
            self._write()
        except AttemptLost as error:
            self._give_up(error)
        except Exception as error:  # noqa: BLE001  whatever it is, points stay and it is said where somebody waits
            self._fail(error)
            self._beat_if_due()
        finally:
            self._writing.release()

    def _beat_if_due(self) -> None:
        """What was refused may be the points and not the heartbeat."""
        if time.monotonic() - self._last_beat >= self._beat_seconds:
            self._beat_alone()

    def _beat_alone(self) -> None:
        try:
            self._database.transaction(lambda session: self._beat(session, None, None), attempts=1)
        except AttemptLost as error:
            self._give_up(error)
        except (ArcHaloError, SQLAlchemyError) as error:
            _log.debug("no heartbeat: %s", error)
        else:
            self._last_beat = time.monotonic()

    def _write(self) -> None:
        """Write what is on disk, then what is held; a transaction each."""
        held = self._hold()
        for path in self._spool.segments(held.number):
            segment = read_or_set_aside(path)
            if segment is not None:
                self._transact(segment.keys, segment.points)
            self._spool.remove([path])
        is_beat_due = time.monotonic() - self._last_beat >= self._beat_seconds
        if len(held.points) or is_beat_due:
            self._transact(held.keys, held.points)
        self._failures = 0
        self._is_stored()

    def _hold(self) -> Taken:
        if self._held is None:
            self._held = self.buffer.take(self._spool.reserve)
        return self._held

    def _is_stored(self) -> None:
        """What is held is in the database, and what came before it."""
        held, self._held = self._held, None
        with self._progress:
            if held is not None:
                self._stored = held.through
            self._error = None
            self._progress.notify_all()

    def _transact(self, keys: Sequence[SeriesKey], points: np.ndarray) -> None:
        step, epoch = self.buffer.last_step, self.buffer.last_epoch
        told = step if step != self._told_step else None

        def unit(session: Session) -> None:
            # Somebody who seals the series and does not commit must not hold up heartbeats for longer than a lease.
            wait_for_locks(session, self._beat_seconds / _ATTEMPTS)
            self._store.begin()
            self._store.store(session, keys, points)
            self._beat(session, told, epoch)

        try:
            self._database.transaction(unit, attempts=_ATTEMPTS)
        except ConstraintViolation as error:
            if error.is_dangling:  # the run was deleted: a beat says so
                self._database.transaction(lambda session: self._beat(session, None, None), attempts=_ATTEMPTS)
            raise
        self._store.commit()
        self._told_step, self._last_beat = step, time.monotonic()

    def _spill(self, keys: Sequence[SeriesKey], points: np.ndarray) -> bool:
        """Put points on disk, in the thread that logs."""
        try:
            self._spool.append(keys, points)
        except FileNotWritten as error:
            if self._unspooled is None:
                _log.warning("points stay in memory, which is bounded: the database takes none, and %s", error)
            self._unspooled = error
            return False
        self._unspooled = None
        return True

    def _fail(self, error: Exception) -> None:
        """Keep what was to be written on disk, and try again later."""
        if self._is_closing:
            return
        held, self._held = self._held, None
        if held is not None and len(held.points):
            try:
                self._spool.append(held.keys, held.points, held.number)
            except FileNotWritten:
                self._held = held  # it stays in memory, where it is bounded
        self.buffer.spill()
        if not self._failures:
            _log.warning("the database takes no points; they are kept in %s: %s", self._spool.folder, error)
        shortest, longest = _PAUSES
        self._next_try = time.monotonic() + min(longest, shortest * 2 ** min(self._failures, 8))
        self._failures += 1
        self._tell(error)

    def _tell(self, error: Exception) -> None:
        with self._progress:
            self._failed_round, self._error = self._round, error
            self._progress.notify_all()

    def _give_up(self, error: AttemptLost) -> None:
        """Nothing that this process does counts any more."""
        waiting = self.buffer.logged - self._stored
        self._held = None
        self._refusal = error
        self.buffer.clear()
        self._spool.discard()
        _log.error("%s (%d points that were not stored are dropped)", error, waiting)
        with self._progress:
            self._progress.notify_all()

    def _refuse_in_child(self) -> None:
        keeper = f"the one that keeps the run ({os.getppid()})"
        self._refusal = MetricError(f"this process was forked from {keeper}; log there, by what it returns")


def _after_fork_in_child() -> None:
    # Threads are not forked, locks are, as they were: nothing of it may be touched.
    for recorder in list(_recorders):
        recorder._refuse_in_child()  # noqa: SLF001  this module's own


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
