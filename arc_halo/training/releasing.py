"""A model made of a checkpoint: the weights as they are stored, as a version of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from arc_halo.dtypes import by_name
from arc_halo.errors import CheckpointError
from arc_halo.registry import find_model
from arc_halo.registry.finetuning import StoredTensor, finetuned_model
from arc_halo.schema import ModelCheckpoint, TrainingSession
from arc_halo.store import ArraySource, put_tensors
from arc_halo.training.assembling import assemble
from arc_halo.training.finding import find_checkpoint
from arc_halo.training.loading import checked_entries

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from sqlalchemy.orm import Session

    from arc_halo.schema import Model
    from arc_halo.store import Progress
    from arc_halo.training.finding import CheckpointReference
    from arc_halo.training.manifest import Entry


def publish_as_model(
    session: Session,
    checkpoint: CheckpointReference,
    name: str | None = None,
    version: str | None = None,
    *,
    progress: Progress | None = None,
) -> Model:
    """Make a model of a checkpoint's weights, in the caller's transaction; its lineage says which run it is from.

    Nothing is copied, but for weights that ranks saved in parts, which are stored whole. Config and files are those of
    the model that was trained. So are weights that were not saved, if some of its were; those tied to one that was
    saved are that one.

    Parameters
    ----------
    checkpoint
        As in `load_checkpoint`: of a run its newest, which need not be its best.
    name
        By default that of the model that was trained: this is its next version.
    version
        Any text; by default the number after the highest there is.

    Raises
    ------
    CheckpointNotFound
        There is no such checkpoint.
    CheckpointError
        It holds no weights.
    ModelExists, InvalidName
        The version is taken, or no name.

    Examples
    --------
    >>> publish_as_model(session, find_run(session, "minilm/tune")).version  # doctest: +SKIP
    '2'
    """
    found = find_checkpoint(session, checkpoint)
    # Nobody deletes it, and its tensors, meanwhile.
    held = select(ModelCheckpoint.id).where(ModelCheckpoint.id == found.id)
    session.execute(held.with_for_update(read=True, key_share=True))
    weights = [entry for entry in checked_entries(session, found) if entry.key.component == "weights"]
    if not weights:
        raise CheckpointError(f"checkpoint {found.id} of step {found.step} holds no weights; take a full one")
    run = session.get_one(TrainingSession, found.training_session_id)
    origin = find_model(session, run.model_id)
    recipe = {
        "training_session_id": str(run.id),
        "training_session": run.name,
        "checkpoint_id": str(found.id),
        "step": found.step,
        "epoch": found.epoch,
    }
    return finetuned_model(
        session,
        origin,
        list(_tensors(session, found, weights, progress)),
        name=origin.name if name is None else name,
        version=version,
        recipe=recipe,
        progress=progress,
    )


def _tensors(
    session: Session, checkpoint: ModelCheckpoint, weights: Sequence[Entry], progress: Progress | None
) -> Iterator[StoredTensor]:
    for entry in weights:
        if entry.offsets is None:
            assert entry.tensor_id is not None
            dtype = by_name(entry.dtype or "")
            yield StoredTensor(entry.key.name, entry.tensor_id, dtype, entry.shape, entry.nbytes)
    cut = [entry for entry in weights if entry.offsets is not None]
    sources = [ArraySource(key.name, array) for key, array in assemble(session, cut, progress).items()]
    compression: Any = checkpoint.compression
    ids = put_tensors(session, sources, compression=compression, progress=progress)
    for source, tensor_id in zip(sources, ids, strict=True):
        yield StoredTensor(source.name, tensor_id, source.dtype, source.shape, source.nbytes)
