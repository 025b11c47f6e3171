"""A training run as the training loop sees it: opened or taken over, recorded, saved, resumed and ended."""

from __future__ import annotations

import atexit
import logging
import os
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from arc_halo.errors import ArcHaloError, AttemptLost, MetricError
from arc_halo.training.attempts import STALE_SECONDS, RunRequest, beat, beat_rank, end_attempt, end_rank
from arc_halo.training.checkpointing import Checkpointer, SavedCheckpoint, Wanted
from arc_halo.training.loading import load_checkpoint
from arc_halo.training.opening import (
    alive,
    begin_attempt,
    checked_goals,
    default_spool_folder,
    describe_error,
    join_attempt,
)
from arc_halo.training.processes import this_process
from arc_halo.training.provenance import Provenance, capture_provenance, plain
from arc_halo.training.recorder import Recorder
from arc_halo.training.spool import Outcome, Spool, SpoolHeader

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection, Iterator, Mapping
    from concurrent.futures import Future
    from pathlib import Path

    from sqlalchemy.orm import Session

    from arc_halo.codecs.policy import PolicyName
    from arc_halo.database import Database
    from arc_halo.schema import Model
    from arc_halo.training.attempts import OpenAttempt
    from arc_halo.training.checkpoint import CheckpointState, CheckpointType, LoadedCheckpoint
    from arc_halo.training.keys import Goal
    from arc_halo.training.saving import CheckpointBase

END_SECONDS: Final = 60.0
"""How long the end of a run waits for the database; then what is left goes to disk."""
_EXIT_SECONDS: Final = 5.0
_LONGEST_BEAT_SECONDS: Final = 15.0
_BEATS_PER_LEASE: Final = 4
_log = logging.getLogger(__name__)
_runs: set[TrainingRun] = set()


