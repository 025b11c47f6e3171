"""Figures of requests on their way into the database: a bounded buffer, and a thread that stores what is in it."""

from __future__ import annotations

import datetime as dt
import itertools
import logging
import os
import random
import threading
import time
from typing import TYPE_CHECKING, Final

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from arc_halo.errors import ArcHaloError, ConstraintViolation, DatabaseUnavailable, MetricError, MetricsLost
from arc_halo.inference.figures import RequestFigures

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from arc_halo.database import Database
    from arc_halo.inference.figures import DatabaseClock

FLUSH_SECONDS: Final = 1.0
"""Figures are visible to others after about so long."""
CAPACITY: Final = 100_000
"""Requests in memory while the database takes none; each is about half a kilobyte."""
_BATCH: Final = 1000
_PAUSES: Final = (0.5, 15.0)
_HURRIED_SECONDS: Final = 0.5
_CHECK_VIOLATION: Final = "23514"
_log = logging.getLogger(__name__)

_TYPES: Final = {
    "request_number": "bigint",
    "recorded_at": "timestamptz",
    "latency_seconds": "double precision",
    "time_to_first_token_seconds": "double precision",
    "tokens_per_second": "double precision",
    "prompt_token_count": "integer",
    "generated_token_count": "integer",
    "cached_token_count": "integer",
    "memory_nbytes": "bigint",
}
# Stored twice, a row is counted once: its key has the number and the time, which it keeps.
_STORE: Final = text(f"""
WITH stored AS (
    INSERT INTO arc_halo.inference_metrics (inference_session_id, {", ".join(RequestFigures._fields)})
    SELECT :session_id, r.*
      FROM unnest({", ".join(f"CAST(:{name} AS {_TYPES[name]}[])" for name in RequestFigures._fields)}) AS r
    ON CONFLICT DO NOTHING
    RETURNING prompt_token_count, generated_token_count, cached_token_count),
total AS (
    SELECT count(*) AS requests, coalesce(sum(prompt_token_count), 0) AS prompt,
           coalesce(sum(generated_token_count), 0) AS generated, coalesce(sum(cached_token_count), 0) AS cached
      FROM stored)
UPDATE arc_halo.inference_sessions AS s
   SET request_count = s.request_count + total.requests,
       prompt_token_count = s.prompt_token_count + total.prompt,
       generated_token_count = s.generated_token_count + total.generated,
       cached_token_count = s.cached_token_count + total.cached
  FROM total
 WHERE s.id = :session_id
RETURNING clock_timestamp()
""")  # noqa: S608  of names that stand here
_END: Final = text("""
UPDATE arc_halo.inference_sessions SET status = :status, ended_at = clock_timestamp()
 WHERE id = :session_id AND status = 'active'
""")
_ENSURE: Final = text("SELECT arc_halo.ensure_time_partitions('arc_halo.inference_metrics', :month, 0)")


