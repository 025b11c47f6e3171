"""Attempts from beginning to end: opened under the run's lock, kept alive by heartbeats, taken over when silent."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert

from arc_halo.errors import AttemptLost, RunInUse
from arc_halo.registry.naming import check_name
from arc_halo.schema import Model, ModelWeight, TrainingAttempt, TrainingRank, TrainingSession
from arc_halo.schema.columns import TENANT_ID, uuid7
from arc_halo.training.naming import find_trained
from arc_halo.training.processes import ProcessIdentity
from arc_halo.training.ranks import discard_pending
from arc_halo.training.resuming import Origin, find_origin
from arc_halo.training.statuses import MODEL_STATUS, begin_training, end_training

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection, Mapping

    from sqlalchemy.orm import Session

    from arc_halo.training.spool import Outcome

STALE_SECONDS: Final = 60.0
"""An attempt that was silent for so long may be taken over."""
_SHOWN: Final = 5
_log = logging.getLogger(__name__)
_ADJECTIVES: Final = "amber bold calm dusky early fleet gentle hazel icy keen lively mellow noble quiet rapid silver"
_NOUNS: Final = "aspen brook cedar delta ember falcon grove harbor island jasper lagoon maple otter pine reef willow"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What a run shall be; None leaves a run that is there already as it is."""

    model: Model | uuid.UUID | str
    name: str | None = None
    config: Mapping[str, Any] | None = None
    dataset: str | None = None
    dataset_digest: bytes | None = None
    seed: int | None = None
    total_steps: int | None = None
    total_epochs: float | None = None
    resume: bool | str | uuid.UUID = "auto"
    fork_step: int | None = None
    stale_after: float = STALE_SECONDS
    trainable: Collection[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Starter:
    """Who opens an attempt, and with what.

    Attributes
    ----------
    attempt_id
        What the attempt will be called.
    process
        The process that will keep it alive.
    alive
        Attempts that this process keeps already: another of its own that still counts as running was left behind.
    code_digest, environment_digest, provenance
        What is kept for reproducing it.
    """

    attempt_id: uuid.UUID
    process: ProcessIdentity
    alive: Collection[uuid.UUID] = ()
    code_digest: bytes | None = None
    environment_digest: bytes | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAttempt:
    """An attempt that is this process's to keep.

    Attributes
    ----------
    resumed_from
        The checkpoint it goes on from.
    first_step
        The first that is its own to log.
    taken_over
        The attempt that was silent, or whose process was gone.
    """

    training_session_id: uuid.UUID
    name: str
    attempt_id: uuid.UUID
    attempt_number: int
    resumed_from: uuid.UUID | None = None
    first_step: int = 0
    taken_over: uuid.UUID | None = None


def open_attempt(session: Session, request: RunRequest, starter: Starter) -> OpenAttempt:
    """Begin an attempt of a run, which is made if there is none of its name: of two that try at once, one does.

    Raises
    ------
    RunInUse
        The newest attempt is alive: its process is, as far as this machine can tell, and it was heard of by the
        database's clock within ``stale_after`` seconds.
    ModelNotFound, CheckpointNotFound
        There is no such model, or nothing to go on from as ``resume`` and ``fork_step`` ask.
    InvalidName
        The run's name could not be referred to.
    """
    model = find_trained(session, request.model, request.name)
    run = _lock_run(session, model, request)
    newest = session.scalars(
        select(TrainingAttempt)
        .where(TrainingAttempt.training_session_id == run.id)
        .order_by(TrainingAttempt.attempt_number.desc())
        .limit(1)
        .with_for_update(key_share=True),
        execution_options={"populate_existing": True},
    ).one_or_none()
    number = 1 if newest is None else newest.attempt_number + 1
    is_taken_over = newest is not None and newest.status == "running"
    if newest is not None and is_taken_over:
        _take_over(session, run, newest, stale_after=request.stale_after, starter=starter)
    origin = find_origin(session, run, request.resume, request.fork_step)
    starter.provenance[MODEL_STATUS] = begin_training(session, model)
    _note_config(run, request, starter, goes_on=origin is not None)
    _insert_attempt(session, run, number, origin, starter)
    _describe(run, request, origin)
    if request.trainable is not None:
        _set_trainable(session, model, request.trainable)
    session.flush()
    return OpenAttempt(
        training_session_id=run.id,
        name=run.name,
        attempt_id=starter.attempt_id,
        attempt_number=number,
        resumed_from=None if origin is None else origin.checkpoint_id,
        first_step=0 if origin is None else origin.step + 1,
        taken_over=newest.id if newest is not None and is_taken_over else None,
    )


def _lock_run(session: Session, model: Model, request: RunRequest) -> TrainingSession:
    """The run's row, made if need be, locked to the end of the transaction."""
    if request.name is not None:
        check_name("run", request.name)
    name = request.name
    while True:
        chosen = name or _new_name()
        added = insert(TrainingSession).values(id=uuid7(), tenant_id=TENANT_ID, model_id=model.id, name=chosen)
        is_new = session.scalar(added.on_conflict_do_nothing().returning(TrainingSession.id)) is not None
        if is_new or name is not None:
            break
    # Not FOR UPDATE: the checkpoint that another attempt is publishing refers to this row.
    wanted = select(TrainingSession).where(TrainingSession.model_id == model.id, TrainingSession.name == chosen)
    locked = session.scalars(wanted.with_for_update(key_share=True), execution_options={"populate_existing": True})
    return locked.one()


def _new_name() -> str:
    adjective, noun = secrets.choice(_ADJECTIVES.split()), secrets.choice(_NOUNS.split())
    return f"{adjective}-{noun}-{secrets.randbelow(10_000):04}"


def _take_over(
    session: Session, run: TrainingSession, newest: TrainingAttempt, *, stale_after: float, starter: Starter
) -> None:
    """End an attempt that nobody keeps any more.

    Raises
    ------
    RunInUse
        Somebody does.
    """
    silent = float(session.scalar(select(seconds_since(newest.heartbeat_at))) or 0.0)
    is_gone = _is_gone(newest, starter)
    if not is_gone and silent <= stale_after:
        raise RunInUse(
            f"run {run.name!r} is being trained: its attempt {newest.attempt_number} is process {newest.pid} on "
            f"{newest.host} and was heard of {silent:.0f} s ago; end it, wait until it has been silent for "
            f"{stale_after:g} s, or give the run another name"
        )
    reason = "its process was gone" if is_gone else f"it was silent for {silent:.0f} s"
    newest.status = "lost"
    newest.error = f"{reason}; attempt {newest.attempt_number + 1} took over"
    newest.ended_at = func.clock_timestamp()
    abandoned = update(TrainingRank).where(TrainingRank.attempt_id == newest.id, TrainingRank.status == "running")
    session.execute(abandoned.values(status="lost", ended_at=func.clock_timestamp()))
    discard_pending(session, newest)


def _is_gone(attempt: TrainingAttempt, starter: Starter) -> bool:
    kept = process_of(attempt)
    if kept is None:
        return False
    return kept.is_gone() or (kept.is_this() and attempt.id not in starter.alive)


def process_of(attempt: TrainingAttempt) -> ProcessIdentity | None:
    """The process that keeps an attempt; None where its row does not say so."""
    if attempt.host is None or attempt.boot_id is None or attempt.pid is None or attempt.process_started_at is None:
        return None
    return ProcessIdentity(attempt.host, attempt.boot_id, attempt.pid, attempt.process_started_at)


def _insert_attempt(
    session: Session, run: TrainingSession, number: int, origin: Origin | None, starter: Starter
) -> None:
    attempt = TrainingAttempt(
        id=starter.attempt_id,
        training_session_id=run.id,
        attempt_number=number,
        host=starter.process.host,
        pid=starter.process.pid,
        boot_id=starter.process.boot_id,
        process_started_at=starter.process.started_at,
        code_digest=starter.code_digest,
        environment_digest=starter.environment_digest,
        provenance=dict(starter.provenance),
    )
    if origin is not None:
        attempt.parent_number, attempt.fork_step = origin.attempt_number, origin.step
        attempt.fork_checkpoint_id = origin.checkpoint_id
    session.add(attempt)
    session.flush()


def _note_config(run: TrainingSession, request: RunRequest, starter: Starter, *, goes_on: bool) -> None:
    """Keep with the attempt what it was configured to; the run has what its newest attempt was."""
    if request.config is None:
        starter.provenance.setdefault("config", run.config)
        return
    config = starter.provenance["config"] = dict(request.config)
    changed = [key for key in run.config | config if run.config.get(key) != config.get(key)]
    if goes_on and run.config and changed:
        _log.warning(
            "run %r goes on with another config: %s; the steps before were made with what their attempts keep",
            run.name,
            "; ".join(f"{key} {run.config.get(key)!r} -> {config.get(key)!r}" for key in changed[:_SHOWN])
            + ("; ..." if len(changed) > _SHOWN else ""),
        )


def _describe(run: TrainingSession, request: RunRequest, origin: Origin | None) -> None:
    """Write what was asked of the run, and where its new attempt begins."""
    given = {
        "config": None if request.config is None else dict(request.config),
        "dataset_name": request.dataset,
        "dataset_digest": request.dataset_digest,
        "seed": request.seed,
        "total_steps": request.total_steps,
        "total_epochs": request.total_epochs,
    }
    for column, value in given.items():
        if value is not None:
            setattr(run, column, value)
    run.status = "running"
    run.current_step = 0 if origin is None else origin.step
    run.current_epoch = 0.0 if origin is None else origin.epoch or 0.0


def _set_trainable(session: Session, model: Model, names: Collection[str]) -> None:
    """Those of these names may be changed by training; adapters that are no weights of the model are not among them."""
    weights = update(ModelWeight).where(ModelWeight.model_id == model.id, ModelWeight.category != "buffer")
    session.execute(weights.values(is_trainable=ModelWeight.name.in_(list(names))))


def seconds_since(time: Any) -> Any:
    """How long ago a time was by the database's clock, as SQL."""
    return func.extract("epoch", func.clock_timestamp() - time)


def beat(session: Session, attempt_id: uuid.UUID, *, step: int | None = None, epoch: float | None = None) -> None:
    """Say that an attempt is alive and, where it has gone on, how far it is.

    What the same transaction has written becomes visible only if the attempt still is this process's to keep.

    Raises
    ------
    AttemptLost
        It was taken over, has ended or was deleted.
    """
    alive = update(TrainingAttempt).where(TrainingAttempt.id == attempt_id, TrainingAttempt.status == "running")
    if step is not None:
        _set_progress(session, attempt_id, step, epoch)
    told = alive.values(heartbeat_at=func.clock_timestamp()).returning(TrainingAttempt.id)
    if session.scalar(told) is None:
        raise lost_attempt(session, attempt_id)


def _set_progress(session: Session, attempt_id: uuid.UUID, step: int, epoch: float | None) -> None:
    run_id = select(TrainingAttempt.training_session_id).where(TrainingAttempt.id == attempt_id).scalar_subquery()
    reached: dict[str, Any] = {"current_step": step} | ({} if epoch is None else {"current_epoch": epoch})
    session.execute(update(TrainingSession).where(TrainingSession.id == run_id).values(reached))


def lost_attempt(session: Session, attempt_id: uuid.UUID) -> AttemptLost:
    """The error of an attempt that may not write any more, saying why."""
    attempt = session.get(TrainingAttempt, attempt_id, populate_existing=True)
    if attempt is None:
        return AttemptLost(f"attempt {attempt_id} is not there any more: its run was deleted; stop training")
    if attempt.status != "lost":
        return AttemptLost(f"attempt {attempt.attempt_number} has ended ({attempt.status}); begin another one")
    return AttemptLost(
        f"attempt {attempt.attempt_number} was taken over: {attempt.error or 'it was silent for too long'}; stop this "
        "process, nothing that it does counts any more"
    )


def end_attempt(session: Session, attempt_id: uuid.UUID, outcome: Outcome) -> None:
    """Write how an attempt ended, and what that means for its run and its model.

    Raises
    ------
    AttemptLost
        It was taken over, has ended or was deleted.
    """
    run = session.scalars(
        select(TrainingSession)
        .join(TrainingSession.attempts)
        .where(TrainingAttempt.id == attempt_id)
        .with_for_update(key_share=True, of=TrainingSession),
        execution_options={"populate_existing": True},
    ).one_or_none()
    attempt = session.get(TrainingAttempt, attempt_id, populate_existing=True, with_for_update={"key_share": True})
    if run is None or attempt is None or attempt.status != "running":
        raise lost_attempt(session, attempt_id)
    attempt.status = run.status = outcome.status
    attempt.error = None if outcome.error is None else outcome.error.replace("\0", "")
    attempt.ended_at = attempt.heartbeat_at = func.clock_timestamp()
    if outcome.step is not None:
        run.current_step = outcome.step
        run.current_epoch = run.current_epoch if outcome.epoch is None else outcome.epoch
    session.flush()
    discard_pending(session, attempt)  # whoever has not written his part will not any more
    end_training(session, run, attempt)


def end_rank(session: Session, attempt_id: uuid.UUID, rank: int, outcome: Outcome) -> None:
    """Write how one rank ended; the attempt goes on until rank 0 does."""
    mine = update(TrainingRank).where(
        TrainingRank.attempt_id == attempt_id, TrainingRank.rank == rank, TrainingRank.status == "running"
    )
    now = func.clock_timestamp()
    session.execute(mine.values(status=outcome.status, error=outcome.error, ended_at=now, heartbeat_at=now))


def joined_attempt(session: Session, attempt_id: uuid.UUID) -> OpenAttempt:
    """An attempt that another process opened, for a rank that has joined it."""
    attempt = session.get_one(TrainingAttempt, attempt_id, populate_existing=True)
    return OpenAttempt(
        training_session_id=attempt.training_session_id,
        name=attempt.training_session.name,
        attempt_id=attempt_id,
        attempt_number=attempt.attempt_number,
        resumed_from=attempt.fork_checkpoint_id,
        first_step=0 if attempt.fork_step is None else attempt.fork_step + 1,
    )
