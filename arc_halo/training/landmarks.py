"""What stands along the line of a run beside its metrics: checkpoints, and where an attempt took over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from sqlalchemy import func as sql_function
from sqlalchemy import select, text

from arc_halo.schema import ModelCheckpoint, TrainingAttempt

if TYPE_CHECKING:
    import datetime as dt
    import uuid
    from collections.abc import Collection

    from sqlalchemy.orm import Session

_LANDMARKS: Final = text("""
SELECT r.id AS run_id, line.attempt_number, a.fork_step, c.step, c.is_best
  FROM unnest(CAST(:runs AS uuid[])) AS r (id)
 CROSS JOIN LATERAL arc_halo.attempt_line(r.id) AS line
  JOIN arc_halo.training_attempts AS a ON a.id = line.attempt_id
  LEFT JOIN arc_halo.model_checkpoints AS c
    ON c.attempt_id = line.attempt_id AND c.status = 'published'
   AND c.step > line.after_step AND c.step <= line.through_step
 ORDER BY line.attempt_number, c.step
""")


@dataclass(frozen=True, slots=True)
class Fork:
    """Where an attempt began: ``step`` is the last of its parent's that counts."""

    attempt_number: int
    step: int


@dataclass(frozen=True, slots=True)
class Landmarks:
    """Steps of published checkpoints, of the best among them, and forks, oldest first."""

    checkpoints: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    best_checkpoints: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    forks: tuple[Fork, ...] = ()


def find_landmarks(session: Session, run_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Landmarks]:
    """Those of each run along the line of its newest attempt, by one statement."""
    steps: dict[uuid.UUID, dict[int, bool]] = {each: {} for each in run_ids}
    forks: dict[uuid.UUID, dict[int, Fork]] = {each: {} for each in run_ids}
    for row in session.execute(_LANDMARKS, {"runs": list(run_ids)}):
        if row.fork_step is not None:
            forks[row.run_id][row.attempt_number] = Fork(row.attempt_number, row.fork_step)
        if row.step is not None:
            steps[row.run_id][row.step] = row.is_best or steps[row.run_id].get(row.step, False)
    return {
        run: Landmarks(
            np.array(sorted(steps[run]), np.int64),
            np.array(sorted(step for step, is_best in steps[run].items() if is_best), np.int64),
            tuple(forks[run].values()),
        )
        for run in run_ids
    }


@dataclass(frozen=True, slots=True)
class CheckpointSummary:
    """A checkpoint without its contents; whether it is on the line of the newest attempt."""

    id: uuid.UUID
    attempt_number: int
    step: int
    epoch: float | None
    checkpoint_type: str
    status: str
    is_best: bool
    is_pinned: bool
    world_size: int
    nbytes: int | None
    compression: str
    metrics: dict[str, Any]
    lsn: str | None
    created_at: dt.datetime
    published_at: dt.datetime | None
    is_on_line: bool


def list_checkpoints(session: Session, run_id: uuid.UUID) -> list[CheckpointSummary]:
    """All checkpoints of a run by step, those that wait for ranks and those behind forks included."""
    line = (
        sql_function.arc_halo.attempt_line(run_id)
        .table_valued("attempt_id", "attempt_number", "after_step", "through_step")
        .alias("line")
    )
    checkpoint = ModelCheckpoint
    columns = (
        *(checkpoint.id, TrainingAttempt.attempt_number, checkpoint.step, checkpoint.epoch),
        *(checkpoint.checkpoint_type, checkpoint.status, checkpoint.is_best, checkpoint.is_pinned),
        *(checkpoint.world_size, checkpoint.nbytes, checkpoint.compression, checkpoint.metrics, checkpoint.lsn),
        *(checkpoint.created_at, checkpoint.published_at),
        (line.c.attempt_id.is_not(None)).label("is_on_line"),
    )
    statement = (
        select(*columns)
        .join(TrainingAttempt, TrainingAttempt.id == checkpoint.attempt_id)
        .outerjoin(line, (line.c.attempt_id == checkpoint.attempt_id) & (checkpoint.step <= line.c.through_step))
        .where(checkpoint.training_session_id == run_id)
        .order_by(checkpoint.step, TrainingAttempt.attempt_number, checkpoint.id)
    )
    return [CheckpointSummary(**row) for row in session.execute(statement).mappings()]