class MetricRecorder:
    """Takes figures of requests without ever waiting for the database, from any thread.

    Parameters
    ----------
    capacity
        Requests held in memory; what comes while it is full is dropped, counted, and said when the session ends.
    """

    def __init__(
        self, database: Database, session_id: uuid.UUID, clock: DatabaseClock, *, capacity: int = CAPACITY
    ) -> None:
        self._database, self._session_id, self._clock = database, session_id, clock
        self._capacity = capacity
        self._process = os.getpid()
        self._numbers = itertools.count()
        self._wake = threading.Event()
        self._changed = threading.Condition()  # guards all below
        self._rows: list[RequestFigures] = []
        self._dropped = self._taken = self._stored = 0
        self._error: Exception | None = None
        self._is_gone = self._is_closing = self._is_ended = self._is_abandoned = False
        self._status: str | None = None
        self._failures, self._next_try = 0, 0.0
        self._thread = threading.Thread(target=self._run, name="arc-halo-inference", daemon=True)
        self._thread.start()

    def next_number(self) -> int:
        """A number that no other request of the session has.

        Raises
        ------
        MetricError
            The session has ended, or this process was forked from the one that began it.
        """
        self._check_process()
        with self._changed:
            self._check_open()
            return next(self._numbers)

    def put(self, row: RequestFigures) -> None:
        """Take the figures of a request."""
        self._check_process()
        with self._changed:
            self._check_open()
            if self._is_gone or len(self._rows) >= self._capacity:
                self._dropped += 1
                is_first, is_batch = self._dropped == 1, False
            else:
                self._rows.append(row)
                self._taken += 1
                is_first, is_batch = False, len(self._rows) % _BATCH == 0
        if is_first:
            _log.warning("figures of requests are dropped: the database takes none, and memory for them is full")
        if is_batch:
            self._wake.set()

    def flush(self, timeout: float) -> None:
        """Wait until what was taken so far is stored.

        Raises
        ------
        MetricsLost
            The session was deleted.
        DatabaseUnavailable
            It is not after ``timeout`` seconds, and waits in memory.
        """
        self._check_process()
        deadline = time.monotonic() + timeout
        with self._changed:
            target = self._taken
            self._next_try = 0.0
            self._wake.set()
            while self._stored < target:
                if self._is_gone:
                    raise MetricsLost(self._loss()) from self._error
                if (remaining := deadline - time.monotonic()) <= 0:
                    raise DatabaseUnavailable(
                        f"the database has not taken figures of {target - self._stored} requests yet{self._why()}; "
                        "they wait in memory and are stored as soon as it does"
                    ) from self._error
                self._changed.wait(remaining)

    def close(self, status: str, timeout: float) -> None:
        """Store what is left, then how the session ended; only the process that began it does.

        Raises
        ------
        MetricsLost
            The database did not take all of it within ``timeout`` seconds, or some was dropped before.
        """
        if os.getpid() != self._process:
            return
        deadline = time.monotonic() + timeout
        with self._changed:
            self._status, self._is_closing, self._next_try = status, True, 0.0
            self._wake.set()
            while not (self._is_ended or self._is_gone) and (remaining := deadline - time.monotonic()) > 0:
                self._changed.wait(remaining)
            self._is_abandoned = True
            if self._is_gone or not self._is_ended or self._dropped:
                raise MetricsLost(self._loss()) from self._error

    def _check_process(self) -> None:
        # Before any lock: a fork copies locks as they are, and no thread that would release them.
        if os.getpid() != self._process:
            raise MetricError("this process was forked from the one that began the session; begin one of its own here")

    def _check_open(self) -> None:
        if self._is_closing:
            raise MetricError("the inference session has ended and takes no more requests; begin another one")

    def _why(self) -> str:
        return f" ({self._error})" if self._error else ""

    def _loss(self) -> str:
        waiting = self._taken - self._stored
        lost = f"figures of {waiting + self._dropped} requests of inference session {self._session_id} are lost"
        if self._is_gone:
            return f"{lost}: the session was deleted"
        if self._is_ended:
            return f"{lost}: they came while the database took none and memory for them was full"
        return f"{lost}, and it is still active in the database, which does not answer{self._why()}"

    def _run(self) -> None:
        while not (self._is_ended or self._is_gone or self._is_abandoned):
            self._wake.wait(self._pause())
            self._wake.clear()
            if time.monotonic() < self._next_try:
                continue
            try:
                self._work()
            except Exception as error:  # noqa: BLE001  whatever it is, figures stay and it is said where somebody waits
                self._fail(error)

    def _pause(self) -> float:
        return min(FLUSH_SECONDS, max(0.0, self._next_try - time.monotonic())) if self._failures else FLUSH_SECONDS

    def _work(self) -> None:
        """Store batch by batch; then, if the session ends, how it did."""
        while True:
            with self._changed:
                batch, is_closing = self._rows[:_BATCH], self._is_closing
            if not batch:
                break
            self._store(batch)
            with self._changed:
                del self._rows[: len(batch)]
                self._stored += len(batch)
                self._failures, self._error = 0, None
                self._changed.notify_all()
        if is_closing:
            ended = {"session_id": self._session_id, "status": self._status}
            self._database.transaction(lambda session: session.execute(_END, ended), attempts=1)
            with self._changed:
                self._is_ended = True
                self._changed.notify_all()

    def _store(self, batch: Sequence[RequestFigures]) -> None:
        columns = dict(zip(RequestFigures._fields, map(list, zip(*batch, strict=True)), strict=True))

        def unit(session: Session) -> dt.datetime:
            now: dt.datetime = session.execute(_STORE, columns | {"session_id": self._session_id}).scalar_one()
            return now

        try:
            now = self._database.transaction(unit, attempts=1)
        except ConstraintViolation as error:
            # Of constraints only a partition that is missing has no name.
            if error.sqlstate != _CHECK_VIOLATION or error.constraint is not None:
                raise
            self._make_partitions(batch)
            now = self._database.transaction(unit, attempts=1)
        self._clock.set(now)

    def _make_partitions(self, batch: Sequence[RequestFigures]) -> None:
        months = {
            row.recorded_at.astimezone(dt.UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
            for row in batch
        }

        def unit(session: Session) -> None:
            for month in sorted(months):
                session.execute(_ENSURE, {"month": month})

        self._database.transaction(unit)

    def _fail(self, error: Exception) -> None:
        is_gone = isinstance(error, ConstraintViolation) and error.is_dangling
        if is_gone:
            _log.error("inference session %s was deleted; figures of its requests are dropped", self._session_id)
        elif not (self._failures or self._is_abandoned):
            known = isinstance(error, (ArcHaloError, SQLAlchemyError))
            _log.warning("the database takes no figures of requests: %s", error, exc_info=None if known else error)
        with self._changed:
            if is_gone:
                self._is_gone = True
                self._dropped += len(self._rows)
                self._taken -= len(self._rows)
                self._rows.clear()
            self._error = error
            shortest, longest = _PAUSES
            ceiling = _HURRIED_SECONDS if self._is_closing else min(longest, shortest * 2 ** min(self._failures, 8))
            # Half of it at random, so that servers which lost the database together do not return together.
            self._next_try = time.monotonic() + ceiling * random.uniform(0.5, 1.0)  # noqa: S311  no secret is drawn
            self._failures += 1
            self._changed.notify_all()
