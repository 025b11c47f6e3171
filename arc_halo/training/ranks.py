"""Checkpoints that several ranks write: each its part in a transaction of its own, and one publication of all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import delete, func, insert, null, select, text, update
from sqlalchemy.dialects import postgresql

from arc_halo.errors import (
    CheckpointError,
    CheckpointExists,
    CheckpointNotFound,
    ConstraintViolation,
    RanksMissing,
    TransactionConflict,
)
from arc_halo.schema import CheckpointRank, ModelCheckpoint, TrainingAttempt, TrainingRank
from arc_halo.schema.columns import uuid7
from arc_halo.store import put_tensors
from arc_halo.training.assembling import find_redundant
from arc_halo.training.contents import MAX_RANKS, OWN_TREES, take_apart
from arc_halo.training.finding import find_attempt
from arc_halo.training.manifest import delete_entries, insert_shared_contents, read_entries
from arc_halo.training.optimizer import merge_groups
from arc_halo.training.publishing import hold_attempt, lost
from arc_halo.training.saving import (
    ATTEMPTS,
    AUTO,
    ModelWeights,
    base_chooser,
    describe_checkpoint,
    describe_metrics,
    finish,
    refuse_taken,
)

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.codecs.policy import PolicyName
    from arc_halo.store import Progress
    from arc_halo.training.checkpoint import CheckpointState, CheckpointType
    from arc_halo.training.contents import Contents
    from arc_halo.training.saving import CheckpointBase

GROUPS = "optimizer_groups"


def begin_checkpoint(
    session: Session,
    attempt: TrainingAttempt | uuid.UUID,
    step: int,
    world_size: int,
    *,
    epoch: float | None = None,
    checkpoint_type: CheckpointType = "full",
    compression: PolicyName = "balanced",
) -> ModelCheckpoint:
    """The checkpoint that all ranks of an attempt write at a step; whichever comes first makes it.

    It is pending, and nobody finds it to load, until `publish_checkpoint`. Commit before `write_rank`: others wait.

    Parameters
    ----------
    world_size
        How many ranks will write, the same for all.

    Raises
    ------
    CheckpointExists
        The attempt has one of that step and type.
    AttemptLost
        The attempt was taken over, has ended or was deleted.
    CheckpointError
        Step, epoch or world size is none, or another rank counts other ranks.
    """
    row = describe_checkpoint(step, epoch, checkpoint_type, None, compression)
    if not 1 <= world_size <= MAX_RANKS:
        raise CheckpointError(f"{world_size} ranks cannot write a checkpoint; there may be 1 to {MAX_RANKS:,}")
    found = find_attempt(session, attempt)
    if found.status != "running":
        raise lost(found)
    hold_attempt(session, found)
    refuse_taken(session, found, row)
    ids = {"id": uuid7(), "training_session_id": found.training_session_id, "attempt_id": found.id}
    made = postgresql.insert(ModelCheckpoint).values(**ids, **row, world_size=world_size, status="pending")
    key = ["attempt_id", "step", "checkpoint_type"]
    session.execute(made.on_conflict_do_nothing(index_elements=key, index_where=text("status = 'pending'")))
    pending = select(ModelCheckpoint).where(
        ModelCheckpoint.attempt_id == found.id,
        ModelCheckpoint.step == step,
        ModelCheckpoint.checkpoint_type == checkpoint_type,
        ModelCheckpoint.status == "pending",
    )
    checkpoint = session.scalars(pending, execution_options={"populate_existing": True}).one()
    if checkpoint.world_size != world_size:
        raise CheckpointError(
            f"step {step} is being written by {checkpoint.world_size} ranks, not {world_size}; give all the same number"
        )
    return checkpoint


def write_rank(
    session: Session,
    checkpoint: ModelCheckpoint | uuid.UUID,
    rank: int,
    state: CheckpointState,
    *,
    base: CheckpointBase = AUTO,
    progress: Progress | None = None,
) -> CheckpointRank:
    """Bring what one rank holds to a pending checkpoint.

    Parameters
    ----------
    state
        Arrays that the rank holds a part of as `Part` or several; whole ones may be brought by one rank or by several
        that hold the same. Scheduler, scaler and extra are those of rank 0, random state and data position each rank's.

    Raises
    ------
    CheckpointExists
        The rank has written, or the checkpoint is published.
    CheckpointNotFound
        The checkpoint was discarded.
    AttemptLost
        The attempt was taken over, has ended or was deleted.
    CheckpointError
        The state holds something that cannot be stored, or another rank has brought something else for the same.
    TransactionConflict
        Tensors were pruned as fast as they were uploaded.
    """
    pending = find_pending(session, checkpoint)
    if not 0 <= rank < pending.world_size:
        raise CheckpointError(f"rank {rank} is none of {pending.world_size}; count from 0")
    attempt = find_attempt(session, pending.attempt_id)
    contents = take_apart(state, pending.checkpoint_type, rank)  # type: ignore[arg-type]  # a CHECK holds it to the set
    weights = ModelWeights(session, attempt)
    choose = base_chooser(session, attempt, pending.step, base, weights)
    compression: Any = pending.compression
    for _attempt in range(ATTEMPTS):
        ids = put_tensors(session, contents.sources, compression=compression, choose_bases=choose, progress=progress)
        try:
            with session.begin_nested():
                hold_attempt(session, attempt)
                # The weakest lock: ranks do not wait for each other, and publication waits for all of them.
                find_pending(session, pending.id, "with others")
                written = _insert_rank(session, pending.id, rank, contents)
                insert_shared_contents(session, pending.id, contents, ids, weights.ids)
                return written
        except ConstraintViolation as error:
            if error.constraint == "pk_checkpoint_ranks":
                raise CheckpointExists(
                    f"rank {rank} has written to checkpoint {pending.id} of step {pending.step}; a rank writes once"
                ) from error
            if not error.is_dangling:
                raise  # else a tensor was pruned between upload and publication: upload it again
    raise TransactionConflict(f"tensors of rank {rank} were pruned before they had a row; prune with a longer grace")


def _insert_rank(session: Session, checkpoint_id: uuid.UUID, rank: int, contents: Contents) -> CheckpointRank:
    """What is not in tensors: of this rank in a row of its own, of all in the checkpoint's."""
    shared = dict(contents.shared)
    row = contents.own | {GROUPS: shared.pop(GROUPS, None), "nbytes": contents.nbytes}
    session.execute(insert(CheckpointRank).values(checkpoint_id=checkpoint_id, rank=rank, **row))
    if shared:
        statement = update(ModelCheckpoint).where(ModelCheckpoint.id == checkpoint_id).values(**shared)
        session.execute(statement, execution_options={"synchronize_session": False})
    return session.get_one(CheckpointRank, (checkpoint_id, rank))


