"""Checkpoints of a run that goes on: published with the points that were logged before, now or beside training."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Text, cast, func, select, update
from sqlalchemy.exc import SQLAlchemyError

from arc_halo.errors import ArcHaloError, CheckpointError
from arc_halo.schema import ModelCheckpoint
from arc_halo.training.attempts import beat
from arc_halo.training.background import BackgroundSaver
from arc_halo.training.checkpoint import CheckpointState
from arc_halo.training.contents import take_apart
from arc_halo.training.copying import StateCopier
from arc_halo.training.rank_saving import RankSaver
from arc_halo.training.ranks import find_pending, publish_checkpoint
from arc_halo.training.saving import describe_checkpoint, save_checkpoint

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping
    from concurrent.futures import Future

    from sqlalchemy.orm import Session

    from arc_halo.codecs.policy import PolicyName
    from arc_halo.database import Database
    from arc_halo.training.checkpoint import CheckpointType
    from arc_halo.training.keys import Goal
    from arc_halo.training.recorder import Drain, Recorder
    from arc_halo.training.saving import CheckpointBase

_MAX_METRICS: Final = 1000
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedCheckpoint:
    """A checkpoint that is published.

    Attributes
    ----------
    nbytes
        Of all its tensors, before they are shared and compressed.
    metrics
        Last values at its step.
    lsn
        WAL position after its commit: a branch that starts there has it. None where the server did not tell.
    seconds
        From the call to the commit.
    """

    id: uuid.UUID
    training_session_id: uuid.UUID
    attempt_id: uuid.UUID
    step: int
    epoch: float | None
    checkpoint_type: str
    manifest_digest: bytes
    nbytes: int
    is_best: bool
    metrics: Mapping[str, Any]
    lsn: str | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What was asked of a checkpoint besides its state."""

    step: int
    epoch: float | None
    checkpoint_type: CheckpointType
    is_best: bool | None
    compression: PolicyName
    base: CheckpointBase


def check_state(state: CheckpointState, wanted: Wanted) -> None:
    """Refuse what cannot be saved, as far as that can be told before anything is waited for.

    Raises
    ------
    CheckpointError
        It is no state, or its step, epoch or type is none.
    """
    if not isinstance(state, CheckpointState):
        raise CheckpointError(
            f"a state is a CheckpointState, such as CheckpointState(weights={{...}}), not {type(state).__name__}; "
            "of a torch model arc_halo.integrations.torch_training.capture_state makes one"
        )
    describe_checkpoint(wanted.step, wanted.epoch, wanted.checkpoint_type, None, wanted.compression)


