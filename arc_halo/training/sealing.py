"""Sealing: old points of a run packed into segments, a fraction of their size, which views still show as rows."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from arc_halo.errors import ArcHaloError, MetricError
from arc_halo.schema.training import BLOCK_POINTS, SEGMENT_POINTS
from arc_halo.training.naming import find_run
from arc_halo.training.storing import wait_for_locks

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Row, TextClause
    from sqlalchemy.orm import Session

    from arc_halo.database import Database
    from arc_halo.schema import TrainingSession

SEAL_EVERY: Final = 1 << 16
"""Points between two looks at what may be sealed while a run goes on; about so many are sealed in a transaction."""
LOCK_SECONDS: Final = 0.5
"""So long a run that seals itself waits for somebody who holds a series."""
_ALL: Final = 2**62
_log = logging.getLogger(__name__)
# Series in the order of their ids, as everybody locks them.
_CHOOSE: Final = """
SELECT s.id, newest.step AS through_step, LEAST(single.point_count - :keep_points, :at_most) AS point_count
  FROM arc_halo.metric_series AS s
  JOIN arc_halo.metric_summaries AS m ON m.series_id = s.id
 CROSS JOIN LATERAL (
    SELECT m.point_count - COALESCE(sum(g.point_count), 0) AS point_count
      FROM arc_halo.metric_segments AS g
     WHERE g.series_id = s.id
 ) AS single
 CROSS JOIN LATERAL (
    SELECT t.step FROM arc_halo.training_metrics AS t
     WHERE t.series_id = s.id
     ORDER BY t.step
    OFFSET GREATEST(LEAST(single.point_count - :keep_points, :at_most) - 1, 0) LIMIT 1
 ) AS newest
 WHERE {of} AND single.point_count >= :at_least
 ORDER BY s.id
"""
_OF_ATTEMPTS: Final = (
    "s.attempt_id IN (SELECT a.id FROM arc_halo.training_attempts AS a WHERE a.training_session_id = :id{which})"
)
_CHOOSE_ENDED: Final = text(_CHOOSE.format(of=_OF_ATTEMPTS.format(which=" AND a.status <> 'running'")))
_CHOOSE_OF_ATTEMPT: Final = text(_CHOOSE.format(of="s.attempt_id = :id"))
_SEAL: Final = """
WITH series AS MATERIALIZED ({choose}), sealed AS MATERIALIZED (
    SELECT arc_halo.seal_series(series.id, series.through_step) AS point_count FROM series
)
SELECT count(*) FILTER (WHERE point_count > 0), COALESCE(sum(point_count), 0)::bigint FROM sealed
"""
_SEAL_RUN: Final = text(_SEAL.format(choose=_CHOOSE.format(of=_OF_ATTEMPTS.format(which=""))))
_SEAL_CHOSEN: Final = text("""
SELECT arc_halo.seal_series(chosen.id, chosen.through_step)
  FROM unnest(CAST(:ids AS integer[]), CAST(:steps AS bigint[])) AS chosen (id, through_step)
