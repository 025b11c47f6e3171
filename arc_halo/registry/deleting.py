"""Deleting a model, and what goes with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from arc_halo.errors import RunInUse
from arc_halo.registry.naming import find_model

if TYPE_CHECKING:
    import uuid

    from sqlalchemy.orm import Session

    from arc_halo.schema import Model

_ALIVE_SECONDS: Final = 60.0
_SHOWN: Final = 5
_RUNS: Final = text("""
SELECT count(*),
       COALESCE(sum((SELECT count(*) FROM arc_halo.model_checkpoints AS c
                      WHERE c.training_session_id = s.id AND c.status = 'published')), 0)::bigint,
       COALESCE(array_agg(s.name ORDER BY s.name) FILTER (WHERE EXISTS (
            SELECT FROM arc_halo.training_attempts AS a
             WHERE a.training_session_id = s.id AND a.status = 'running'
               AND extract(epoch FROM clock_timestamp() - a.heartbeat_at) < :seconds)), '{}')
  FROM arc_halo.training_sessions AS s
 WHERE s.model_id = :model
""")


@dataclass(frozen=True, slots=True)
class ModelRuns:
    """The training runs of a model, which are deleted with it.

    Attributes
    ----------
    alive
        Those that were heard of within the last minute, by their names.
    """

    run_count: int
    checkpoint_count: int
    alive: list[str]


def count_runs(session: Session, model: Model | uuid.UUID | str) -> ModelRuns:
    """How many training runs a model has.

    Raises
    ------
    ModelNotFound
        There is no such model.
    """
    found = find_model(session, model)
    session.flush()
    return ModelRuns(*session.execute(_RUNS, {"model": found.id, "seconds": _ALIVE_SECONDS}).one())


def delete_model(session: Session, model: Model | uuid.UUID | str, *, force: bool = False) -> None:
    """Delete a model with its layers, heads, files, aliases and training runs; its chunks wait for ``prune``.

    Parameters
    ----------
    force
        Delete it though it is being trained; whoever trains it fails at the next write.

    Raises
    ------
    ModelNotFound
        There is no such model.
    RunInUse
        One of its runs was heard of within the last minute.
    """
    found = find_model(session, model)
    alive = [] if force else count_runs(session, found).alive
    if alive:
        raise RunInUse(
            f"{found.name}@{found.version} is being trained by {', '.join(alive[:_SHOWN])}"
            + (", ..." if len(alive) > _SHOWN else "")
            + ", and its runs would go with it: end them and wait a minute, or force this"
        )
    session.delete(found)
    session.flush()
