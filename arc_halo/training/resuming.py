"""Where an attempt goes on from: the newest state of the line, one that is named, or nothing."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import select

from arc_halo.errors import CheckpointNotFound
from arc_halo.schema import ModelCheckpoint, TrainingAttempt
from arc_halo.training.finding import checkpoint_on_line

if TYPE_CHECKING:
    from sqlalchemy import Select
    from sqlalchemy.orm import Session

    from arc_halo.schema import TrainingSession

_SHOWN = 10


class Origin(NamedTuple):
    """The checkpoint that an attempt goes on from, and the attempt whose history it takes up to there."""

    checkpoint_id: uuid.UUID
    attempt_number: int
    step: int
    epoch: float | None


def find_origin(
    session: Session, run: TrainingSession, resume: bool | str | uuid.UUID, fork_step: int | None
) -> Origin | None:
    """What a new attempt of a run goes on from.

    Parameters
    ----------
    resume
        ``"auto"``: the newest full checkpoint of the newest attempt's line, if there is one; True: the same, and it
        is an error if there is none; False: nothing; an id: that checkpoint, of whichever attempt of the run.
    fork_step
        The checkpoint of the line at this step instead of the newest.

    Raises
    ------
    CheckpointNotFound
        There is none; the message lists those that there are.
    """
    if fork_step is not None and (isinstance(fork_step, bool) or not isinstance(fork_step, int)):
        raise CheckpointNotFound(f"fork_step is the step of a checkpoint, a whole number, not {fork_step!r:.80}")
    if resume is False:
        if fork_step is not None:
            raise CheckpointNotFound(f"fork_step={fork_step} and resume=False contradict each other; leave one out")
        return None
    if resume is True or resume == "auto":
        found = _of_line(session, run, fork_step)
        if found is None and (resume is True or fork_step is not None):
            wanted = "full checkpoint" if fork_step is None else f"full checkpoint at step {fork_step}"
            raise CheckpointNotFound(f"run {run.name!r} has no {wanted} in its line; {_known(session, run)}")
        return found
    return _named(session, run, resume, fork_step)


def _published(run: TrainingSession) -> Select[uuid.UUID, int, int, float | None]:
    return (
        select(ModelCheckpoint.id, TrainingAttempt.attempt_number, ModelCheckpoint.step, ModelCheckpoint.epoch)
        .join(TrainingAttempt, TrainingAttempt.id == ModelCheckpoint.attempt_id)
        .where(ModelCheckpoint.training_session_id == run.id, ModelCheckpoint.status == "published")
    )


def _of_line(session: Session, run: TrainingSession, step: int | None) -> Origin | None:
    """The newest of the line, or the one at a step. One of weights alone would lose the optimizer without a word."""
    newest = select(TrainingAttempt.id).where(TrainingAttempt.training_session_id == run.id)
    attempt_id = session.scalar(newest.order_by(TrainingAttempt.attempt_number.desc()).limit(1))
    found = None if attempt_id is None else checkpoint_on_line(session, attempt_id, step, "full")
    if found is None or (step is not None and found.step != step):
        return None
    return Origin(*session.execute(_published(run).where(ModelCheckpoint.id == found.id)).one())


def _named(session: Session, run: TrainingSession, resume: str | uuid.UUID, fork_step: int | None) -> Origin:
    try:
        checkpoint_id = resume if isinstance(resume, uuid.UUID) else uuid.UUID(resume)
    except (ValueError, AttributeError, TypeError):
        raise CheckpointNotFound(
            f"resume={resume!r:.80} is no checkpoint; give 'auto', True, False or the id of one of run {run.name!r}"
        ) from None
    row = session.execute(_published(run).where(ModelCheckpoint.id == checkpoint_id)).one_or_none()
    if row is None:
        raise CheckpointNotFound(f"run {run.name!r} has no checkpoint {checkpoint_id}; {_known(session, run)}")
    origin = Origin(*row)
    if fork_step is not None and fork_step != origin.step:
        raise CheckpointNotFound(
            f"checkpoint {checkpoint_id} is of step {origin.step}, not {fork_step}; leave one of them out"
        )
    return origin


def _known(session: Session, run: TrainingSession) -> str:
    newest = _published(run).order_by(ModelCheckpoint.step.desc()).limit(_SHOWN + 1)
    rows = session.execute(newest.add_columns(ModelCheckpoint.checkpoint_type)).all()
    if not rows:
        return "it has published none"
    named = ", ".join(f"step {row.step} ({row.checkpoint_type}) {row.id}" for row in rows[:_SHOWN])
    more = ", ..." if len(rows) > _SHOWN else ""
    return f"it has {named}{more}; resume='<id>' goes on from one that stands aside of its line"
