"""An attempt that this process keeps, as the training loop sees it: recorded, saved, resumed and ended."""

from __future__ import annotations

import atexit
import logging
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.exc import SQLAlchemyError

from arc_halo.errors import ArcHaloError, AttemptLost, FileNotWritten, MetricError
from arc_halo.training.attempts import beat, end_attempt, end_rank
from arc_halo.training.checkpointing import Checkpointer, SavedCheckpoint, Wanted
from arc_halo.training.loading import load_checkpoint
from arc_halo.training.membership import Membership
from arc_halo.training.opening import alive, describe_error
from arc_halo.training.recorder import Recorder
from arc_halo.training.sealing import Sealer
from arc_halo.training.spool import Outcome

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping
    from concurrent.futures import Future

    from sqlalchemy.orm import Session

    from arc_halo.codecs.policy import PolicyName
    from arc_halo.database import Database
    from arc_halo.training.attempts import OpenAttempt
    from arc_halo.training.checkpoint import CheckpointState, CheckpointType, LoadedCheckpoint
    from arc_halo.training.keys import Goal
    from arc_halo.training.saving import CheckpointBase
    from arc_halo.training.spool import Spool

END_SECONDS: Final = 60.0
"""How long the end of a run waits for the database; then what is left goes to disk."""
_EXIT_SECONDS: Final = 5.0
_LAST_SECONDS: Final = 1.0
"""What points have at the end in any case, however long a checkpoint took."""
_LONGEST_BEAT_SECONDS: Final = 15.0
_BEATS_PER_LEASE: Final = 4
_log = logging.getLogger(__name__)
_runs: set[TrainingRun] = set()