""")
_UNSEAL: Final = text("""
WITH series AS MATERIALIZED (
    SELECT s.id
      FROM arc_halo.training_attempts AS a
      JOIN arc_halo.metric_series AS s ON s.attempt_id = a.id
     WHERE a.training_session_id = :run_id AND s.sealed_through_step IS NOT NULL
     ORDER BY s.id
), unsealed AS MATERIALIZED (
    SELECT arc_halo.unseal_series(series.id) AS point_count FROM series
)
SELECT COALESCE(sum(point_count), 0)::bigint FROM unsealed
""")


@dataclass(frozen=True, slots=True)
class Sealed:
    """What was packed.

    Attributes
    ----------
    series_count
        Series of which points were.
    point_count
        With those of last segments that had room and were packed again.
    """

    series_count: int
    point_count: int


def seal_points(
    session: Session, training_session: TrainingSession | uuid.UUID | str, *, keep_points: int = 0
) -> Sealed:
    """Pack a run's points into segments of up to 4,096: about 17 bytes a point instead of 90.

    Runs that `training_run` keeps are sealed by themselves, old points as they go and all when they end. Views,
    functions and `history` show sealed points as before, and charts read a summary of each 64. A point that is written
    to a sealed step later is merged into its segment. The room that the single points took is used again after a
    vacuum.

    Parameters
    ----------
    keep_points
        So many of the newest of each series are left as they are: those that may be written again, while it runs.

    Raises
    ------
    RunNotFound
        There is no such run.
    MetricError
        ``keep_points`` is negative.
    """
    if keep_points < 0:
        raise MetricError(f"keep_points is a number of points to leave unsealed, not {keep_points}")
    run = find_run(session, training_session)
    session.flush()
    asked = {"id": run.id, "keep_points": keep_points, "at_least": keep_points + 1, "at_most": _ALL}
    return Sealed(*session.execute(_SEAL_RUN, asked).one())


class Sealer:
    """Seals the points of a run that goes on, a few series in each transaction, so that nobody waits for it for long.

    What it cannot seal stays as it is.

    Parameters
    ----------
    seconds
        After so long `seal_old` leaves the rest to the next time.
    """

    def __init__(self, database: Database, run_id: uuid.UUID, attempt_id: uuid.UUID, *, seconds: float) -> None:
        self._database, self._run_id, self._attempt_id = database, run_id, attempt_id
        self._seconds = seconds
        self._looked_at = 0

    def seal_old(self, stored: int) -> None:
        """Seal long series of the attempt but for their newest segment's worth, once many points came since last time.

        Parameters
        ----------
        stored
            How many points were stored in all.
        """
        if stored - self._looked_at < SEAL_EVERY:
            return
        limits = {"keep_points": SEGMENT_POINTS, "at_least": 2 * SEGMENT_POINTS, "at_most": SEAL_EVERY}
        if self._seal(_CHOOSE_OF_ATTEMPT, {"id": self._attempt_id, **limits}, self._seconds):
            self._looked_at = stored

    def seal_ended(self, seconds: float) -> None:
        """Seal all attempts of the run that have ended, however they did, but for series of a few points."""
        limits = {"keep_points": 0, "at_least": BLOCK_POINTS, "at_most": SEAL_EVERY}
        if not self._seal(_CHOOSE_ENDED, {"id": self._run_id, **limits}, seconds):
            _log.info("points of the run are left unsealed, which takes room and nothing else; see seal_points")

    def _seal(self, choose: TextClause, asked: dict[str, Any], seconds: float) -> bool:
        """Whether nothing is left to do, or nothing can be done."""
        deadline = time.monotonic() + seconds
        try:
            while True:
                with self._database.session() as session:
                    chosen = session.execute(choose, asked).all()
                if not chosen:
                    return True
                for batch in _batches(chosen):
                    if time.monotonic() > deadline:
                        return False
                    self._database.transaction(partial(_seal_chosen, chosen=batch), attempts=1)
        except (ArcHaloError, SQLAlchemyError) as error:
            _log.warning("points stay unsealed, which takes room and nothing else; see seal_points: %s", error)
            return True


def _batches(chosen: Sequence[Row[Any]]) -> Iterator[list[Row[Any]]]:
    """Series with so many points together as are sealed at once."""
    batch: list[Row[Any]] = []
    count = 0
    for each in chosen:
        if batch and count + each.point_count > SEAL_EVERY:
            yield batch
            batch, count = [], 0
        batch.append(each)
        count += each.point_count
    yield batch


def _seal_chosen(session: Session, chosen: Sequence[Row[Any]]) -> None:
    wait_for_locks(session, LOCK_SECONDS)
    session.execute(
        _SEAL_CHOSEN, {"ids": [each.id for each in chosen], "steps": [each.through_step for each in chosen]}
    )


def unseal_points(session: Session, training_session: TrainingSession | uuid.UUID | str) -> int:
    """Unpack all segments of a run into single points again; returns how many points that are.

    Raises
    ------
    RunNotFound
        There is no such run.
    """
    run = find_run(session, training_session)
    session.flush()
    return int(session.execute(_UNSEAL, {"run_id": run.id}).scalar_one())
