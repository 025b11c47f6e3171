"""One training run that all ranks of a process group keep together."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from arc_halo.training.run import training_run

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterator

    from torch.distributed import ProcessGroup

    from arc_halo.database import Database
    from arc_halo.training.run import TrainingRun


@contextmanager
def distributed_run(
    db: Database, *, process_group: ProcessGroup | None = None, **options: Any
) -> Iterator[TrainingRun]:
    """Open a run on every rank of a group: rank 0 begins the attempt, the others join it, and rank 0 ends it last.

    Parameters
    ----------
    db
        Each rank's own.
    process_group
        The default group by default.
    options
        Those of `training_run`, but for ``rank``, ``world_size`` and ``attempt_id``.

    Raises
    ------
    RunInUse, ModelNotFound, CheckpointNotFound, InvalidName, ConfigurationError
        What rank 0 was refused for is raised on every rank.

    Examples
    --------
    >>> with distributed_run(db, model="minilm", name="tune") as run:  # doctest: +SKIP
    ...     for step in range(run.first_step, 1000):
    ...         run.log({"loss": train(step)}, step)
    """
    rank = dist.get_rank(process_group)
    options |= {"rank": rank, "world_size": dist.get_world_size(process_group)}
    with ExitStack() as stack:
        if rank == 0:
            run = _begin(stack, db, options, process_group)
        else:
            begun = _broadcast(None, process_group)
            if isinstance(begun, BaseException):
                raise begun
            run = stack.enter_context(training_run(db, **options, attempt_id=begun))
        yield run
        # Whoever wrote to an attempt that has ended would be told that it was lost.
        if rank == 0:
            dist.barrier(process_group)
        else:
            try:
                stack.close()
            finally:
                dist.barrier(process_group)


def _begin(stack: ExitStack, db: Database, options: dict[str, Any], process_group: ProcessGroup | None) -> TrainingRun:
    try:
        run = stack.enter_context(training_run(db, **options))
    except BaseException as error:
        _broadcast(error, process_group)
        raise
    _broadcast(run.attempt_id, process_group)
    return run


def _broadcast(told: uuid.UUID | BaseException | None, process_group: ProcessGroup | None) -> Any:
    heard: list[Any] = [told]
    source = 0 if process_group is None else dist.get_global_rank(process_group, 0)
    dist.broadcast_object_list(heard, source, process_group)
    return heard[0]