class TrainingRun:
    """An attempt of a run that this process keeps; made by `arc_halo.training.run.training_run`.

    Attributes
    ----------
    db
        Its database.
    training_session_id, name
        The run.
    attempt_id, attempt_number
        The attempt.
    resumed_from
        The checkpoint that it goes on from; None where it begins anew.
    first_step
        The first step that is its own to log: the one after that of the checkpoint, or 0.
    rank, world_size
        Which process of how many it is.
    """

    def __init__(
        self,
        db: Database,
        opened: OpenAttempt,
        spool: Spool,
        *,
        goals: Mapping[str, Goal],
        stale_after: float,
        rank: int,
        world_size: int,
    ) -> None:
        self.db = db
        self.training_session_id, self.name = opened.training_session_id, opened.name
        self.attempt_id, self.attempt_number = opened.attempt_id, opened.attempt_number
        self.resumed_from, self.first_step = opened.resumed_from, opened.first_step
        self.rank, self.world_size = rank, world_size
        self._membership = Membership(db, self.attempt_id, rank, world_size)
        self._pid = os.getpid()
        self._has_ended = self._has_warned = False
        seconds = min(_LONGEST_BEAT_SECONDS, stale_after / _BEATS_PER_LEASE)
        self._sealer = Sealer(db, self.training_session_id, self.attempt_id, seconds=seconds / 2)
        self._recorder = Recorder(
            db,
            self.attempt_id,
            spool,
            self._beat,
            goals=goals,
            beat_seconds=seconds,
            seal_old=self._sealer.seal_old if rank == 0 else None,
        )
        alive.add(self.attempt_id)
        _runs.add(self)
        self._checkpointer = Checkpointer(
            db, self.training_session_id, self.attempt_id, self._recorder, goals, rank=rank, world_size=world_size
        )

    def __repr__(self) -> str:
        return f"TrainingRun({self.name!r}, attempt {self.attempt_number}, from step {self.first_step})"

    def log(
        self,
        metrics: Mapping[str, Any],
        step: int,
        *,
        epoch: float | None = None,
        scope: str = "train",
        context: Mapping[str, Any] | None = None,
    ) -> None:
        """Record the values of a step; takes microseconds, whatever the database does.

        A value logged for a step that has one replaces it. Of a run that goes on, steps before ``first_step`` stand in
        its parent's history: they are kept, but do not count, which is warned of once.

        Parameters
        ----------
        metrics
            Numbers by name: Python's, numpy's, or tensors without axes of any library, which ``float()`` converts.
        step
            From 0.
        epoch
            Passes through the data so far, whole or in part.
        scope
            ``train``, ``validation``, ``test`` or ``system``.
        context
            What else tells the curve apart: a layer, a data set. Another rank than 0 is one by itself.

        Raises
        ------
        MetricError
            Something of it cannot be recorded, and so nothing of it is.
        AttemptLost
            Another process has taken the run over: stop.
        """
        if self.rank:
            context = {"rank": self.rank, **(context or {})}
        self._recorder.log(metrics, step, epoch, scope, context)
        if step < self.first_step and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "step %s of run %r counts in its parent's history: this attempt goes on from step %d, so load "
                "run.load_checkpoint() and loop from run.first_step, or begin anew by resume=False",
                *(step, self.name, self.first_step),
            )

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything so far is stored: what was logged, and a checkpoint that is being saved.

        Parameters
        ----------
        timeout
            Seconds, within which a database that is away is tried again. None: as long as it takes, but an error at
            once where the database is away.

        Raises
        ------
        DatabaseError
            It is not stored. What was logged waits on this machine.
        AttemptLost
            Another process has taken the run over.
        ArcHaloError
            What the checkpoint in the background failed of.
        """
        self._checkpointer.wait(timeout)
        self._recorder.flush(timeout)

    def save_checkpoint(
        self,
        state: CheckpointState,
        step: int,
        *,
        epoch: float | None = None,
        checkpoint_type: CheckpointType = "full",
        is_best: bool | None = None,
        wait: bool = True,
        compression: PolicyName = "balanced",
        base: CheckpointBase = "auto",
    ) -> SavedCheckpoint | Future[SavedCheckpoint]:
        """Publish a state, and in the same transaction every point that was logged before.

        Parameters
        ----------
        step
            The last whose update is in the state: a run that resumes goes on with the next.
        is_best
            Mark it as the best of its run. By default it is if the first metric with a goal that was logged, on
            validation data rather than on training data, is better than at the best so far.
        wait
            False: copy the state into memory that is used again, and save the copy beside training. One at a time: the
            next save waits for it, and raises what it failed of, as `flush` and the end of the run do.
        compression, base
            See `arc_halo.training.saving.save_checkpoint`.

        Raises
        ------
        CheckpointExists
            This attempt has one of that step and type.
        AttemptLost
            Another process has taken the run over.
        DatabaseError
            The database did not take it, however often it was tried.
        CheckpointError
            The state, step or epoch cannot be stored.
        """
        wanted = Wanted(
            step=step,
            epoch=epoch,
            checkpoint_type=checkpoint_type,
            is_best=is_best,
            compression=compression,
            base=base,
        )
        return self._checkpointer.save(state, wanted) if wait else self._checkpointer.start(state, wanted)

    def publish_checkpoint(self, checkpoint_id: uuid.UUID, *, is_best: bool | None = None) -> SavedCheckpoint:
        """Publish what all ranks have written by `write_rank`, and in the same transaction what rank 0 has logged.

        Parameters
        ----------
        is_best
            As in `save_checkpoint`.

        Raises
        ------
        RanksMissing
            A rank has not written its part: the checkpoint stays pending.
        CheckpointNotFound, CheckpointExists
            It was discarded, or is published.
        AttemptLost
            Another process has taken the run over.
        """
        return self._checkpointer.publish(checkpoint_id, is_best=is_best)

    def load_checkpoint(self) -> LoadedCheckpoint | None:
        """The state that this attempt goes on from; None where it begins anew."""
        if self.resumed_from is None:
            return None
        with self.db.session() as session:
            return load_checkpoint(session, self.resumed_from, rank=self.rank)

    def stop(self, status: str = "stopped") -> None:
        """End the run now: store what was logged, and how it ended. Ending it again does nothing.

        Parameters
        ----------
        status
            ``stopped``, ``completed`` or ``failed``.

        Raises
        ------
        DatabaseError
            The database is away for a minute: what it lacks is on this machine, and the next run hands it on.
        AttemptLost
            Another process has taken the run over.
        """
        if status not in ("stopped", "completed", "failed"):
            raise MetricError(f"a run does not end as {status!r}; give stopped, completed or failed")
        self.end(status)

    def _beat(self, session: Session, step: int | None, epoch: float | None) -> None:
        if self.world_size > 1:
            self._membership.beat(session)
        if self.rank:
            self._membership.check()
        else:
            beat(session, self.attempt_id, step=step, epoch=epoch)

    def end(self, status: str, error: str | None = None, timeout: float | None = None) -> None:
        """End the run; in a child that was forked from its process this does nothing."""
        if self._has_ended or os.getpid() != self._pid:
            return
        self._has_ended = True
        buffer = self._recorder.buffer
        outcome = Outcome(status, error, buffer.last_step, buffer.last_epoch)
        failed: BaseException | None = None
        deadline = time.monotonic() + (END_SECONDS if timeout is None else timeout)
        try:
            self._checkpointer.wait(deadline - time.monotonic())
        except BaseException as trouble:  # noqa: BLE001  raised below, once the run has ended
            failed = trouble
            if status == "completed":
                outcome = Outcome("failed", describe_error(trouble), outcome.step, outcome.epoch)
        try:
            self._store_end(outcome, max(deadline - time.monotonic(), _LAST_SECONDS))
        finally:
            self._recorder.close()
            alive.discard(self.attempt_id)
            _runs.discard(self)
        if failed is not None:
            raise failed
        if timeout is None:
            self._sealer.seal_ended(max(deadline - time.monotonic(), _LAST_SECONDS))

    def _store_end(self, outcome: Outcome, timeout: float) -> None:
        write = partial(self._write_end, outcome=outcome)
        try:
            self._recorder.flush(timeout)
            self.db.transaction(write)
        except AttemptLost:
            raise
        except FileNotWritten:  # points are lost, but the database is there
            self.db.transaction(write)
            raise
        except BaseException:  # an interrupt, too, leaves what is not stored on disk
            self._recorder.leave_behind(None if self.rank else outcome)
            raise

    def _write_end(self, session: Session, *, outcome: Outcome) -> None:
        if self.world_size > 1:
            end_rank(session, self.attempt_id, self.rank, outcome)
        if not self.rank:
            end_attempt(session, self.attempt_id, outcome)


@atexit.register
def _end_all() -> None:
    """The last line: a run whose block was never left, as in a notebook, ends with its process."""
    for run in list(_runs):
        try:
            run.end("stopped", timeout=_EXIT_SECONDS)
        except (ArcHaloError, SQLAlchemyError, OSError) as error:
            _log.warning("a run could not be ended in the database: %s", error)
