"""What the beginning and the end of a run mean for the status of its model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import exists, select, update

from arc_halo.schema import Model, ModelCheckpoint, TrainingAttempt, TrainingSession

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

MODEL_STATUS: Final = "model_status"
"""Where an attempt's provenance keeps the status that its model had before it was trained."""
# A model that is deployed or archived stays so while it is trained: it is served, or kept, as it is.
_TRAINED: Final = ("initialized", "training", "trained")


def begin_training(session: Session, model: Model) -> str:
    """Mark a model as being trained; returns the status to go back to where nothing comes of it."""
    status = session.scalars(select(Model.status).where(Model.id == model.id).with_for_update(key_share=True)).one()
    if status == "training":  # by another run, or by one that was killed
        kept = select(TrainingAttempt.provenance[MODEL_STATUS].astext).join(TrainingAttempt.training_session)
        newest = kept.where(TrainingSession.model_id == model.id).order_by(TrainingAttempt.started_at.desc())
        status = session.scalar(newest.limit(1)) or "initialized"
    _set(session, model.id, "training")
    return status


def end_training(session: Session, run: TrainingSession, attempt: TrainingAttempt) -> None:
    """Mark a model as trained, as being trained where a checkpoint waits to go on from, or as what it was before."""
    if run.status == "completed":
        _set(session, run.model_id, "trained")
        return
    others = select(TrainingSession.id).where(
        TrainingSession.model_id == run.model_id, TrainingSession.id != run.id, TrainingSession.status == "running"
    )
    waiting = select(ModelCheckpoint.id).where(
        ModelCheckpoint.training_session_id == run.id, ModelCheckpoint.status == "published"
    )
    if not session.scalar(select(exists(others) | exists(waiting))):
        _set(session, run.model_id, attempt.provenance.get(MODEL_STATUS, "initialized"))


def _set(session: Session, model_id: object, status: str) -> None:
    changed = update(Model).where(Model.id == model_id, Model.status.in_(_TRAINED), Model.status != status)
    session.execute(changed.values(status=status))
