"""Checkpoints into the database: tensors first, then the rows that make them one."""

from __future__ import annotations

import math
import operator
import uuid
from numbers import Real
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sqlalchemy import func, insert, select, update

from arc_halo.codecs.policy import check_policy
from arc_halo.errors import CheckpointError, CheckpointExists, ConstraintViolation, TransactionConflict
from arc_halo.schema import ModelCheckpoint, ModelWeight, TrainingSession
from arc_halo.schema.columns import uuid7
from arc_halo.store import put_tensors
from arc_halo.training.contents import Key, take_apart
from arc_halo.training.finding import checkpoint_on_line, find_attempt, find_checkpoint
from arc_halo.training.manifest import insert_contents, json_columns, manifest_digest, read_entries
from arc_halo.training.publishing import clear_best, hold_attempt, lost, note_gradients

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.codecs.policy import PolicyName
    from arc_halo.schema import TrainingAttempt
    from arc_halo.store import Progress, TensorSource
    from arc_halo.store.put import ChooseBases
    from arc_halo.training.checkpoint import CheckpointState, CheckpointType

CheckpointBase: TypeAlias = ModelCheckpoint | uuid.UUID | str | None
"""A checkpoint or its id, ``"auto"``, or None."""
AUTO: Final = "auto"
ATTEMPTS: Final = 3
# Means over some ten steps, like gradients, have forgotten what they were: as differences they are no smaller (0.86 of
# their bytes both ways, where exp_avg_sq becomes 0.65 of 0.86), and each base would be read for nothing.
_FORGETFUL: Final = ("exp_avg", "momentum_buffer")
_MAX_STEP: Final = (1 << 63) - 1
ONE_PER_STEP: Final = ("ix_model_checkpoints_pending", "ix_model_checkpoints_published")
TYPES: Final[tuple[CheckpointType, ...]] = ("full", "weights", "optimizer")


def save_checkpoint(
    session: Session,
    attempt: TrainingAttempt | uuid.UUID,
    state: CheckpointState,
    step: int,
    *,
    epoch: float | None = None,
    checkpoint_type: CheckpointType = "full",
    metrics: Mapping[str, Any] | None = None,
    is_best: bool | None = None,
    compression: PolicyName = "balanced",
    base: CheckpointBase = AUTO,
    progress: Progress | None = None,
    before_publish: Callable[[Session], None] | None = None,
) -> ModelCheckpoint:
    """Save a state; the checkpoint exists when the caller commits, all of it or nothing.

    Content that is there already is not stored again: frozen weights cost a row each.

    Parameters
    ----------
    attempt
        One that runs.
    step
        The last whose update is in the state: training goes on with the next.
    checkpoint_type
        ``full`` saves all that the state holds; ``weights`` the weights, and extra, alone; ``optimizer`` what training
        needs beside the weights.
    metrics
        Last values at this step, numbers all; NaN and infinities as texts that PostgreSQL reads as such.
    is_best
        Make this the best of its run and type, which another may have been.
    compression
        ``none``, ``fast``, ``balanced`` or ``dense``.
    base
        The checkpoint that tensors are stored as deltas of where that is smaller. By default the one before it on the
        line, and for weights that it does not have those of the run's model; None for no deltas.
    progress
        Called with a phase, bytes done and bytes in all.
    before_publish
        Called when tensors are stored and no lock on the attempt is held yet, again where that is done again: for what
        shall become visible together with the checkpoint.

    Raises
    ------
    CheckpointExists
        The attempt has one of that step and type.
    AttemptLost
        The attempt was taken over, has ended or was deleted: nothing is stored.
    CheckpointError
        The state holds something that cannot be stored, or step or epoch are none.
    CheckpointNotFound
        There is no such base.
    TransactionConflict
        Tensors were pruned as fast as they were uploaded.
    """
    row = describe_checkpoint(step, epoch, checkpoint_type, metrics, compression)
    found = find_attempt(session, attempt)
    if found.status != "running":
        raise lost(found)
    refuse_taken(session, found, row)
    contents = take_apart(state, checkpoint_type)
    if not (contents.blocks or contents.shared or contents.own):
        raise CheckpointError(f"the state of step {step} holds nothing for a {checkpoint_type} checkpoint")
    row |= contents.shared | {column: {"0": tree} for column, tree in contents.own.items()}
    row["nbytes"] = contents.nbytes
    weights = ModelWeights(session, found)
    choose = base_chooser(session, found, step, base, weights)
    for _attempt in range(ATTEMPTS):
        ids = put_tensors(session, contents.sources, compression=compression, choose_bases=choose, progress=progress)
        if before_publish is not None:
            before_publish(session)
        try:
            with session.begin_nested():
                hold_attempt(session, found, for_best=bool(is_best))
                checkpoint = _insert(session, found, row)
                insert_contents(session, checkpoint, contents, ids, weights.ids)
                return finish(session, checkpoint, is_best=bool(is_best))
        except ConstraintViolation as error:
            if error.constraint in ONE_PER_STEP:
                raise taken(found, row) from error
            if not error.is_dangling:
                raise  # else a tensor was pruned between upload and publication: upload it again
    raise TransactionConflict(f"tensors of step {step} were pruned before it was published; prune with a longer grace")


