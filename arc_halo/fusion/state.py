"""What a reactor has in mind: versions that are read, continued, rewound and branched."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, insert, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT

from arc_halo.errors import ConstraintViolation, FusionError, StateConflict
from arc_halo.fusion.creating import find_reactor
from arc_halo.fusion.goals import Goal, checked_goals
from arc_halo.fusion.state_diff import StateDiff, diff_states
from arc_halo.schema import CognitiveState

if TYPE_CHECKING:
    import datetime as dt
    import uuid
    from collections.abc import Iterable, Mapping

    from sqlalchemy import Row
    from sqlalchemy.orm import Session

    from arc_halo.schema import Reactor

__all__ = [
    "Goal",
    "State",
    "StateDiff",
    "append_state",
    "branch",
    "diff_states",
    "history",
    "read_state",
    "rewind",
]

_ATTEMPTS: Final = 20
_TAKEN: Final = "uq_cognitive_state_reactor_id_version"
_COLUMNS: Final = "s.version, s.parent_version, s.context, s.memory, s.attention_focus, s.goals, s.created_at"
_LARGEST: Final = 2**31 - 1
# The newest version's number comes along where the asked one is not there, too.
_READ: Final = text(f"""
SELECT newest.version AS newest_version, {_COLUMNS}
  FROM (SELECT max(n.version) AS version FROM arc_halo.cognitive_state AS n WHERE n.reactor_id = :reactor_id) AS newest
  LEFT JOIN arc_halo.cognitive_state AS s
    ON s.reactor_id = :reactor_id AND s.version = coalesce(CAST(:version AS integer), newest.version)
""")  # noqa: S608  # the columns above
LINE: Final = """
WITH RECURSIVE line (version, parent_version) AS (
    SELECT s.version, s.parent_version
      FROM arc_halo.cognitive_state AS s
     WHERE s.reactor_id = :reactor_id
       AND s.version = coalesce(CAST(:version AS integer), (
           SELECT max(n.version) FROM arc_halo.cognitive_state AS n WHERE n.reactor_id = :reactor_id))
    UNION ALL
    SELECT s.version, s.parent_version
      FROM line
      JOIN arc_halo.cognitive_state AS s ON s.reactor_id = :reactor_id AND s.version = line.parent_version
)
"""
"""A version and its ancestors, of parameters ``reactor_id`` and ``version`` (null: the newest)."""
_HISTORY: Final = text(f"""
{LINE}
SELECT {_COLUMNS}
  FROM line
  JOIN arc_halo.cognitive_state AS s ON s.reactor_id = :reactor_id AND s.version = line.version
 ORDER BY s.version DESC
""")  # noqa: S608  # constants of this module
_KNOWN_FOCUS: Final = text(f"""
{LINE}
SELECT m.name FROM arc_halo.reactor_models AS m WHERE m.reactor_id = :reactor_id AND m.name = ANY(:keys)
 UNION ALL
SELECT c.id::text
  FROM arc_halo.cognitive_memories AS c
  JOIN line ON line.version = c.state_version
 WHERE c.reactor_id = :reactor_id AND c.id::text = ANY(:keys)
