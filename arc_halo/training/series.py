"""Which series make the curves of a run: those of the attempts on its line, each with the steps that count."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select, text

from arc_halo.errors import RunNotFound
from arc_halo.schema import TrainingAttempt
from arc_halo.training.keys import SeriesKey
from arc_halo.training.naming import metric_not_found, nowhere_recorded, parse_metric, run_name, runs_meant

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection, Iterable, Mapping, Sequence

    import numpy as np
    from sqlalchemy.orm import Session

    from arc_halo.schema import TrainingSession

LABEL: Final = "n.scope || '/' || n.name || COALESCE(' ' || NULLIF(n.context, '{}')::text, '')"
"""SQL for what a series ``n`` is called, as in v_training_progress."""
_SERIES: Final = text(f"""
SELECT r.id AS run_id, n.id AS series_id, {LABEL} AS metric, n.name, n.scope, n.context, n.goal, line.attempt_number,
       line.after_step, line.through_step
  FROM unnest(CAST(:runs AS uuid[])) WITH ORDINALITY AS r (id, place)
 CROSS JOIN LATERAL arc_halo.attempt_line(r.id, CAST(:attempt AS integer)) AS line
  JOIN arc_halo.metric_series AS n ON n.attempt_id = line.attempt_id
 WHERE :all OR EXISTS (
    SELECT FROM unnest(CAST(:names AS text[]), CAST(:scopes AS text[]), CAST(:contexts AS jsonb[]))
                AS k (name, scope, context)
     WHERE k.name = n.name AND k.scope = n.scope AND k.context = n.context)
 ORDER BY r.place, metric, line.attempt_number
""")  # noqa: S608  # of this module's own text
_METRICS: Final = text(f"""
SELECT DISTINCT {LABEL}
  FROM arc_halo.training_attempts AS a JOIN arc_halo.metric_series AS n ON n.attempt_id = a.id
 WHERE a.training_session_id = :run
""")  # noqa: S608  # as above
# No index begins with a name: LIMIT ends the scan at the first that is found, and one of none reads all series once.
_RECORDED: Final = text("""
SELECT k.place
  FROM unnest(CAST(:names AS text[]), CAST(:scopes AS text[]), CAST(:contexts AS jsonb[]))
       WITH ORDINALITY AS k (name, scope, context, place)
 CROSS JOIN LATERAL (
    SELECT FROM arc_halo.metric_series AS n
     WHERE n.name = k.name AND n.scope = k.scope AND n.context = k.context
     LIMIT 1
 ) AS found