class TrainingRun:
    """An attempt of a run that this process keeps; made by `training_run`.

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
        self._pid = os.getpid()
        self._has_ended = False
        seconds = min(_LONGEST_BEAT_SECONDS, stale_after / _BEATS_PER_LEASE)
        self._recorder = Recorder(db, self.attempt_id, spool, self._beat, goals=goals, beat_seconds=seconds)
        alive.add(self.attempt_id)
        _runs.add(self)
        self._checkpointer = Checkpointer(db, self.training_session_id, self.attempt_id, self._recorder, goals)

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

        A value logged for a step that has one replaces it.

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
        self._end(status)

    def _beat(self, session: Session, step: int | None, epoch: float | None) -> None:
        if self.rank:
            beat_rank(session, self.attempt_id, self.rank)
        else:
            beat(session, self.attempt_id, step=step, epoch=epoch)

    def _end(self, status: str, error: str | None = None, timeout: float = END_SECONDS) -> None:
        if self._has_ended or os.getpid() != self._pid:  # a forked child leaves the block, too
            return
        self._has_ended = True
        buffer = self._recorder.buffer
        outcome = Outcome(status, error, buffer.last_step, buffer.last_epoch)
        failed: BaseException | None = None
        try:
            self._checkpointer.wait()
        except BaseException as trouble:  # noqa: BLE001  raised below, once the run has ended
            failed = trouble
            if status == "completed":
                outcome = Outcome("failed", describe_error(trouble), outcome.step, outcome.epoch)
        try:
            self._store_end(outcome, timeout)
        finally:
            self._recorder.close()
            alive.discard(self.attempt_id)
            _runs.discard(self)
        if failed is not None:
            raise failed

    def _store_end(self, outcome: Outcome, timeout: float) -> None:
        try:
            self._recorder.flush(timeout)
            self.db.transaction(partial(self._write_end, outcome=outcome))
        except AttemptLost:
            raise
        except Exception:
            self._recorder.leave_behind(outcome)
            raise

    def _write_end(self, session: Session, *, outcome: Outcome) -> None:
        if self.rank:
            end_rank(session, self.attempt_id, self.rank, outcome)
        else:
            end_attempt(session, self.attempt_id, outcome)


@contextmanager
def training_run(
    db: Database,
    *,
    model: Model | uuid.UUID | str,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    dataset_digest: bytes | None = None,
    seed: int | None = None,
    total_steps: int | None = None,
    total_epochs: float | None = None,
    goals: Mapping[str, Goal] | None = {"loss": "minimize"},
    resume: bool | str | uuid.UUID = "auto",
    fork_step: int | None = None,
    stale_after: float = STALE_SECONDS,
    trainable: Collection[str] | None = None,
    spool_folder: Path | None = None,
    capture: bool = True,
    rank: int = 0,
    world_size: int = 1,
    attempt_id: uuid.UUID | None = None,
) -> Iterator[TrainingRun]:
    """Train a model under a name: begin an attempt, record it, and write how it ended when the block is left.

    A block that ends has completed; one that raises has failed, and is stopped by ``KeyboardInterrupt`` and
    ``SystemExit``. A process that is killed leaves its attempt to the next that asks for the run.

    Parameters
    ----------
    model
        What is trained, or a reference to it.
    name
        Of the run, unique among those of the model; a new one is invented by default.
    config
        Hyperparameters, as resolved; numpy's numbers, paths and dataclasses become JSON.
    dataset, dataset_digest, seed, total_steps, total_epochs
        What the run is about; kept with it.
    goals
        Which values of a metric are better, ``minimize`` or ``maximize``, by its name.
    resume
        ``"auto"``: from the newest full checkpoint of the run's line if there is one, else anew; True: there must be
        one; False: anew, as a line of its own; an id: from that checkpoint of the run.
    fork_step
        From the checkpoint of the line at this step. What came after it stays, in a line of its own.
    stale_after
        Seconds without a heartbeat, by the database's clock, after which a run is taken over.
    trainable
        Names of the weights that training changes: ``is_trainable`` of the model's weights is set by them.
    spool_folder
        Where points wait while the database takes none; else ``ARC_HALO_SPOOL_FOLDER``.
    capture
        Keep what is needed to do it again: commit and changes, packages, machine, seeds, configuration. Changes to the
        code may hold what is not for everybody: False keeps them out.
    rank, world_size, attempt_id
        In one of several processes: which it is, of how many, and for all but rank 0 the attempt that rank 0 began.

    Raises
    ------
    RunInUse
        Another process trains it.
    ModelNotFound, CheckpointNotFound, InvalidName, ConfigurationError
        What was given cannot be used.

    Examples
    --------
    >>> with training_run(db, model="minilm", name="tune", total_steps=1000) as run:  # doctest: +SKIP
    ...     for step in range(run.first_step, 1000):
    ...         run.log({"loss": train(step)}, step)
    """
    request = RunRequest(
        model=model,
        name=name,
        config=None if config is None else plain(config),
        dataset=dataset,
        dataset_digest=dataset_digest,
        seed=seed,
        total_steps=total_steps,
        total_epochs=total_epochs,
        resume=resume,
        fork_step=fork_step,
        stale_after=stale_after,
        trainable=trainable,
    )
    wanted = checked_goals(goals)
    found = capture_provenance(config=config, seed=seed, dataset_digest=dataset_digest) if capture else Provenance()
    folder = default_spool_folder() if spool_folder is None else spool_folder
    if rank:
        opened, owner = join_attempt(db, attempt_id, rank, world_size)
    else:
        opened, owner = begin_attempt(db, request, found, folder)
    spool = Spool(folder, SpoolHeader(opened.attempt_id, owner, this_process(), wanted))
    run = TrainingRun(db, opened, spool, goals=wanted, stale_after=stale_after, rank=rank, world_size=world_size)
    try:
        yield run
    except BaseException as error:
        _end_with(run, error)
        raise
    run._end("completed")  # noqa: SLF001  this module's own


def _end_with(run: TrainingRun, error: BaseException) -> None:
    """End a run whose block raised; trouble on the way is noted on what was raised, which is not hidden by it."""
    is_stopped = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
    try:
        run._end("stopped" if is_stopped else "failed", None if is_stopped else describe_error(error))  # noqa: SLF001
    except Exception as trouble:  # noqa: BLE001
        if trouble is not error and not isinstance(error, AttemptLost):
            error.add_note(f"and the run could not be ended in the database: {trouble}")
            _log.warning("the run could not be ended in the database: %s", trouble)


@atexit.register
def _end_all() -> None:
    """The last line: a run whose block was never left, as in a notebook, ends with its process."""
    for run in list(_runs):
        try:
            run._end("stopped", timeout=_EXIT_SECONDS)  # noqa: SLF001
        except (ArcHaloError, OSError) as error:
            _log.warning("a run could not be ended in the database: %s", error)
