"""Deleting a run with all that is its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from arc_halo.errors import RunInUse
from arc_halo.training.naming import find_run, run_name

if TYPE_CHECKING:
    import uuid

    from sqlalchemy.orm import Session

    from arc_halo.schema import TrainingSession

STALE_AFTER: Final = 60.0
"""Seconds of silence after which an attempt is taken for dead."""
# The run first and alone, as whoever opens an attempt locks it.
_LOCK: Final = text("SELECT FROM arc_halo.training_sessions AS s WHERE s.id = :run_id FOR UPDATE")
_NEWEST: Final = text("""
SELECT a.status, a.host, a.pid, extract(epoch FROM statement_timestamp() - a.heartbeat_at)::double precision AS silence
  FROM arc_halo.training_attempts AS a
 WHERE a.training_session_id = :run_id
 ORDER BY a.attempt_number DESC
 LIMIT 1
""")
_COUNTS: Final = text("""
SELECT (SELECT count(*) FROM arc_halo.training_attempts AS a WHERE a.training_session_id = :run_id),
       count(s.id),
       COALESCE(sum(m.point_count), 0)::bigint,
       (SELECT count(*) FROM arc_halo.model_checkpoints AS c WHERE c.training_session_id = :run_id)
  FROM arc_halo.training_attempts AS a
  JOIN arc_halo.metric_series AS s ON s.attempt_id = a.id
  LEFT JOIN arc_halo.metric_summaries AS m ON m.series_id = s.id
 WHERE a.training_session_id = :run_id
""")


@dataclass(frozen=True, slots=True)
class Deleted:
    """How much of a run was deleted."""

    attempt_count: int
    series_count: int
    point_count: int
    checkpoint_count: int


def delete_run(
    session: Session,
    training_session: TrainingSession | uuid.UUID | str,
    *,
    force: bool = False,
    stale_after: float = STALE_AFTER,
) -> Deleted:
    """Delete a run in the caller's transaction: attempts, points, checkpoints and what was found out about it.

    Rows are deleted where they are, whatever their number; none is read. Tensors that only its checkpoints used are
    left to `prune`. The transaction must be READ COMMITTED, as it is by default.

    Parameters
    ----------
    force
        Delete it though its newest attempt is alive, which then fails at its next write.
    stale_after
        Seconds of silence, by the database's clock, after which that attempt is taken for dead.

    Raises
    ------
    RunNotFound
        There is no such run.
    RunInUse
        Its newest attempt is alive; the message says where.
    """
    run = find_run(session, training_session)
    session.flush()
    run_id = {"run_id": run.id}
    session.execute(_LOCK, run_id)
    newest = session.execute(_NEWEST, run_id).one_or_none()
    if newest is not None and newest.status == "running" and newest.silence < stale_after and not force:
        raise RunInUse(f"{run_name(run)} is trained by {_place(newest)}: stop it first, or force this")
    counts = session.execute(_COUNTS, run_id).one()
    session.delete(run)
    session.flush()
    return Deleted(*counts)


def _place(attempt: Any) -> str:
    process = f"process {attempt.pid}" if attempt.pid else "a process"
    return f"{process} on {attempt.host or 'an unknown host'}, last heard of {attempt.silence:.0f} s ago"