""")
_ALL_METRICS: Final = text(f"SELECT DISTINCT {LABEL} FROM arc_halo.metric_series AS n")  # noqa: S608  # as above


@dataclass(frozen=True, slots=True)
class Stretch:
    """A series of one attempt, and the steps of it that count: after one and through another."""

    series_id: int
    attempt_number: int
    after_step: int
    through_step: int

    def cut(self, points: np.ndarray, step: str = "step") -> np.ndarray:
        """The rows of a structured array that count, by their field ``step``."""
        steps = points[step]
        return points[(steps > self.after_step) & (steps <= self.through_step)]


@dataclass(frozen=True, slots=True)
class Track:
    """A metric along the line of a run: stretches of its attempts, oldest first.

    ``metric`` is ``scope/name``, with the context behind it where it has one; ``run`` is ``model@version/name``.
    """

    run_id: uuid.UUID
    run: str
    metric: str
    name: str
    scope: str
    context: Mapping[str, Any]
    goal: str | None
    stretches: tuple[Stretch, ...]


def find_tracks(
    session: Session,
    runs: Sequence[TrainingSession | uuid.UUID | str],
    metrics: Collection[str | SeriesKey] | None = None,
    *,
    attempt: int | None = None,
) -> list[Track]:
    """The metrics of runs along their lines, run by run in the order given, by one statement for all.

    Parameters
    ----------
    metrics
        Names of the scope ``train``, or ``scope/name`` with the context as JSON behind a blank where there is one; all
        by default. A run that has not recorded one is left out for it.
    attempt
        Whose line it is; by default the newest attempt's of each run.

    Raises
    ------
    RunNotFound
        There is no such run.
    MetricNotFound
        No run has recorded a metric that is asked for.
    """
    found = {each.id: each for each in runs_meant(session, runs)}
    keys = {metric: parse_metric(metric) for metric in metrics or ()}
    rows: dict[tuple[uuid.UUID, str], list[Any]] = {}
    for row in session.execute(_SERIES, _asked(found, keys, attempt, is_all=metrics is None)):
        rows.setdefault((row.run_id, row.metric), []).append(row)
    tracks = [_track(found[run_id], parts) for (run_id, _), parts in rows.items()]
    known = [(each.name, each.scope, each.context) for each in tracks]
    for metric, candidates in keys.items():
        if not any(each in known for each in candidates):
            first = next(iter(found.values()))
            if attempt is not None:
                _refuse_attempt(session, first, attempt)
            shown = f"{metric.scope}/{metric.name}" if isinstance(metric, SeriesKey) else metric
            raise metric_not_found(first, shown, metrics_of(session, first.id))
    return tracks


def _refuse_attempt(session: Session, run: TrainingSession, attempt: int) -> None:
    """Raise `RunNotFound` if a run has no attempt of that number, which says more than that it has no metric."""
    numbers = select(TrainingAttempt.attempt_number).where(TrainingAttempt.training_session_id == run.id)
    known = session.scalars(numbers.order_by(TrainingAttempt.attempt_number)).all()
    if attempt not in known:
        raise RunNotFound(f"{run_name(run)} has no attempt {attempt}; it has {', '.join(map(str, known)) or 'none'}")


def _asked(
    runs: Collection[uuid.UUID], keys: Mapping[Any, list[Any]], attempt: int | None, *, is_all: bool
) -> dict[str, Any]:
    candidates = [each for either in keys.values() for each in either]
    return {"runs": list(runs), "attempt": attempt, "all": is_all, **_columns(candidates)}


def _columns(candidates: Sequence[tuple[str, str, dict[str, Any]]]) -> dict[str, list[str]]:
    return {
        "names": [name for name, _, _ in candidates],
        "scopes": [scope for _, scope, _ in candidates],
        "contexts": [json.dumps(context) for _, _, context in candidates],
    }


def _track(run: TrainingSession, parts: Sequence[Any]) -> Track:
    """The newest attempt says what the goal is."""
    newest = parts[-1]
    stretches = (Stretch(each.series_id, each.attempt_number, each.after_step, each.through_step) for each in parts)
    named = (newest.metric, newest.name, newest.scope, newest.context, newest.goal)
    return Track(run.id, run_name(run), *named, tuple(stretches))


def asked_stretches(tracks: Sequence[Track]) -> dict[str, list[int]]:
    """All stretches of tracks as columns of an ``unnest``, in their order."""
    stretches = [each for track in tracks for each in track.stretches]
    return {
        "series": [each.series_id for each in stretches],
        "after": [each.after_step for each in stretches],
        "through": [each.through_step for each in stretches],
    }


def check_recorded(session: Session, metrics: Iterable[str]) -> None:
    """Refuse metrics that no attempt of any run has recorded; one statement, however many.

    Raises
    ------
    MetricNotFound
        There is one; the message lists those that come near.
    """
    candidates = [(metric, key) for metric in dict.fromkeys(metrics) for key in parse_metric(metric)]
    recorded = session.scalars(_RECORDED, _columns([key for _, key in candidates]))
    known = {candidates[place - 1][0] for place in recorded}
    for metric, _ in candidates:
        if metric not in known:
            raise nowhere_recorded(metric, session.scalars(_ALL_METRICS))


def metrics_of(session: Session, run_id: uuid.UUID) -> list[str]:
    """What a run has recorded, whether it counts or not."""
    return sorted(session.scalars(_METRICS, {"run": run_id}))
