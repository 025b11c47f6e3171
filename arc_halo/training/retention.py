"""Which checkpoints stay when a run has many, and how one goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import delete, select, text

from arc_halo.errors import CheckpointError, CheckpointNotFound
from arc_halo.schema import ModelCheckpoint, TrainingSession

if TYPE_CHECKING:
    import uuid

    from sqlalchemy.orm import Session

_PUBLISHED: Final = text("""
SELECT c.id, c.checkpoint_type, c.step, c.is_pinned, c.is_best, l.attempt_id IS NOT NULL AS is_on_line
  FROM arc_halo.model_checkpoints AS c
  LEFT JOIN arc_halo.attempt_line(:run) AS l
         ON l.attempt_id = c.attempt_id AND c.step > l.after_step AND c.step <= l.through_step
 WHERE c.training_session_id = :run AND c.status = 'published'
 ORDER BY c.step DESC, c.published_at DESC
""")


def apply_retention(
    session: Session,
    training_session: TrainingSession | uuid.UUID,
    *,
    keep_last: int | None = None,
    keep_every: int | None = None,
    keep_best: bool = True,
) -> list[uuid.UUID]:
    """Delete the checkpoints of a run that no rule keeps; what they alone used waits for ``prune``.

    A pinned one stays, and of each type the last on the line of the newest attempt: the run can always be resumed.

    Parameters
    ----------
    keep_last
        Keep as many of each type, the last ones on that line.
    keep_every
        Keep those whose step is a multiple of this, of all attempts.
    keep_best
        Keep the best of each type.

    Returns
    -------
    list of UUID
        Of those that were deleted; none if neither ``keep_last`` nor ``keep_every`` is given.

    Raises
    ------
    CheckpointError
        A number is not positive.
    """
    for name, number in (("keep_last", keep_last), ("keep_every", keep_every)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise CheckpointError(f"{name} {number!r} keeps nothing; give a positive int, or None for no such rule")
    if keep_last is None and keep_every is None:
        return []
    session.flush()
    run_id = training_session.id if isinstance(training_session, TrainingSession) else training_session
    # Whoever marks another as the best meanwhile waits, or was first.
    session.execute(select(TrainingSession.id).where(TrainingSession.id == run_id).with_for_update(key_share=True))
    seen: dict[str, int] = {}
    gone = []
    for checkpoint_id, checkpoint_type, step, is_pinned, is_best, is_on_line in session.execute(
        _PUBLISHED, {"run": run_id}
    ):
        rank = seen.get(checkpoint_type, 0)
        seen[checkpoint_type] = rank + is_on_line
        is_last = is_on_line and rank < (keep_last or 1)
        is_kept_step = keep_every is not None and step % keep_every == 0
        if not (is_pinned or is_last or is_kept_step or (is_best and keep_best)):
            gone.append(checkpoint_id)
    statement = delete(ModelCheckpoint).where(ModelCheckpoint.id.in_(gone))
    session.execute(statement, execution_options={"synchronize_session": "fetch"})
    return gone


def delete_checkpoint(session: Session, checkpoint: ModelCheckpoint | uuid.UUID) -> None:
    """Delete a checkpoint, published or not; what it alone used waits for ``prune``.

    Raises
    ------
    CheckpointNotFound
        There is no such checkpoint.
    """
    session.flush()
    checkpoint_id = checkpoint.id if isinstance(checkpoint, ModelCheckpoint) else checkpoint
    statement = delete(ModelCheckpoint).where(ModelCheckpoint.id == checkpoint_id).returning(ModelCheckpoint.id)
    if not session.execute(statement, execution_options={"synchronize_session": "fetch"}).all():
        raise CheckpointNotFound(f"checkpoint {checkpoint_id} is not there; it may have been deleted before")
