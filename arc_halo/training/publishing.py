"""The moment from which a checkpoint exists: what must hold, and what follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select, update

from arc_halo.errors import AttemptLost
from arc_halo.schema import ModelCheckpoint, TrainingAttempt, TrainingSession

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


def hold_attempt(session: Session, attempt: TrainingAttempt, *, for_best: bool = False) -> None:
    """Keep an attempt running until the transaction ends: whoever takes it over waits, or was first.

    The run's row comes first, as everywhere, so that two who lock both never wait for each other.

    Parameters
    ----------
    for_best
        Nobody else may mark a best checkpoint of the run meanwhile.

    Raises
    ------
    AttemptLost
        It was taken over, or has ended.
    """
    run = select(TrainingSession.id).where(TrainingSession.id == attempt.training_session_id)
    session.execute(run.with_for_update(key_share=True) if for_best else run.with_for_update(read=True, key_share=True))
    held = select(TrainingAttempt.id).where(TrainingAttempt.id == attempt.id, TrainingAttempt.status == "running")
    if session.scalar(held.with_for_update(read=True)) is None:
        raise lost(attempt)


def lost(attempt: TrainingAttempt) -> AttemptLost:
    """The error for an attempt that may not write."""
    return AttemptLost(
        f"attempt {attempt.attempt_number} of training run {attempt.training_session_id} does not run any more: it was "
        "taken over or has ended; nothing was stored, resume the run for a new attempt"
    )


def clear_best(session: Session, checkpoint: ModelCheckpoint) -> None:
    """Let no checkpoint of the same run and type be the best: this one is about to be."""
    best = update(ModelCheckpoint).where(
        ModelCheckpoint.training_session_id == checkpoint.training_session_id,
        ModelCheckpoint.checkpoint_type == checkpoint.checkpoint_type,
        ModelCheckpoint.is_best,
    )
    session.execute(best.values(is_best=False), execution_options={"synchronize_session": "fetch"})


def mark_best(session: Session, checkpoint: ModelCheckpoint) -> None:
    """Make a published checkpoint the best of its run and type, and no other."""
    run = select(TrainingSession.id).where(TrainingSession.id == checkpoint.training_session_id)
    session.execute(run.with_for_update(key_share=True))
    clear_best(session, checkpoint)
    checkpoint.is_best = True
    session.flush()