def publish_checkpoint(
    session: Session,
    checkpoint: ModelCheckpoint | uuid.UUID,
    *,
    metrics: Mapping[str, Any] | None = None,
    is_best: bool | None = None,
) -> ModelCheckpoint:
    """Make a checkpoint of what all its ranks have written; it exists when the caller commits.

    Raises
    ------
    RanksMissing
        A rank has not written, or parts of an array are missing: the checkpoint stays pending.
    CheckpointError
        Parts overlap, are of different arrays, or have different values.
    CheckpointExists
        It is published already.
    CheckpointNotFound
        It was discarded.
    AttemptLost
        The attempt was taken over, has ended or was deleted.
    """
    described = describe_metrics(metrics)
    pending = find_pending(session, checkpoint)
    hold_attempt(session, find_attempt(session, pending.attempt_id), for_best=bool(is_best))
    pending = find_pending(session, pending.id, "alone")
    statement = select(CheckpointRank).where(CheckpointRank.checkpoint_id == pending.id).order_by(CheckpointRank.rank)
    ranks = session.scalars(statement, execution_options={"populate_existing": True}).all()
    if missing := sorted(set(range(pending.world_size)) - {each.rank for each in ranks}):
        raise RanksMissing(_explain_missing(session, pending, missing))
    entries = read_entries(session, pending.id)
    redundant = find_redundant(entries)
    delete_entries(session, pending.id, redundant)
    pending.nbytes = sum(entry.nbytes for entry in entries) - sum(entry.nbytes for entry in redundant)
    pending.metrics = described
    _take_states_over(session, pending, ranks)
    return finish(session, pending.id, is_best=bool(is_best))


