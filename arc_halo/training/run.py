"""A training run: what was asked of it, its attempt opened or taken over, and how it ended."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from arc_halo.errors import AttemptLost, CheckpointError, ConfigurationError
from arc_halo.training.attempts import STALE_SECONDS, RunRequest
from arc_halo.training.kept import TrainingRun
from arc_halo.training.opening import begin_attempt, begin_rank, checked_goals, default_spool_folder, describe_error
from arc_halo.training.processes import this_process
from arc_halo.training.provenance import Provenance, capture_provenance, plain
from arc_halo.training.spool import Spool, SpoolHeader

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from arc_halo.database import Database
    from arc_halo.schema import Model
    from arc_halo.training.keys import Goal

__all__ = ["TrainingRun", "training_run"]
_log = logging.getLogger(__name__)


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
    for what, planned in (("total_steps", total_steps), ("total_epochs", total_epochs)):
        if planned is not None and not planned >= 0:
            raise ConfigurationError(f"{what} is how much is planned, a number from 0 on, not {planned!r:.80}")
    found = capture_provenance(config=config, seed=seed, dataset_digest=dataset_digest) if capture else Provenance()
    folder = default_spool_folder() if spool_folder is None else spool_folder
    if not 0 <= rank < world_size:
        raise CheckpointError(f"rank {rank} is none of {world_size}; count from 0")
    if rank:
        opened, owner = begin_rank(db, attempt_id, rank, world_size)
    else:
        opened, owner = begin_attempt(db, request, found, folder, world_size=world_size)
    spool = Spool(folder, SpoolHeader(opened.attempt_id, owner, this_process(), wanted), rank)
    run = TrainingRun(db, opened, spool, goals=wanted, stale_after=stale_after, rank=rank, world_size=world_size)
    try:
        yield run
    except BaseException as error:
        _end_with(run, error)
        raise
    run.end("completed")


def _end_with(run: TrainingRun, error: BaseException) -> None:
    """End a run whose block raised; trouble on the way is noted on what was raised, which is not hidden by it."""
    is_stopped = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
    try:
        run.end("stopped" if is_stopped else "failed", None if is_stopped else describe_error(error))
    except Exception as trouble:  # noqa: BLE001
        if trouble is not error and not isinstance(error, AttemptLost):
            error.add_note(f"and the run could not be ended in the database: {trouble}")
            _log.warning("the run could not be ended in the database: %s", trouble)
