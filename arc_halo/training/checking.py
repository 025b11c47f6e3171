"""Checkpoints whose rows were changed since they were published."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from arc_halo.errors import DigestMismatch
from arc_halo.schema import ModelCheckpoint
from arc_halo.training.loading import checked_entries

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


def check_checkpoints(session: Session) -> tuple[int, list[dict[str, Any]]]:
    """Compare the rows of all published checkpoints with their digests; returns their number, and what is wrong.

    Bytes of tensors are not read: `verify_database` does that, however many checkpoints share them.
    """
    published = select(ModelCheckpoint.id).where(ModelCheckpoint.status == "published").order_by(ModelCheckpoint.id)
    ids = session.scalars(published).all()
    faults = []
    for checkpoint_id in ids:
        checkpoint = session.get(ModelCheckpoint, checkpoint_id)
        if checkpoint is None:
            continue  # deleted in the meantime
        try:
            checked_entries(session, checkpoint)
        except DigestMismatch as error:
            faults.append({"kind": "checkpoint", "checkpoint": str(checkpoint_id), "message": str(error)})
        session.expunge(checkpoint)
    return len(ids), faults