class Checkpointer:
    """Saves the states of one attempt, one at a time.

    Parameters
    ----------
    goals
        Which values of a metric are better: the first that has been logged says which checkpoint is the best.
    rank, world_size
        Which of how many processes this is.
    """

    def __init__(
        self,
        database: Database,
        training_session_id: uuid.UUID,
        attempt_id: uuid.UUID,
        recorder: Recorder,
        goals: Mapping[str, Goal],
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._database = database
        self._run_id, self._attempt_id = training_session_id, attempt_id
        self._recorder = recorder
        self._goals = goals
        self._is_first = rank == 0
        self._ranks = RankSaver(database, attempt_id, recorder, rank, world_size) if world_size > 1 else None
        self._saver: BackgroundSaver[SavedCheckpoint] = BackgroundSaver()
        self._copier = StateCopier()

    def save(self, state: CheckpointState, wanted: Wanted) -> SavedCheckpoint:
        """Save a state and wait until it is stored, or raise what the one before failed of."""
        began = time.monotonic()
        check_state(state, wanted)
        self._saver.wait()
        self._recorder.check()
        return self._publish(state, wanted, began)

    def start(self, state: CheckpointState, wanted: Wanted) -> Future[SavedCheckpoint]:
        """Copy a state and save the copy beside training; waits for the one before, whose error it raises."""
        began = time.monotonic()
        check_state(state, wanted)
        self._saver.wait()
        self._recorder.check()
        take_apart(state, wanted.checkpoint_type)  # what cannot be stored is said here, not by a thread later
        copy = self._copier.copy(state)
        metrics = self._metrics(wanted.step)
        what = f"the checkpoint of step {wanted.step} that was saved in the background"
        return self._saver.start(lambda: self._publish(copy, wanted, began, metrics), what)

    def publish(self, checkpoint_id: uuid.UUID, *, is_best: bool | None) -> SavedCheckpoint:
        """Publish what all ranks have written of a checkpoint, with the points that were logged before."""
        began = time.monotonic()
        self._saver.wait()
        self._recorder.check()
        with self._recorder.draining() as drain:

            def unit(session: Session) -> ModelCheckpoint:
                drain(session)
                pending = find_pending(session, checkpoint_id)
                beat(session, self._attempt_id, step=self._reached(pending.step), epoch=pending.epoch)
                metrics = self._metrics(pending.step)
                best = self._is_best(session, is_best, pending.checkpoint_type, metrics)
                return publish_checkpoint(session, pending, metrics=metrics, is_best=best)

            checkpoint = self._database.transaction(unit)
        return replace(_described(checkpoint, time.monotonic() - began), lsn=self._note_position(checkpoint.id))

    def wait(self, timeout: float | None = None) -> None:
        """Wait for what is being saved, and raise what it failed of; once."""
        self._saver.wait(timeout)

    def _publish(
        self, state: CheckpointState, wanted: Wanted, began: float, metrics: dict[str, float] | None = None
    ) -> SavedCheckpoint:
        values = self._metrics(wanted.step) if metrics is None else metrics
        checkpoint = (
            self._save_all(state, wanted, values) if self._ranks is None else self._save_part(state, wanted, values)
        )
        saved = _described(checkpoint, time.monotonic() - began)
        return replace(saved, lsn=self._note_position(checkpoint.id) if self._is_first else checkpoint.lsn)

    def _save_all(self, state: CheckpointState, wanted: Wanted, metrics: Mapping[str, float]) -> ModelCheckpoint:
        with self._recorder.draining() as drain:

            def unit(session: Session) -> ModelCheckpoint:
                # Points come before any lock on a row: whoever writes them holds theirs, and waits for rows.
                return save_checkpoint(
                    session,
                    self._attempt_id,
                    state,
                    wanted.step,
                    epoch=wanted.epoch,
                    checkpoint_type=wanted.checkpoint_type,
                    metrics=metrics,
                    is_best=self._is_best(session, wanted.is_best, wanted.checkpoint_type, metrics),
                    compression=wanted.compression,
                    base=wanted.base,
                    before_publish=partial(self._drain, drain=drain, wanted=wanted),
                )

            return self._database.transaction(unit)

    def _drain(self, session: Session, *, drain: Drain, wanted: Wanted) -> None:
        drain(session)
        beat(session, self._attempt_id, step=self._reached(wanted.step), epoch=wanted.epoch)

    def _reached(self, step: int) -> int:
        """The last step that was logged, or is saved."""
        logged = self._recorder.buffer.last_step
        return step if logged is None else max(step, logged)

    def _save_part(self, state: CheckpointState, wanted: Wanted, metrics: Mapping[str, float]) -> ModelCheckpoint:
        assert self._ranks is not None
        return self._ranks.save(
            state,
            wanted,
            metrics,
            lambda session: self._is_best(session, wanted.is_best, wanted.checkpoint_type, metrics),
        )

    def _metrics(self, step: int) -> dict[str, float]:
        """Last values of what has no context, those with a goal first; of other scopes than train as scope/name."""
        latest = self._recorder.buffer.latest.copy()
        known = [(self._recorder.buffer.key(index), *point) for index, point in latest.items()]
        usable = [each for each in known if each[0].context == "{}" and each[1] <= step]
        usable.sort(key=lambda each: each[0].name not in self._goals)
        return {
            key.name if key.scope == "train" else f"{key.scope}/{key.name}": value
            for key, _, value in usable[:_MAX_METRICS]
        }

    def _is_best(self, session: Session, said: bool | None, checkpoint_type: str, metrics: Mapping[str, float]) -> bool:
        """Whether a metric with a goal is better than at the best so far; on validation data, where that is known."""
        if said is not None:
            return said
        scopes = ("validation/", "", "test/")
        named = ((f"{scope}{name}", goal) for name, goal in self._goals.items() for scope in scopes)
        name, goal = next(((name, goal) for name, goal in named if name in metrics), (None, None))
        if name is None or math.isnan(metrics[name]):
            return False
        best = session.scalar(
            select(ModelCheckpoint.metrics[name].astext).where(
                ModelCheckpoint.training_session_id == self._run_id,
                ModelCheckpoint.checkpoint_type == checkpoint_type,
                ModelCheckpoint.is_best,
            )
        )
        if best is None:
            return True
        return metrics[name] < float(best) if goal == "minimize" else metrics[name] > float(best)

    def _note_position(self, checkpoint_id: uuid.UUID) -> str | None:
        """Write where in the log the commit is behind us; only afterwards can that be known."""
        position = cast(func.pg_catalog.pg_current_wal_insert_lsn(), Text)
        noted = update(ModelCheckpoint).where(ModelCheckpoint.id == checkpoint_id).values(lsn=position)
        try:
            return self._database.transaction(lambda session: session.scalar(noted.returning(ModelCheckpoint.lsn)))
        except (ArcHaloError, SQLAlchemyError) as error:
            _log.warning("checkpoint %s is stored, but not its position in the log: %s", checkpoint_id, error)
            return None


def _described(checkpoint: ModelCheckpoint, seconds: float) -> SavedCheckpoint:
    assert checkpoint.manifest_digest is not None
    return SavedCheckpoint(
        id=checkpoint.id,
        training_session_id=checkpoint.training_session_id,
        attempt_id=checkpoint.attempt_id,
        step=checkpoint.step,
        epoch=checkpoint.epoch,
        checkpoint_type=checkpoint.checkpoint_type,
        manifest_digest=checkpoint.manifest_digest,
        nbytes=checkpoint.nbytes or 0,
        is_best=checkpoint.is_best,
        metrics=checkpoint.metrics,
        lsn=None,
        seconds=seconds,
    )
