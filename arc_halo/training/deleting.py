"""Deleting a run with all that is its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select, text

from arc_halo.errors import RunInUse
from arc_halo.schema import TrainingAttempt
from arc_halo.training.attempts import process_of
from arc_halo.training.naming import find_run, run_name

if TYPE_CHECKING:
    import uuid

    from sqlalchemy.orm import Session

    from arc_halo.schema import TrainingSession

STALE_AFTER: Final = 60.0
"""Seconds of silence after which an attempt is taken for dead."""
# The run first and alone, as whoever opens an attempt locks it.
_LOCK: Final = text("SELECT FROM arc_halo.training_sessions AS s WHERE s.id = :run_id FOR UPDATE")
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
    if not force:
        _refuse_in_use(session, run, stale_after)
    counts = session.execute(_COUNTS, run_id).one()
    session.delete(run)
    session.flush()
    return Deleted(*counts)


def _refuse_in_use(session: Session, run: TrainingSession, stale_after: float) -> None:
    silence = func.extract("epoch", func.statement_timestamp() - TrainingAttempt.heartbeat_at)
    newest = (
        select(TrainingAttempt, silence)
        .where(TrainingAttempt.training_session_id == run.id)
        .order_by(TrainingAttempt.attempt_number.desc())
        .limit(1)
    )
    attempt, silent = session.execute(newest).one_or_none() or (None, 0.0)
    if attempt is None or attempt.status != "running" or silent >= stale_after:
        return
    process = process_of(attempt)
    if process is None or not process.is_gone():
        kept_by = f"process {attempt.pid}" if attempt.pid else "a process"
        where = attempt.host or "an unknown host"
        raise RunInUse(
            f"{run_name(run)} is trained by {kept_by} on {where}, last heard of {silent:.0f} s ago: stop it first, or "
            "force this"
        )