def describe_checkpoint(
    step: int,
    epoch: float | None,
    checkpoint_type: str,
    metrics: Mapping[str, Any] | None,
    compression: PolicyName,
) -> dict[str, Any]:
    """The columns of a checkpoint's row that the caller gives.

    Raises
    ------
    CheckpointError
        One of them cannot be.
    ConfigurationError
        There is no such policy.
    """
    check_policy(compression)
    try:
        number = -1 if isinstance(step, bool) else operator.index(step)
    except TypeError:
        number = -1
    if not 0 <= number <= _MAX_STEP:
        raise CheckpointError(f"step {step!r} is no count of updates; give an int from 0 to 2**63 - 1")
    if epoch is not None and not 0 <= epoch < math.inf:
        raise CheckpointError(f"epoch {epoch!r} is none; give a number from 0, or None")
    if checkpoint_type not in TYPES:
        raise CheckpointError(f"no checkpoint type {checkpoint_type!r}; there are {', '.join(TYPES)}")
    return {
        "step": number,
        "epoch": None if epoch is None else float(epoch),
        "checkpoint_type": checkpoint_type,
        "metrics": describe_metrics(metrics),
        "compression": compression,
    }


def describe_metrics(metrics: Mapping[str, Any] | None) -> dict[str, float | str]:
    """Numbers as a checkpoint's row keeps them; what JSON has no number for as text that PostgreSQL reads as one."""
    return {name: _metric(name, value) for name, value in (metrics or {}).items()}


def _metric(name: str, value: Any) -> float | str:
    if not isinstance(name, str) or not name.isprintable():
        raise CheckpointError(f"metric {name!r:.80} has no printable name; give one")
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        kind = "" if isinstance(value, Real) else f", but a {type(value).__name__}"
        raise CheckpointError(f"metric {name!r} is no number{kind}; leave it out") from error
    return number if math.isfinite(number) else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(number, "NaN")


def refuse_taken(session: Session, attempt: TrainingAttempt, row: Mapping[str, Any]) -> None:
    """Raise `CheckpointExists` before any work is done, where it is certain already."""
    same = select(ModelCheckpoint.id).where(
        ModelCheckpoint.attempt_id == attempt.id,
        ModelCheckpoint.step == row["step"],
        ModelCheckpoint.checkpoint_type == row["checkpoint_type"],
        ModelCheckpoint.status == "published",
    )
    if session.scalar(same) is not None:
        raise taken(attempt, row)


