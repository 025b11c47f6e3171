"""Which checkpoint is meant: one by its id, the newest of a run's line, or the newest of a model."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Final, TypeAlias

from sqlalchemy import select, text

from arc_halo.errors import AttemptLost, CheckpointNotFound, ModelNotFound, RunNotFound
from arc_halo.registry import find_model
from arc_halo.schema import Model, ModelCheckpoint, TrainingAttempt, TrainingSession
from arc_halo.training.naming import find_run

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from arc_halo.training.checkpoint import CheckpointType

CheckpointReference: TypeAlias = ModelCheckpoint | TrainingSession | Model | uuid.UUID | str
"""A checkpoint or its id, also as text; a run, its id or ``model/run``, for the newest of its line; a model, its id or
its reference, for the newest of its runs."""

_ID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_ON_LINE: Final = """
SELECT c.* FROM arc_halo.training_attempts AS a
 CROSS JOIN LATERAL arc_halo.attempt_line(a.training_session_id, a.attempt_number) AS l
  JOIN arc_halo.model_checkpoints AS c
    ON c.attempt_id = l.attempt_id AND c.step > l.after_step AND c.step <= l.through_step
 WHERE a.id = :attempt AND c.status = 'published' AND c.step <= COALESCE(CAST(:step AS bigint), c.step)
   AND c.checkpoint_type = ANY(CAST(:types AS text[]))
 ORDER BY c.step DESC, c.published_at DESC LIMIT 1
"""
_ALL_TYPES: Final = ("full", "weights", "optimizer")


def latest_checkpoint(
    session: Session,
    owner: TrainingSession | Model | uuid.UUID | str,
    *,
    checkpoint_type: CheckpointType | None = None,
) -> ModelCheckpoint | None:
    """The newest published checkpoint; None if there is none.

    Parameters
    ----------
    owner
        A run, its id or ``model/run``: the last on the line of its newest attempt, so not one that was rewound past. A
        model, its id or its reference: the one that was published last in any of its runs, as
        ``get_latest_checkpoint`` says.
    checkpoint_type
        Any, by default.

    Raises
    ------
    ModelNotFound
        There is no such run or model.
    """
    session.flush()
    run = _owner(session, owner)
    if isinstance(run, Model):
        return _latest_of_model(session, run, checkpoint_type)
    newest = select(TrainingAttempt.id).where(TrainingAttempt.training_session_id == run.id)
    attempt_id = session.scalar(newest.order_by(TrainingAttempt.attempt_number.desc()).limit(1))
    return None if attempt_id is None else checkpoint_on_line(session, attempt_id, None, checkpoint_type)


def _owner(session: Session, owner: TrainingSession | Model | uuid.UUID | str) -> TrainingSession | Model:
    if isinstance(owner, TrainingSession | Model):
        return owner
    if isinstance(owner, uuid.UUID):
        return session.get(TrainingSession, owner) or find_model(session, owner)
    if not isinstance(owner, str):
        raise CheckpointNotFound(f"{owner!r:.80} is no run and no model; give one, its id, or model/run")
    try:
        return find_model(session, owner)
    except ModelNotFound as no_model:
        if "/" not in owner:
            raise
        try:
            return find_run(session, owner)
        except RunNotFound as no_run:
            raise ModelNotFound(f"{no_model}; and {no_run}") from None


def checkpoint_on_line(
    session: Session, attempt_id: uuid.UUID, step: int | None = None, checkpoint_type: CheckpointType | None = None
) -> ModelCheckpoint | None:
    """The last published checkpoint on an attempt's line that is not after a step."""
    types = list(_ALL_TYPES if checkpoint_type is None else (checkpoint_type,))
    statement = select(ModelCheckpoint).from_statement(text(_ON_LINE))
    return session.scalars(
        statement,
        {"attempt": attempt_id, "step": step, "types": types},
        execution_options={"populate_existing": True},
    ).one_or_none()


def find_checkpoint(session: Session, reference: CheckpointReference) -> ModelCheckpoint:
    """The published checkpoint of a reference, as the database has it now.

    Raises
    ------
    CheckpointNotFound
        There is none, or it was not published.
    ModelNotFound
        There is no such model.
    """
    session.flush()
    if isinstance(reference, ModelCheckpoint):
        return _published(session, reference.id)
    if isinstance(reference, str) and _ID.fullmatch(reference):
        reference = uuid.UUID(reference)
    if isinstance(reference, uuid.UUID) and session.get(ModelCheckpoint, reference) is not None:
        return _published(session, reference)
    try:
        found = latest_checkpoint(session, reference)
    except ModelNotFound:
        if isinstance(reference, uuid.UUID):
            return _published(session, reference)  # says that it is not there any more
        raise
    if found is None:
        raise CheckpointNotFound(f"{reference!r} has no published checkpoint yet; save one first")
    return found


def find_attempt(session: Session, attempt: TrainingAttempt | uuid.UUID) -> TrainingAttempt:
    """The attempt as the database has it now.

    Raises
    ------
    AttemptLost
        It was deleted.
    """
    session.flush()
    attempt_id = attempt.id if isinstance(attempt, TrainingAttempt) else attempt
    found = session.get(TrainingAttempt, attempt_id, populate_existing=True)
    if found is None:
        raise AttemptLost(f"training attempt {attempt_id} is not there any more: its run was deleted; begin a new one")
    return found


def _published(session: Session, checkpoint_id: uuid.UUID) -> ModelCheckpoint:
    found = session.get(ModelCheckpoint, checkpoint_id, populate_existing=True)
    if found is None:
        raise CheckpointNotFound(f"checkpoint {checkpoint_id} is not there any more; look for the latest of its run")
    if found.status != "published":
        raise CheckpointNotFound(
            f"checkpoint {checkpoint_id} of step {found.step} is {found.status}: not all of it was written; "
            "take one that was published"
        )
    return found


def _latest_of_model(session: Session, model: Model, checkpoint_type: CheckpointType | None) -> ModelCheckpoint | None:
    if checkpoint_type is None:
        call = text("SELECT * FROM arc_halo.get_latest_checkpoint(:model)")
        statement = select(ModelCheckpoint).from_statement(call)
        return session.scalars(
            statement, {"model": model.id}, execution_options={"populate_existing": True}
        ).one_or_none()
    found = select(ModelCheckpoint).join(TrainingSession, ModelCheckpoint.training_session_id == TrainingSession.id)
    found = found.where(
        TrainingSession.model_id == model.id,
        ModelCheckpoint.status == "published",
        ModelCheckpoint.checkpoint_type == checkpoint_type,
    )
    newest = found.order_by(ModelCheckpoint.published_at.desc(), ModelCheckpoint.id.desc()).limit(1)
    return session.scalars(newest, execution_options={"populate_existing": True}).one_or_none()
