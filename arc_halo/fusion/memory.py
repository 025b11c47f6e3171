"""What a reactor remembers, and recalls by likeness."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import bindparam, text

from arc_halo.errors import FusionError
from arc_halo.fusion.creating import find_reactor
from arc_halo.fusion.state import LINE, read_state
from arc_halo.fusion.vectors import checked_vector
from arc_halo.schema import CognitiveMemory
from arc_halo.schema.types import Vector

if TYPE_CHECKING:
    import uuid

    import numpy as np
    from sqlalchemy.orm import Session

    from arc_halo.schema import Reactor

# By logarithms: PostgreSQL raises where a product or power is too small for a number, as that of an old memory is.
_RECALL: Final = text(f"""
{LINE}
SELECT likely.id, likely.content, likely.importance, likely.state_version, likely.created_at,
       likely.similarity, likely.age_seconds
  FROM (SELECT c.id, c.content, c.importance, c.state_version, c.created_at,
               1 - (c.vector OPERATOR(public.<=>) :vector) AS similarity,
               greatest(0, extract(epoch FROM now() - c.created_at)::double precision) AS age_seconds
          FROM arc_halo.cognitive_memories AS c
          JOIN line ON line.version = c.state_version
         WHERE c.reactor_id = :reactor_id AND c.dimension = :dimension) AS likely
 ORDER BY CASE WHEN likely.similarity > 0 AND likely.importance > 0
               THEN ln(likely.similarity) + ln(likely.importance) - likely.age_seconds * :decay
               ELSE '-Infinity'::double precision END DESC,
          likely.created_at DESC, likely.id DESC
 LIMIT :k
""").bindparams(bindparam("vector", type_=Vector))  # noqa: S608  # constants of these modules


@dataclass(frozen=True, slots=True)
class Recalled:
    """A memory, and how strongly it came back.

    Attributes
    ----------
    similarity
        Cosine of its vector and the one asked for, from -1 to 1.
    age_seconds
        Since it was remembered, by the database's clock.
    score
        What memories are ordered by.
    """

    id: uuid.UUID
    content: str
    importance: float
    state_version: int
    created_at: dt.datetime
    similarity: float
    age_seconds: float
    score: float


def remember(
    session: Session,
    reactor: Reactor | uuid.UUID | str,
    content: str,
    vector: np.ndarray,
    importance: float = 1.0,
    *,
    state_version: int | None = None,
) -> CognitiveMemory:
    """Keep something to be recalled by its likeness.

    Parameters
    ----------
    vector
        Of the content, shape [dimension]; stored as float32.
    importance
        How much it counts, 0 or more.
    state_version
        The version of the state that it belongs to, by default the newest: it is seen from there on.

    Raises
    ------
    ReactorNotFound
        There is no such reactor.
    FusionError
        There is no such version, or a value that does not fit.
    """
    checked = checked_vector(vector)
    if not (math.isfinite(importance) and importance >= 0):
        raise FusionError(f"importance is finite, and 0 or more, not {importance}")
    if "\0" in content or not _is_text(content):
        raise FusionError("a memory has a character in it that PostgreSQL does not store: 0, or half of a pair")
    state = read_state(session, reactor, state_version)
    row = CognitiveMemory(
        reactor_id=state.reactor_id,
        state_version=state.version,
        content=content,
        importance=float(importance),
        dimension=len(checked),
        vector=checked,
    )
    session.add(row)
    session.flush()
    return row


def recall(
    session: Session,
    reactor: Reactor | uuid.UUID | str,
    vector: np.ndarray,
    k: int = 5,
    *,
    half_life: dt.timedelta | None = None,
    at_version: int | None = None,
) -> list[Recalled]:
    r"""The memories that come back strongest, by one statement that looks at all of them: exact, without an index.

    :math:`\mathrm{score} = \max(0, \cos(v, m)) \cdot \mathrm{importance} \cdot 0.5^{\mathrm{age} / h}`,
    h being the half-life.

    Relevance, importance and recency are those of Park et al., Generative agents (2023), where each is scaled to 0..1
    among the candidates, and they are added. They are multiplied here: a score then depends on its own memory alone,
    and what has nothing to do with the question does not come back for being new.

    Parameters
    ----------
    vector
        Shape [dimension]. Memories of another dimension are not looked at.
    k
        How many at most.
    half_life
        The age at which a memory counts by half; without one, age does not matter.
    at_version
        The version to recall from, by default the newest. It sees what belongs to it and to its ancestors, so that
        branches do not see each other's memories.

    Raises
    ------
    ReactorNotFound
        There is no such reactor.
    FusionError
        The vector has no direction, or k or half_life is not above 0.
    """
    checked = checked_vector(vector)
    if k < 1:
        raise FusionError(f"at least one memory is recalled, not {k}")
    if half_life is not None and half_life <= dt.timedelta(0):
        raise FusionError(f"a half-life is above 0, not {half_life}")
    decay = 0.0 if half_life is None else math.log(2) / half_life.total_seconds()
    asked = {
        "reactor_id": find_reactor(session, reactor).id,
        "version": at_version,
        "vector": checked,
        "dimension": len(checked),
        "decay": decay,
        "k": k,
    }
    return [
        Recalled(
            **row,
            score=max(0.0, row["similarity"]) * row["importance"] * math.exp(-row["age_seconds"] * decay),
        )
        for row in session.execute(_RECALL, asked).mappings()
    ]


def _is_text(content: str) -> bool:
    try:
        content.encode()
    except UnicodeEncodeError:
        return False
    return True
