"""Sealing: old points of a run packed into segments, a fraction of their size, which views still show as rows."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from arc_halo.errors import ArcHaloError, MetricError
from arc_halo.schema.training import BLOCK_POINTS, SEGMENT_POINTS
from arc_halo.training.naming import find_run
from arc_halo.training.storing import wait_for_locks

if TYPE_CHECKING:
    import uuid

    from sqlalchemy.orm import Session

    from arc_halo.database import Database
    from arc_halo.schema import TrainingSession

SEAL_EVERY: Final = 1 << 16
"""Points between two looks at what may be sealed; of each series so many are, so that heartbeats go on meanwhile."""
_ALL: Final = 2**62
LOCK_SECONDS: Final = 5.0
"""So long it waits for somebody who holds a series; neither the recorder nor the end of a run waits for longer."""
_log = logging.getLogger(__name__)
# Series in the order of their ids, as everybody locks them.
_SEAL: Final = """
WITH series AS MATERIALIZED (
    SELECT s.id, newest.step AS through_step
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
), sealed AS MATERIALIZED (
    SELECT arc_halo.seal_series(series.id, series.through_step) AS point_count FROM series
)
SELECT count(*) FILTER (WHERE point_count > 0), COALESCE(sum(point_count), 0)::bigint FROM sealed
"""
_OF_RUN: Final = "s.attempt_id IN (SELECT a.id FROM arc_halo.training_attempts AS a WHERE a.training_session_id = :id)"
_SEAL_RUN: Final = text(_SEAL.format(of=_OF_RUN))
_SEAL_ATTEMPT: Final = text(_SEAL.format(of="s.attempt_id = :id"))
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
    """Pack a run's points into segments of up to 4,096: about 13 bytes a point instead of 90.

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
    """Seals an attempt's points while it runs, and when it has ended; what it cannot seal stays as it is.

    Parameters
    ----------
    database
        Where; each time in a transaction of its own.
    """

    def __init__(self, database: Database, attempt_id: uuid.UUID) -> None:
        self._database, self._attempt_id = database, attempt_id
        self._looked_at = 0

    def seal_old(self, stored: int) -> None:
        """Seal long series but for their newest segment's worth, if many points were stored since this was done.

        Parameters
        ----------
        stored
            How many points were stored in all.
        """
        if stored - self._looked_at >= SEAL_EVERY:
            self._looked_at = stored
            self._seal(keep_points=SEGMENT_POINTS, at_least=2 * SEGMENT_POINTS, at_most=SEAL_EVERY)

    def seal_all(self) -> None:
        """Seal all series of more than a few points."""
        self._seal(keep_points=0, at_least=BLOCK_POINTS, at_most=_ALL)

    def _seal(self, **limits: int) -> None:
        asked = {"id": self._attempt_id, **limits}

        def unit(session: Session) -> None:
            wait_for_locks(session, LOCK_SECONDS)
            session.execute(_SEAL_ATTEMPT, asked)

        try:
            self._database.transaction(unit, attempts=1)
        except (ArcHaloError, SQLAlchemyError) as error:
            _log.warning("points stay unsealed, which takes room and nothing else; see seal_points: %s", error)


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
