"""Checkpoints out of the database: every row and every byte checked, each array filled where it stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from arc_halo.errors import CheckpointError, DigestMismatch, TensorNotFound
from arc_halo.training.assembling import assemble
from arc_halo.training.checkpoint import LoadedCheckpoint
from arc_halo.training.contents import OWN_TREES, SHARED_TREES, arrays_below, optimizer_values
from arc_halo.training.finding import find_checkpoint
from arc_halo.training.manifest import json_columns, manifest_digest, read_entries
from arc_halo.training.optimizer import put_optimizer_together
from arc_halo.training.trees import decode_tree

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    import numpy as np
    from sqlalchemy.orm import Session

    from arc_halo.schema import ModelCheckpoint
    from arc_halo.store import Progress
    from arc_halo.training.checkpoint import Component, Tree
    from arc_halo.training.contents import Key
    from arc_halo.training.finding import CheckpointReference
    from arc_halo.training.manifest import Entry

COMPONENTS: Final = ("weights", "optimizer", "gradients", "rng", "other")


def load_checkpoint(
    session: Session,
    checkpoint: CheckpointReference,
    *,
    components: Collection[Component] | None = None,
    names: Iterable[str] | None = None,
    rank: int = 0,
    progress: Progress | None = None,
) -> LoadedCheckpoint:
    """Load a state as it was saved, bit for bit.

    Parameters
    ----------
    checkpoint
        One, or its id; a run, for the newest on the line of its newest attempt; a model or its reference, for the one
        that was published last.
    components
        Of ``weights``, ``optimizer``, ``gradients``, ``rng``, and ``other`` for scheduler, scaler, data position and
        extra; all by default.
    names
        Of weights, gradients and parameters of the optimizer; all by default.
    rank
        Whose random state and data position, where several have written it; None where that rank has none.
    progress
        Called with ``load``, bytes done and bytes in all.

    Returns
    -------
    LoadedCheckpoint
        Its arrays are whole, whatever ranks held parts of them, and the caller's to change.

    Raises
    ------
    CheckpointNotFound, ModelNotFound
        There is none.
    TensorNotFound
        It has nothing of one of the names.
    CorruptionError
        Rows or stored bytes are not those that were written.
    """
    found = find_checkpoint(session, checkpoint)
    entries = checked_entries(session, found)
    chosen = _chosen_components(components)
    asked = None if names is None else set(names)
    wanted = _wanted(found, entries, chosen, asked)
    arrays = assemble(session, wanted, progress)
    loaded = LoadedCheckpoint(
        weights=arrays_below(arrays, "weights"),
        checkpoint_id=found.id,
        training_session_id=found.training_session_id,
        attempt_id=found.attempt_id,
        step=found.step,
        epoch=found.epoch,
        checkpoint_type=found.checkpoint_type,  # type: ignore[arg-type]  # a CHECK holds it to the set
        is_best=found.is_best,
        metrics={name: float(value) for name, value in found.metrics.items()},
        world_size=found.world_size,
        manifest_digest=found.manifest_digest or b"",
    )
    if any(entry.key.component == "gradients" for entry in entries) and "gradients" in chosen:
        loaded.gradients = arrays_below(arrays, "gradients")
    _restore_trees(loaded, found, chosen, arrays, rank)
    if found.optimizer_groups is not None and "optimizer" in chosen:
        groups = decode_tree(found.optimizer_groups, arrays_below(arrays, "other"))
        numbers = {
            (entry.key.name, entry.key.state): entry.number
            for entry in entries
            if entry.number is not None and (asked is None or entry.key.name in asked)
        }
        loaded.optimizer = put_optimizer_together(groups, optimizer_values(arrays, numbers))
    return loaded


def checked_entries(session: Session, checkpoint: ModelCheckpoint) -> list[Entry]:
    """What a checkpoint is made of, compared with its digest.

    Raises
    ------
    DigestMismatch
        A row was changed, added or removed since it was published.
    """
    entries = read_entries(session, checkpoint.id)
    if manifest_digest(entries, json_columns(checkpoint)) != checkpoint.manifest_digest:
        raise DigestMismatch(
            f"checkpoint {checkpoint.id} of step {checkpoint.step}: its rows are not those that were published; "
            "restore them from a copy, or load another checkpoint"
        )
    return entries


def _chosen_components(components: Collection[str] | None) -> set[str]:
    chosen = set(COMPONENTS if components is None else components)
    if unknown := chosen - set(COMPONENTS):
        raise CheckpointError(f"no component {min(unknown)!r}; there are {', '.join(COMPONENTS)}")
    return chosen


def _wanted(checkpoint: ModelCheckpoint, entries: list[Entry], chosen: set[str], asked: set[str] | None) -> list[Entry]:
    named = ("weights", "gradients", "optimizer")
    if asked is not None and (unknown := asked - {entry.key.name for entry in entries if entry.key.component in named}):
        raise TensorNotFound(f"checkpoint {checkpoint.id} of step {checkpoint.step} has no tensor {min(unknown)!r}")
    return [
        entry
        for entry in entries
        if entry.number is None
        and (entry.key.component in chosen or (entry.key.component == "other" and "optimizer" in chosen))
        and (asked is None or entry.key.component not in named or entry.key.name in asked)
    ]


def _restore_trees(
    loaded: LoadedCheckpoint,
    checkpoint: ModelCheckpoint,
    chosen: set[str],
    arrays: Mapping[Key, np.ndarray],
    rank: int,
) -> None:
    others = arrays_below(arrays, "other")
    for attribute, column in SHARED_TREES.items():
        if attribute != "optimizer" and "other" in chosen:
            setattr(loaded, attribute, _decoded(getattr(checkpoint, column), others))
    for attribute, column in OWN_TREES.items():
        component = "rng" if attribute == "rng" else "other"
        if component in chosen:
            by_rank: dict[str, Any] = getattr(checkpoint, column) or {}
            setattr(loaded, attribute, _decoded(by_rank.get(str(rank)), arrays_below(arrays, component)))


def _decoded(encoded: Any, arrays: Mapping[str, np.ndarray]) -> Tree:
    return None if encoded is None else decode_tree(encoded, arrays)