""").bindparams(bindparam("keys", type_=ARRAY(TEXT)))  # noqa: S608  # constants of this module


@dataclass(frozen=True, slots=True)
class State:
    """One version of what a reactor has in mind.

    Attributes
    ----------
    context, memory
        Values of JSON: what is going on, and what is kept at hand. What is recalled by likeness is no part of it.
    attention_focus
        Shares that add up to 1, over names of members and ids of memories; empty where there is no focus.
    """

    reactor_id: uuid.UUID
    version: int
    parent_version: int | None
    context: Mapping[str, Any]
    memory: Mapping[str, Any]
    attention_focus: Mapping[str, float]
    goals: tuple[Goal, ...]
    created_at: dt.datetime


def read_state(session: Session, reactor: Reactor | uuid.UUID | str, version: int | None = None) -> State:
    """A version of a reactor's state, by default the newest.

    Raises
    ------
    ReactorNotFound
        There is no such reactor.
    FusionError
        It has no such version.
    """
    row = find_reactor(session, reactor)
    found = _read(session, row, version)
    if found.version is None:
        raise FusionError(_no_version(row, version, found.newest_version))
    return _state(row.id, found)


def history(session: Session, reactor: Reactor | uuid.UUID | str, version: int | None = None) -> list[State]:
    """A version (by default the newest) and its ancestors, back to the first one, by one statement.

    Raises
    ------
    ReactorNotFound
        There is no such reactor.
    FusionError
        It has no such version.
    """
    row = find_reactor(session, reactor)
    rows = session.execute(_HISTORY, {"reactor_id": row.id, "version": _number(version)}).all()
    if not rows and version is not None:
        raise FusionError(_no_version(row, version, _read(session, row, None).newest_version))
    return [_state(row.id, each) for each in rows]


def append_state(
    session: Session,
    reactor: Reactor | uuid.UUID | str,
    *,
    parent: int | None,
    context: Mapping[str, Any] | None = None,
    memory: Mapping[str, Any] | None = None,
    attention_focus: Mapping[str, float] | None = None,
    goals: Iterable[Goal | str | Mapping[str, Any]] | None = None,
    branch: bool = False,
) -> State:
    """Continue a version of the state; parts that are not given stay as they are in it.

    Of several sessions that continue the same version one gets through. The others wait for it at the unique key of
    versions, and get a `StateConflict` once it is committed; where it is rolled back, the next one gets through.

    Parameters
    ----------
    parent
        The version that is continued: the newest one, or any with ``branch``. None for the first version of all.
    attention_focus
        Weights, 0 or more, by members' names and ids of memories that the parent sees; stored as shares of 1.
    goals
        All of them, in their order.
    branch
        Continue an older version beside those that came since. Versions are numbered in the order of their coming,
        whatever branch they are of.

    Raises
    ------
    StateConflict
        The parent is not the newest version any more.
    ReactorNotFound
        There is no such reactor.
    FusionError
        There is no such parent, or a part makes no sense.
    """
    row = find_reactor(session, reactor)
    parts: dict[str, Any] = {}
    if context is not None:
        parts["context"] = _json("context", context)
    if memory is not None:
        parts["memory"] = _json("memory", memory)
    if attention_focus is not None:
        parts["attention_focus"] = _focus(session, row, attention_focus, parent)
    if goals is not None:
        parts["goals"] = _json("goals", {"goals": [each.to_json() for each in checked_goals(goals)]})["goals"]
    for _ in range(_ATTEMPTS):
        values = _next(session, row, parent, branch=branch) | parts
        try:
            with session.begin_nested():
                written = session.execute(insert(CognitiveState).returning(CognitiveState), [values]).scalar_one()
                return _state(row.id, written)
        except ConstraintViolation as error:
            if error.constraint != _TAKEN:
                raise
            if not branch:
                raise _conflict(row, parent, values["version"]) from error
            # Somebody took the number, not the parent: a branch goes beside it under the next one.
    raise StateConflict(f"{row.name} gets versions faster than one can be added to them; try again")


def branch(session: Session, reactor: Reactor | uuid.UUID | str, version: int, **parts: Any) -> State:
    """Continue an older version beside those that came since; ``parts`` as of `append_state`.

    A branch sees memories up to where it leaves, and none that others get from there on.

    Raises
    ------
    ReactorNotFound, FusionError
        As `append_state`.
    """
    return append_state(session, reactor, parent=version, branch=True, **parts)


def rewind(session: Session, reactor: Reactor | uuid.UUID | str, version: int) -> State:
    """Append a version with the content of an old one, after the newest; nothing that came between is lost.

    Memories that came between are still recalled: `branch` leaves them behind.

    Raises
    ------
    StateConflict
        Somebody appended a version meanwhile.
    ReactorNotFound, FusionError
        There is no such reactor, or no such version.
    """
    row = find_reactor(session, reactor)
    found = _read(session, row, version)
    if found.version is None:
        raise FusionError(_no_version(row, version, found.newest_version))
    content = {name: getattr(found, name) for name in ("context", "memory", "attention_focus", "goals")}
    own = {"reactor_id": row.id, "version": found.newest_version + 1, "parent_version": found.newest_version}
    try:
        with session.begin_nested():
            written = session.execute(insert(CognitiveState).returning(CognitiveState), [own | content]).scalar_one()
            return _state(row.id, written)
    except ConstraintViolation as error:
        if error.constraint != _TAKEN:
            raise
        raise _conflict(row, found.newest_version, own["version"]) from error


def _next(session: Session, row: Reactor, parent: int | None, *, branch: bool) -> dict[str, Any]:
    """The row of the next version with the parent's parts."""
    found = _read(session, row, parent)
    newest = found.newest_version
    if parent is None and newest is not None:
        raise StateConflict(
            f"{row.name} has a state already: continue its version {newest}, or branch from an older one"
        )
    if parent is not None and found.version is None:
        raise FusionError(_no_version(row, parent, newest))
    if parent != newest and not branch:
        raise _conflict(row, parent, newest)
    values = {"reactor_id": row.id, "version": 0 if newest is None else newest + 1, "parent_version": parent}
    if parent is None:
        return values | {"context": {}, "memory": {}, "attention_focus": {}, "goals": []}
    return values | {name: getattr(found, name) for name in ("context", "memory", "attention_focus", "goals")}


