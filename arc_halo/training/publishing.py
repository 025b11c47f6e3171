"""The moment from which a checkpoint exists: what must hold, and what follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import select, text, update

from arc_halo.errors import AttemptLost
from arc_halo.schema import ModelCheckpoint, TrainingAttempt, TrainingSession

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

# In one order, so that runs of one model do not wait for each other.
_NOTE_GRADIENTS: Final = text("""
WITH brought AS MATERIALIZED (
    SELECT w.id, c.tensor_id
      FROM arc_halo.checkpoint_tensors AS c
      JOIN arc_halo.model_weights AS w ON w.id = c.weight_id
     WHERE c.checkpoint_id = :checkpoint AND c.component = 'gradients' AND c.shard_offsets IS NULL
       AND w.gradient_tensor_id IS DISTINCT FROM c.tensor_id
     ORDER BY w.id FOR NO KEY UPDATE OF w)
UPDATE arc_halo.model_weights AS w SET gradient_tensor_id = b.tensor_id FROM brought AS b WHERE w.id = b.id
""")


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


def note_gradients(session: Session, checkpoint: ModelCheckpoint) -> None:
    """Let weights of the run's model refer to the gradients of a checkpoint, where names agree and none is in parts."""
    session.execute(_NOTE_GRADIENTS, {"checkpoint": checkpoint.id})
