"""Keys of series: what tells the metrics of an attempt apart, and the small integers that stand for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
from sqlalchemy import text

from arc_halo.errors import MetricError

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection

    from sqlalchemy.orm import Session

SCOPES: Final = ("train", "validation", "test", "system")
GOALS: Final = ("minimize", "maximize")
_MAX_NAME_LENGTH: Final = 500
_MAX_CONTEXT_LENGTH: Final = 500
# Both stand in one row of an index, which holds 2,704 bytes; jsonb takes up to 2.5 times what its text does.
_MAX_NAME_NBYTES: Final = 1000
_MAX_CONTEXT_NBYTES: Final = 600

Goal = Literal["minimize", "maximize"]


class SeriesKey(NamedTuple):
    """What tells the series of an attempt apart; made by `series_key`.

    Attributes
    ----------
    context
        Canonical JSON: equal contexts have equal text.
    """

    name: str
    scope: str = "train"
    context: str = "{}"


def series_key(name: str, scope: str = "train", context: Mapping[str, Any] | None = None) -> SeriesKey:
    """The key of a series.

    Parameters
    ----------
    name
        1 to 500 printable characters, up to 1,000 bytes of UTF-8.
    scope
        ``train``, ``validation``, ``test`` or ``system``.
    context
        What else tells it apart, such as ``{"rank": 3}``: a mapping whose
        JSON has up to 500 characters and 600 bytes. 1 and 1.0 are the same.

    Raises
    ------
    MetricError
        One of them cannot be recorded.

    Examples
    --------
    >>> series_key("loss", "validation", {"rank": 3, "data": "news"})
    SeriesKey(name='loss', scope='validation', context='{"data":"news","rank":3}')
    """
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > _MAX_NAME_LENGTH:
        raise MetricError(f"a metric is named by 1 to {_MAX_NAME_LENGTH} printable characters, not {name!r:.80}")
    if len(name.encode()) > _MAX_NAME_NBYTES:
        raise MetricError(f"metric {name!r:.80} takes {len(name.encode()):,} bytes; give up to {_MAX_NAME_NBYTES:,}")
    if scope not in SCOPES:
        raise MetricError(f"the scope of metric {name!r:.80} is one of {', '.join(SCOPES)}, not {scope!r:.80}")
    if context is not None and not isinstance(context, Mapping):
        raise MetricError(f"the context of metric {name!r:.80} is a mapping such as {{'rank': 3}}, not {context!r:.80}")
    try:
        canonical = json.dumps(
            _plain(dict(context or {})), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise MetricError(
            f"the context of metric {name!r:.80} is no JSON: {error}; give text, numbers, lists"
        ) from None
    nbytes = len(canonical.encode(errors="replace"))  # what cannot be encoded cannot be printed either
    is_long = len(canonical) > _MAX_CONTEXT_LENGTH or nbytes > _MAX_CONTEXT_NBYTES
    if is_long or not canonical.isprintable() or "\\u0000" in canonical:
        raise MetricError(
            f"the context of metric {name!r:.80} takes {len(canonical)} characters and {nbytes} bytes, or has some "
            f"that cannot be printed; give up to {_MAX_CONTEXT_LENGTH} printable ones of {_MAX_CONTEXT_NBYTES} bytes"
        )
    return SeriesKey(name, scope, canonical)


def _plain(value: Any) -> Any:
    """As JSON has it, where 1.0 is 1: the database holds them equal."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("its keys are not text")
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


_SERIES_IDS: Final = text("""
WITH wanted AS MATERIALIZED (
    SELECT w.name, w.scope, w.context::jsonb AS context, w.goal, w.place
      FROM unnest(CAST(:names AS text[]), CAST(:scopes AS text[]), CAST(:contexts AS text[]), CAST(:goals AS text[]))
           WITH ORDINALITY AS w (name, scope, context, goal, place)
), found AS MATERIALIZED (
    SELECT s.id, w.name, w.scope, w.context, w.goal, s.goal AS known_goal
      FROM wanted AS w
      JOIN arc_halo.metric_series AS s
        ON s.attempt_id = :attempt_id AND s.name = w.name AND s.scope = w.scope AND s.context = w.context
), made AS (
    INSERT INTO arc_halo.metric_series AS s (attempt_id, name, scope, context, goal)
    SELECT :attempt_id, w.name, w.scope, w.context, min(w.goal)
      FROM wanted AS w
     WHERE NOT EXISTS (SELECT FROM found AS f
                        WHERE f.name = w.name AND f.scope = w.scope AND f.context = w.context)
     GROUP BY w.name, w.scope, w.context
     -- Everybody in this order. Who comes second waits, and then is told the id by updating nothing.
     ORDER BY w.name, w.scope, w.context
        ON CONFLICT (attempt_id, name, scope, context) DO UPDATE SET goal = COALESCE(excluded.goal, s.goal)
    RETURNING s.id, s.name, s.scope, s.context
), aimed AS (
    UPDATE arc_halo.metric_series AS s SET goal = f.goal
      FROM found AS f
     WHERE s.id = f.id AND f.goal <> COALESCE(f.known_goal, '')
)
SELECT w.place, ids.id
  FROM wanted AS w
  JOIN (SELECT f.id, f.name, f.scope, f.context FROM found AS f
         UNION SELECT m.id, m.name, m.scope, m.context FROM made AS m) AS ids
    ON ids.name = w.name AND ids.scope = w.scope AND ids.context = w.context
""")


def series_ids(
    session: Session,
    attempt_id: uuid.UUID,
    keys: Collection[SeriesKey],
    goals: Mapping[str, Goal] | None = None,
) -> dict[SeriesKey, int]:
    """The ids of an attempt's series, made where they are missing; safe beside others who make the same.

    Parameters
    ----------
    goals
        By name of a metric, whichever its scope, whether less or more of it is better.

    Raises
    ------
    MetricError
        A goal is neither ``minimize`` nor ``maximize``.
    ConstraintViolation
        There is no such attempt.
    """
    goals = goals or {}
    for name, goal in goals.items():
        if goal not in GOALS:
            raise MetricError(f"the goal of metric {name!r:.80} is minimize or maximize, not {goal!r:.80}")
    wanted = list(dict.fromkeys(keys))
    if not wanted:
        return {}
    session.flush()
    found = session.execute(
        _SERIES_IDS,
        {
            "attempt_id": attempt_id,
            "names": [key.name for key in wanted],
            "scopes": [key.scope for key in wanted],
            "contexts": [key.context for key in wanted],
            "goals": [goals.get(key.name) for key in wanted],
        },
    )
    return {wanted[place - 1]: series_id for place, series_id in sorted(found)}