def _take_states_over(session: Session, checkpoint: ModelCheckpoint, ranks: Sequence[CheckpointRank]) -> None:
    """Put what each rank has said for itself into the checkpoint's row, in the order of ranks."""
    for column in OWN_TREES.values():
        states = {str(each.rank): getattr(each, column) for each in ranks if getattr(each, column) is not None}
        setattr(checkpoint, column, states or None)
    groups = [each.optimizer_groups for each in ranks if each.optimizer_groups is not None]
    checkpoint.optimizer_groups = merge_groups(groups) if groups else None
    session.flush()
    of_checkpoint = update(CheckpointRank).where(CheckpointRank.checkpoint_id == checkpoint.id)
    taken_over = dict.fromkeys((*OWN_TREES.values(), GROUPS), null())
    session.execute(of_checkpoint.values(taken_over), execution_options={"synchronize_session": False})
    for each in ranks:
        session.expire(each)


def discard_pending(session: Session, attempt: TrainingAttempt | uuid.UUID, *, step: int | None = None) -> int:
    """Delete what an attempt has not published, at one step or at all; returns how many checkpoints that were."""
    session.flush()
    attempt_id = attempt.id if isinstance(attempt, TrainingAttempt) else attempt
    pending = delete(ModelCheckpoint).where(
        ModelCheckpoint.attempt_id == attempt_id, ModelCheckpoint.status == "pending"
    )
    if step is not None:
        pending = pending.where(ModelCheckpoint.step == step)
    deleted = session.execute(pending.returning(ModelCheckpoint.id), execution_options={"synchronize_session": "fetch"})
    return len(deleted.all())


def find_pending(
    session: Session, checkpoint: ModelCheckpoint | uuid.UUID, lock: Literal["with others", "alone"] | None = None
) -> ModelCheckpoint:
    """The checkpoint as the database has it now, locked if that is asked for."""
    session.flush()
    checkpoint_id = checkpoint.id if isinstance(checkpoint, ModelCheckpoint) else checkpoint
    statement = select(ModelCheckpoint).where(ModelCheckpoint.id == checkpoint_id)
    if lock is not None:
        is_shared = lock == "with others"
        statement = statement.with_for_update(read=is_shared, key_share=is_shared)
    found = session.scalars(statement, execution_options={"populate_existing": True}).one_or_none()
    if found is None:
        raise CheckpointNotFound(
            f"checkpoint {checkpoint_id} is not there any more: it was discarded when its attempt was taken over; "
            "resume the run for a new attempt"
        )
    if found.status != "pending":
        raise CheckpointExists(f"checkpoint {checkpoint_id} of step {found.step} is {found.status}; begin a later one")
    return found


def _explain_missing(session: Session, checkpoint: ModelCheckpoint, missing: Sequence[int]) -> str:
    """Which ranks have not written, and when they were last heard of."""
    silent = func.extract("epoch", func.clock_timestamp() - TrainingRank.heartbeat_at)
    known = select(TrainingRank.rank, silent).where(
        TrainingRank.attempt_id == checkpoint.attempt_id, TrainingRank.rank.in_(missing[:10])
    )
    heard = {rank: float(seconds) for rank, seconds in session.execute(known)}
    shown = [f"{rank} (silent for {heard[rank]:.0f} s)" if rank in heard else str(rank) for rank in missing[:10]]
    more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""  # noqa: PLR2004  one line's worth
    return (
        f"checkpoint of step {checkpoint.step}: of {checkpoint.world_size} ranks {', '.join(shown)}{more} have not "
        "written; it stays pending until they have"
    )
