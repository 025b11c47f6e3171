"""`torch.distributed.checkpoint`'s writer and reader: ranks save and load their parts of a state dict."""

from __future__ import annotations

import io
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.planner import LoadItemType
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from arc_halo.errors import CheckpointError, CheckpointNotFound
from arc_halo.integrations.dcp.reading import Catalogue, open_checkpoint, own_states
from arc_halo.integrations.dcp.writing import collect, refuse_disagreement
from arc_halo.integrations.torch_training.rng import capture_rng, restore_rng
from arc_halo.training.ranks import begin_checkpoint, discard_pending, write_rank

if TYPE_CHECKING:
    import os

    from sqlalchemy.orm import Session
    from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner

    from arc_halo.codecs.policy import PolicyName
    from arc_halo.database import Database
    from arc_halo.schema import ModelCheckpoint
    from arc_halo.training.checkpoint import CheckpointType, Tree
    from arc_halo.training.checkpointing import SavedCheckpoint
    from arc_halo.training.finding import CheckpointReference
    from arc_halo.training.run import TrainingRun
    from arc_halo.training.saving import CheckpointBase


class DatabaseStorageWriter(StorageWriter):
    """Saves a state dict as a checkpoint of a run: each rank its part at once, and one publication of all.

    Weights, optimizer and the rest become rows as `save_checkpoint` makes them, so `load_checkpoint` reads them, too.
    Nothing is pickled. Until every rank has written nobody sees anything.

    Parameters
    ----------
    run
        The run as this rank has opened it; see `training_run` for ``rank`` and ``attempt_id``.
    step
        The last whose update is in the state; else it is the ``checkpoint_id`` of ``dcp.save``.
    epoch, checkpoint_type, is_best, compression, base
        As in `TrainingRun.save_checkpoint`.
    rng
        Keep the random states of this process, as they are when the writer is made or told its ``checkpoint_id``.
    data_loader
        Where this rank stands in its data, as a tree.

    Attributes
    ----------
    saved
        On rank 0 what was published last.

    Examples
    --------
    >>> weights, optim = get_state_dict(model, optimizer)  # doctest: +SKIP
    >>> dcp.save({"model": weights, "optim": optim}, storage_writer=DatabaseStorageWriter(run, step))  # doctest: +SKIP
    """

    def __init__(
        self,
        run: TrainingRun,
        step: int | None = None,
        *,
        epoch: float | None = None,
        checkpoint_type: CheckpointType = "full",
        is_best: bool | None = None,
        compression: PolicyName = "balanced",
        base: CheckpointBase = "auto",
        rng: bool = True,
        data_loader: Tree = None,
    ) -> None:
        self.saved: SavedCheckpoint | None = None
        self._run = run
        self._step = step
        self._epoch, self._type, self._compression = epoch, checkpoint_type, compression
        self._is_best, self._base = is_best, base
        self._captures_rng = rng
        self._rng = capture_rng() if rng else None
        self._data_loader = data_loader
        self._rank = 0

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin a checkpoint of the step that ``checkpoint_id`` is."""
        if checkpoint_id is not None:
            self._step = parse_step(checkpoint_id)
            self._rng = capture_rng() if self._captures_rng else None

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Learn which rank of the group this is."""
        if not kwargs.get("use_collectives", True):
            raise CheckpointError(
                "without collectives no rank knows when all have written; leave out use_collectives=False"
            )
        if self._step is None:
            raise CheckpointError("which step is saved? Give it to DatabaseStorageWriter, or as checkpoint_id")
        self._rank = kwargs.get("rank", 0)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Leave the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Begin the checkpoint before any rank writes, without what a save of this step that failed has left."""
        self._run.db.transaction(lambda session: self._begin(session, len(plans), is_anew=True))
        # A plan that the planner has cached keeps this; the number of ranks is what stays the same, too.
        return [replace(plan, storage_data=len(plans)) for plan in plans]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write what this rank holds, in a transaction of its own."""
        collected = collect(plan, planner)
        state = collected.state(is_first=self._rank == 0, rng=self._rng, data_loader=self._data_loader)

        def unit(session: Session) -> None:
            write_rank(session, checkpoint_id, self._rank, state, base=self._base)

        begun = self._run.db.transaction(lambda session: self._begin(session, plan.storage_data))
        checkpoint_id = begun.id
        if self._rank:  # its points are there before the checkpoint is
            self._run.flush()
        self._run.db.transaction(unit)
        written: Future[list[WriteResult]] = Future()
        written.set_result([WriteResult(item.index, 0, collected.agreed) for item in plan.items])
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:  # noqa: ARG002  rows say it all
        """Publish the checkpoint, with every point that rank 0 has logged before."""
        # A rank without a share of the tensors agrees with everybody.
        refuse_disagreement({rank: written[0].storage_data for rank, written in enumerate(results) if written})
        begun = self._run.db.transaction(lambda session: self._begin(session, len(results)))
        self.saved = self._run.publish_checkpoint(begun.id, is_best=self._is_best)

    def _begin(self, session: Session, world_size: int, *, is_anew: bool = False) -> ModelCheckpoint:
        assert self._step is not None
        if is_anew:
            discard_pending(session, self._run.attempt_id, step=self._step)
        return begin_checkpoint(
            session,
            self._run.attempt_id,
            self._step,
            world_size,
            epoch=self._epoch,
            checkpoint_type=self._type,
            compression=self._compression,
        )

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is a step."""
        return str(checkpoint_id).isdecimal()

    def storage_meta(self) -> StorageMeta | None:
        """Nothing that planners need to know."""
        return None


class DatabaseStorageReader(StorageReader):
    """Loads a state dict from a checkpoint, each rank the rows that it holds, however many ranks have saved it.

    Whatever was saved, by this module or by `save_checkpoint`: weights stand under ``model``, the optimizer under
    ``optim``, unless the state dict that was saved had them elsewhere.

    Parameters
    ----------
    checkpoint
        As in `load_checkpoint`; else it is the ``checkpoint_id`` of ``dcp.load``. Give all ranks the same id, such as
        ``run.resumed_from``: what is the newest may change between two of them.

    Raises
    ------
    CheckpointNotFound, ModelNotFound
        There is none.
    DigestMismatch
        A row was changed, added or removed since it was published.

    Examples
    --------
    >>> reader = DatabaseStorageReader(db, run.resumed_from)  # doctest: +SKIP
    >>> dcp.load(state, storage_reader=reader)  # doctest: +SKIP
    >>> reader.restore_rng()  # doctest: +SKIP
    """

    def __init__(self, database: Database, checkpoint: CheckpointReference | None = None) -> None:
        self._database = database
        self._opened: Catalogue | None = None
        self._rank = 0
        if checkpoint is not None:
            self._open(checkpoint)

    @property
    def step(self) -> int:
        """The last whose update is in the state."""
        return self._catalogue.step

    @property
    def rng(self) -> Tree:
        """Random states of the rank of this number when it was saved; None if there was none."""
        return self._own_states()[0]

    @property
    def data_loader(self) -> Tree:
        """Where the rank of this number stood in its data; None if it did not say so."""
        return self._own_states()[1]

    def restore_rng(self) -> None:
        """Set the random states of this process to those of the rank of its number, if they were saved."""
        if (state := self.rng) is not None:
            restore_rng(state)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Open the checkpoint of that id, or the newest of the model that it refers to."""
        if checkpoint_id is not None:
            text = str(checkpoint_id)
            self._open(uuid.UUID(text) if self.validate_checkpoint_id(text) else text)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002
        """What the checkpoint holds, as its rows say."""
        return self._catalogue.metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Learn which rank of the group this is."""
        self._rank = kwargs.get("rank", 0)

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Leave the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Leave the plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what this rank needs, checked, into the tensors that its planner has ready."""
        for item in plan.items:
            if item.type is LoadItemType.BYTE_IO:
                planner.load_bytes(item, _as_saved(self._catalogue.values[item.storage_index.fqn]))
        tensors = [item for item in plan.items if item.type is LoadItemType.TENSOR]
        with self._database.session() as session:
            for item, block in self._catalogue.read(session, tensors):
                target = planner.resolve_tensor(item).detach()
                target.copy_(block)
                planner.commit_tensor(item, target)
        read: Future[None] = Future()
        read.set_result(None)
        return read

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is the id of a checkpoint."""
        try:
            uuid.UUID(str(checkpoint_id))
        except ValueError:
            return False
        return True

    @property
    def _catalogue(self) -> Catalogue:
        if self._opened is None:
            raise CheckpointNotFound(
                "which checkpoint is loaded? Give it to DatabaseStorageReader, or as checkpoint_id"
            )
        return self._opened

    def _open(self, reference: CheckpointReference) -> None:
        with self._database.session() as session:
            self._opened = open_checkpoint(session, reference)

    def _own_states(self) -> tuple[Tree, Tree]:
        with self._database.session() as session:
            return own_states(session, self._catalogue.checkpoint_id, self._rank)


def parse_step(checkpoint_id: str | os.PathLike[str]) -> int:
    """The step that a ``checkpoint_id`` says."""
    if not DatabaseStorageWriter.validate_checkpoint_id(checkpoint_id):
        raise CheckpointError(f"checkpoint_id {checkpoint_id!r} is no step; give the number of the last update")
    return int(str(checkpoint_id))


def _as_saved(value: Any) -> io.BytesIO:
    """A value as planners take it, who read nothing but the bytes of ``torch.save``.

    They are made here, of what rows say, and never leave the memory of this process: nothing stored is unpickled.
    """
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return buffer