def taken(attempt: TrainingAttempt, row: Mapping[str, Any]) -> CheckpointExists:
    """The error for a step that somebody has saved."""
    return CheckpointExists(
        f"attempt {attempt.attempt_number} of training run {attempt.training_session_id} has a {row['checkpoint_type']}"
        f" checkpoint of step {row['step']}; load that, or save a later step"
    )


class ModelWeights:
    """The weights of the model that is trained: their ids by name, and their tensors by the names of sources."""

    def __init__(self, session: Session, attempt: TrainingAttempt) -> None:
        statement = select(ModelWeight.name, ModelWeight.id, ModelWeight.tensor_id)
        statement = statement.join(TrainingSession, TrainingSession.model_id == ModelWeight.model_id)
        rows = session.execute(statement.where(TrainingSession.id == attempt.training_session_id)).all()
        self.ids = {name: weight_id for name, weight_id, _ in rows}
        self.tensors = {str(Key("weights", name)): tensor_id for name, _, tensor_id in rows}


def base_chooser(
    session: Session, attempt: TrainingAttempt, step: int, base: CheckpointBase, weights: ModelWeights
) -> ChooseBases:
    """How to find the tensors that those of a checkpoint may be deltas of."""
    if base is None:
        return lambda _: {}
    if base == AUTO:
        named = None
    elif isinstance(base, str):
        raise CheckpointError(f"base {base!r} is none; give a checkpoint, its id, 'auto' or None")
    else:
        named = find_checkpoint(session, base)

    def choose(sources: Sequence[TensorSource]) -> Mapping[str, uuid.UUID]:
        known = dict(weights.tensors) if base == AUTO else {}
        for before in _before(session, attempt, step) if named is None else [named]:
            entries = read_entries(session, before.id)
            known |= {entry.where: entry.tensor_id for entry in entries if entry.tensor_id and _is_steady(entry.key)}
        return {source.name: known[source.name] for source in sources if source.name in known}

    return choose


def _before(session: Session, attempt: TrainingAttempt, step: int) -> list[ModelCheckpoint]:
    """The last checkpoint of each type on the line, the newest behind: one of weights has no states to lean on."""
    found = [checkpoint_on_line(session, attempt.id, step, each) for each in TYPES]
    return sorted((each for each in found if each is not None), key=lambda each: each.step)


def _is_steady(key: Key) -> bool:
    """Whether an array is near to what it was a while ago."""
    return key.component == "weights" or (key.component == "optimizer" and key.state not in _FORGETFUL)


def _insert(session: Session, attempt: TrainingAttempt, row: Mapping[str, Any]) -> uuid.UUID:
    """A pending checkpoint: rows that refer to it come next, and its digest is over them."""
    checkpoint_id = uuid7()
    ids = {"id": checkpoint_id, "training_session_id": attempt.training_session_id, "attempt_id": attempt.id}
    session.execute(insert(ModelCheckpoint).values(**ids, **row, status="pending"))
    return checkpoint_id


def finish(session: Session, checkpoint_id: uuid.UUID, *, is_best: bool) -> ModelCheckpoint:
    """Seal a checkpoint whose rows are there by the digest over them: from the commit on it exists."""
    checkpoint = session.get_one(ModelCheckpoint, checkpoint_id, populate_existing=True)
    if is_best:
        clear_best(session, checkpoint)
    entries = read_entries(session, checkpoint_id)
    if any(entry.key.component == "gradients" for entry in entries):
        note_gradients(session, checkpoint)
    digest = manifest_digest(entries, json_columns(checkpoint))
    # Not now(), which is when the transaction began: of two, the one published last is the latest.
    values = {"status": "published", "published_at": func.clock_timestamp(), "manifest_digest": digest}
    statement = update(ModelCheckpoint).where(ModelCheckpoint.id == checkpoint_id)
    session.execute(statement.values(**values, is_best=is_best), execution_options={"synchronize_session": False})
    session.refresh(checkpoint)
    return checkpoint
