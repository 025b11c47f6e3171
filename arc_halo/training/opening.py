"""How a process begins to keep an attempt: earlier runs' leftovers are handed on, then it is opened or joined."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Final

from arc_halo.errors import MetricError
from arc_halo.schema.columns import uuid7
from arc_halo.settings import load_settings
from arc_halo.store.owners import owner_of
from arc_halo.training.attempts import Starter, joined_attempt, open_attempt
from arc_halo.training.keys import GOALS
from arc_halo.training.membership import Membership
from arc_halo.training.processes import this_process
from arc_halo.training.replay import replay_spools

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping
    from pathlib import Path

    from sqlalchemy.orm import Session

    from arc_halo.database import Database
    from arc_halo.training.attempts import OpenAttempt, RunRequest
    from arc_halo.training.keys import Goal
    from arc_halo.training.provenance import Provenance

_MAX_ERROR_LENGTH: Final = 10_000
alive: Final[set[uuid.UUID]] = set()
"""Attempts that this process keeps, or is opening."""


def begin_attempt(
    db: Database, request: RunRequest, found: Provenance, folder: Path, *, world_size: int = 1
) -> tuple[OpenAttempt, str]:
    """Open an attempt; returns it, and the identity of the database.

    Raises
    ------
    RunInUse
        Another process keeps the run.
    """
    attempt_id = uuid7()
    replay_spools(db, folder, alive=alive)
    starter = Starter(
        attempt_id=attempt_id,
        process=this_process(),
        alive=alive,
        code_digest=found.code_digest,
        environment_digest=found.environment_digest,
        provenance=found.details,
    )

    def unit(session: Session) -> OpenAttempt:
        opened = open_attempt(session, request, starter)
        if world_size > 1:
            Membership(db, attempt_id, 0, world_size).join(session)
        return opened

    alive.add(attempt_id)
    try:
        opened = db.transaction(unit)
    except BaseException:
        alive.discard(attempt_id)
        raise
    if opened.taken_over is not None:
        replay_spools(db, folder, alive=alive)
    return opened, _owner(db)


def begin_rank(db: Database, attempt_id: uuid.UUID | None, rank: int, world_size: int) -> tuple[OpenAttempt, str]:
    """Become one more rank of an attempt that rank 0 began; returns it, and the identity of the database.

    Raises
    ------
    AttemptLost
        The attempt does not run.
    MetricError
        Which attempt is meant was not said.
    """
    if attempt_id is None:
        raise MetricError(f"rank {rank} joins the attempt of rank 0: give its attempt_id, which rank 0 sends to all")
    membership = Membership(db, attempt_id, rank, world_size)

    def unit(session: Session) -> OpenAttempt:
        membership.join(session)
        return joined_attempt(session, attempt_id)

    return db.transaction(unit), _owner(db)


def _owner(db: Database) -> str:
    with db.session() as session:
        return owner_of(session.connection())


def checked_goals(goals: Mapping[str, Goal] | None) -> dict[str, Goal]:
    """Goals by the name of a metric, before anything is begun that they would end.

    Raises
    ------
    MetricError
        One is neither ``minimize`` nor ``maximize``.
    """
    for name, goal in (goals or {}).items():
        if goal not in GOALS:
            raise MetricError(f"the goal of metric {name!r:.80} is minimize or maximize, not {goal!r:.80}")
    return dict(goals or {})


def default_spool_folder() -> Path:
    """Where points wait, as the settings say."""
    settings = load_settings()
    return settings.spool_folder if settings.spool_folder is not None else settings.home / "spool"


def describe_error(error: BaseException) -> str:
    """What was raised, and where; without the lines of code, which may hold secrets."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return "".join(traceback.format_exception_only(error)).strip()[:_MAX_ERROR_LENGTH] + where