def _read(session: Session, row: Reactor, version: int | None) -> Row[Any]:
    return session.execute(_READ, {"reactor_id": row.id, "version": _number(version)}).one()


def _number(version: int | None) -> int | None:
    """One that the database can look for; none has a number below 0."""
    return version if version is None or 0 <= version <= _LARGEST else -1


def _state(reactor_id: uuid.UUID, row: Any) -> State:
    return State(
        reactor_id=reactor_id,
        version=row.version,
        parent_version=row.parent_version,
        context=row.context,
        memory=row.memory,
        attention_focus=row.attention_focus,
        goals=tuple(Goal.of(each) for each in row.goals),
        created_at=row.created_at,
    )


def _focus(session: Session, row: Reactor, weights: Mapping[str, float], parent: int | None) -> dict[str, float]:
    """Shares of 1. Weights are divided by the greatest first, so that no sum of theirs is infinite."""
    said = {str(key): float(value) for key, value in weights.items()}
    if not said:
        return {}
    if not all(math.isfinite(each) and each >= 0 for each in said.values()) or not any(said.values()):
        raise FusionError(f"attention is finite, 0 or more, and not all 0; not {said!r:.200}")
    asked = {"reactor_id": row.id, "version": _number(parent), "keys": sorted(said)}
    if unknown := said.keys() - set(session.scalars(_KNOWN_FOCUS, asked)):
        raise FusionError(
            f"{row.name} has no member, and its version {parent} sees no memory, {', '.join(sorted(unknown))!s:.200}"
        )
    most = max(said.values())
    total = math.fsum(each / most for each in said.values())
    return {key: each / most / total for key, each in said.items()}


def _json(what: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """As the database keeps it."""
    try:
        said = json.dumps(dict(value), allow_nan=False, ensure_ascii=False)
        said.encode()  # half of a surrogate pair is no text
    except (TypeError, ValueError) as error:
        raise FusionError(f"{what} holds values of JSON, and numbers are finite: {error}") from error
    if "\\u0000" in said.replace("\\\\", ""):
        raise FusionError(f"{what} has a character 0 in it, which PostgreSQL does not store")
    plain: dict[str, Any] = json.loads(said)
    return plain


def _conflict(row: Reactor, parent: int | None, newest: int | None) -> StateConflict:
    return StateConflict(
        f"somebody continued {row.name}: version {newest} came after {'nothing' if parent is None else parent}. "
        "Read the newest and decide anew, or branch"
    )


def _no_version(row: Reactor, version: int | None, newest: int | None) -> str:
    if newest is None:
        return f"{row.name} has no state yet: append_state with parent=None makes the first version"
    return f"{row.name} has no version {version} of its state; they go from 0 to {newest}"
