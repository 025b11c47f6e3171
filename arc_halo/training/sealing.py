"""Sealing: old points of a run packed into segments, a fraction of their size, which views still show as rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from arc_halo.errors import MetricError
from arc_halo.training.naming import find_run

if TYPE_CHECKING:
    import uuid

    from sqlalchemy.orm import Session

    from arc_halo.schema import TrainingSession

# Series in the order of their ids, as everybody locks them.
_SEAL: Final = text("""
WITH series AS MATERIALIZED (
    SELECT s.id, newest.step AS through_step
      FROM arc_halo.training_attempts AS a
      JOIN arc_halo.metric_series AS s ON s.attempt_id = a.id
     CROSS JOIN LATERAL (
        SELECT t.step FROM arc_halo.training_metrics AS t
         WHERE t.series_id = s.id
         ORDER BY t.step DESC OFFSET :keep_points LIMIT 1
     ) AS newest
     WHERE a.training_session_id = :run_id
     ORDER BY s.id
), sealed AS MATERIALIZED (
    SELECT arc_halo.seal_series(series.id, series.through_step) AS point_count FROM series
)
SELECT count(*) FILTER (WHERE point_count > 0), COALESCE(sum(point_count), 0)::bigint FROM sealed
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
    """Pack a run's points into segments of up to 4,096: about 13 bytes a point instead of 90.

    Views, functions and `history` show sealed points as before, and charts read a summary of each 64. A point that is
    written to a sealed step later is merged into its segment. The room that the single points took is used again after
    a vacuum.

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
    series_count, point_count = session.execute(_SEAL, {"run_id": run.id, "keep_points": keep_points}).one()
    return Sealed(series_count, point_count)


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
