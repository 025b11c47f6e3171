"""A checkpoint of a run that trains in several processes: each brings its part, and the first publishes all of them."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import func, select

from arc_halo.errors import CheckpointNotFound, RanksMissing
from arc_halo.schema import CheckpointRank, ModelCheckpoint
from arc_halo.training.ranks import begin_checkpoint, publish_checkpoint, write_rank

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Mapping

    from sqlalchemy.orm import Session

    from arc_halo.database import Database
    from arc_halo.training.checkpoint import CheckpointState
    from arc_halo.training.checkpointing import Wanted
    from arc_halo.training.recorder import Recorder

Found = TypeVar("Found")
RANKS_SECONDS: Final = 600.0
"""How long a rank that has written waits for the others."""
_PAUSES: Final = (0.02, 1.0)


class RankSaver:
    """Saves the parts of one rank; returns when the checkpoint is published, on each of them."""

    def __init__(
        self, database: Database, attempt_id: uuid.UUID, recorder: Recorder, rank: int, world_size: int
    ) -> None:
        self._database, self._attempt_id, self._recorder = database, attempt_id, recorder
        self._rank, self._world_size = rank, world_size

    def save(
        self,
        state: CheckpointState,
        wanted: Wanted,
        metrics: Mapping[str, Any],
        is_best: Callable[[Session], bool],
    ) -> ModelCheckpoint:
        """Bring this rank's part, and wait for the others'.

        Raises
        ------
        RanksMissing
            Others have not brought theirs for ten minutes; the message says which.
        """
        begin = partial(
            begin_checkpoint,
            attempt=self._attempt_id,
            step=wanted.step,
            world_size=self._world_size,
            epoch=wanted.epoch,
            checkpoint_type=wanted.checkpoint_type,
            compression=wanted.compression,
        )
        pending = self._database.transaction(begin).id
        if self._rank:  # its points are there before the checkpoint is
            self._recorder.flush()
        write = partial(write_rank, checkpoint=pending, rank=self._rank, state=state, base=wanted.base)
        self._database.transaction(write)
        if self._rank:
            return self._wait(lambda: self._published(pending), f"rank 0 has not published step {wanted.step}")
        self._wait_for_all(pending)
        with self._recorder.draining() as drain:

            def unit(session: Session) -> ModelCheckpoint:
                drain(session)
                return publish_checkpoint(session, pending, metrics=metrics, is_best=is_best(session))

            return self._database.transaction(unit)

    def _wait_for_all(self, checkpoint_id: uuid.UUID) -> None:
        try:
            self._wait(lambda: self._has_all(checkpoint_id) or None, "")
        except RanksMissing:
            return  # publishing it says who is missing

    def _wait(self, ask: Callable[[], Found | None], otherwise: str) -> Found:
        deadline = time.monotonic() + RANKS_SECONDS
        pause, longest = _PAUSES
        while (found := ask()) is None:
            self._recorder.check()
            if time.monotonic() > deadline:
                raise RanksMissing(f"{otherwise} within {RANKS_SECONDS:.0f} s; see whether its process lives")
            time.sleep(pause)
            pause = min(longest, 2 * pause)
        return found

    def _has_all(self, checkpoint_id: uuid.UUID) -> bool:
        written = select(func.count()).where(CheckpointRank.checkpoint_id == checkpoint_id)
        with self._database.session() as session:
            return session.scalar(written) == self._world_size

    def _published(self, checkpoint_id: uuid.UUID) -> ModelCheckpoint | None:
        with self._database.session() as session:
            found = session.get(ModelCheckpoint, checkpoint_id)
        if found is None:
            self._recorder.check()
            raise CheckpointNotFound(f"checkpoint {checkpoint_id} was discarded before it was published")
        return found if found.status == "published" else None
