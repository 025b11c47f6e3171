"""What is asked of metrics most: last, best, minimum and maximum along the line of a run, without reading points."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from arc_halo.training.fetching import fetch_arrays

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection, Iterator, Sequence

    from sqlalchemy.orm import Session

T = TypeVar("T")
# A row for each attempt that counts, its series as arrays: half a million summaries are no rows to pass one by one.
_SUMMARIES: Final = """
SELECT r.id, line.after_step, line.through_step, s.*
  FROM unnest(%(runs)s::uuid[]) AS r (id)
 CROSS JOIN LATERAL arc_halo.attempt_line(r.id) AS line
 CROSS JOIN LATERAL (
    SELECT array_agg(n.id::bigint),
           array_agg(n.scope || '/' || n.name || COALESCE(' ' || NULLIF(n.context, '{}')::text, '')),
           array_agg(n.goal),
           array_agg(m.point_count),
           array_agg(m.nan_count),
           array_agg(m.first_step),
           array_agg(m.last_step),
           array_agg(m.last_value),
           array_agg(m.last_recorded_at),
           array_agg(COALESCE(m.min_value, 'NaN')),
           array_agg(COALESCE(m.min_at_step, -1)),
           array_agg(COALESCE(m.max_value, 'NaN')),
           array_agg(COALESCE(m.max_at_step, -1))
      FROM arc_halo.metric_series AS n
      JOIN arc_halo.metric_summaries AS m ON m.series_id = n.id
     WHERE n.attempt_id = line.attempt_id AND m.last_step > line.after_step AND m.first_step <= line.through_step
    HAVING count(*) > 0
 ) AS s
 ORDER BY r.id, line.attempt_number
"""
# Of a series that a fork cuts, points are read. Arrays compare element by element, so min finds the step, too.
_CUT: Final = """
SELECT w.place, count(*), count(*) FILTER (WHERE p.value = 'NaN'), min(p.step), max(p.step),
       (max(ARRAY[p.step, p.value]))[2],
       (array_agg(p.recorded_at ORDER BY p.step DESC))[1] AT TIME ZONE 'UTC',
       COALESCE(min(p.value), 'NaN'),
       COALESCE((min(ARRAY[p.value, p.step]) FILTER (WHERE p.value <> 'NaN'))[2]::bigint, -1),
       COALESCE(max(p.value) FILTER (WHERE p.value <> 'NaN'), 'NaN'),
       COALESCE((min(ARRAY[-p.value, p.step]) FILTER (WHERE p.value <> 'NaN'))[2]::bigint, -1)
  FROM unnest(%(series)s::integer[], %(after)s::bigint[], %(through)s::bigint[])
       WITH ORDINALITY AS w (series_id, after_step, through_step, place)
  JOIN arc_halo.v_training_points AS p
    ON p.series_id = w.series_id AND p.step > w.after_step AND p.step <= w.through_step
 GROUP BY w.place
"""
_COLUMNS: Final = (
    *("point_count", "nan_count", "first_step", "last_step", "last_value", "last_recorded_at"),
    *("min_value", "min_at_step", "max_value", "max_at_step"),
)


@dataclass(frozen=True, slots=True)
class MetricSummary:
    """A metric along the line of a run; minimum and maximum are None if every value is NaN."""

    metric: str
    goal: str | None
    point_count: int
    nan_count: int
    first_step: int
    last_step: int
    last_value: float
    last_recorded_at: dt.datetime
    min_value: float | None
    min_at_step: int | None
    max_value: float | None
    max_at_step: int | None

    @property
    def best_value(self) -> float | None:
        """By the metric's goal; None without one."""
        return {"minimize": self.min_value, "maximize": self.max_value}.get(self.goal or "")

    @property
    def best_at_step(self) -> int | None:
        """Where the best value was first reached."""
        return {"minimize": self.min_at_step, "maximize": self.max_at_step}.get(self.goal or "")

    def joined(self, later: MetricSummary) -> MetricSummary:
        """With the part of a later attempt, whose goal counts; of equal values the earlier step."""
        low = min((each for each in (self, later) if each.min_value is not None), key=_minimum, default=self)
        high = max((each for each in (self, later) if each.max_value is not None), key=_maximum, default=self)
        return replace(
            later,
            goal=later.goal or self.goal,
            point_count=self.point_count + later.point_count,
            nan_count=self.nan_count + later.nan_count,
            first_step=self.first_step,
            min_value=low.min_value,
            min_at_step=low.min_at_step,
            max_value=high.max_value,
            max_at_step=high.max_at_step,
        )


def _minimum(summary: MetricSummary) -> float:
    assert summary.min_value is not None
    return summary.min_value


def _maximum(summary: MetricSummary) -> float:
    assert summary.max_value is not None
    return summary.max_value


class RunMetrics(Mapping[str, MetricSummary]):
    """The metrics of a run by their names, ``scope/name``; of the scope ``train`` the name alone finds one, too.

    Summaries are made when they are asked for.
    """

    def __init__(self, attempts: Sequence[_Attempt] = ()) -> None:
        self._attempts = attempts
        self._parts: dict[str, list[tuple[_Attempt, int]]] | None = None

    def __getitem__(self, metric: str) -> MetricSummary:
        places = self._places()
        parts = places[metric] if metric in places else places[f"train/{metric}"]
        summary, *later = (attempt.summary(place) for attempt, place in parts)
        for each in later:
            summary = summary.joined(each)
        return summary

    @property
    def last_values(self) -> dict[str, float]:
        """Of every metric its last value: what lists of many runs show, without the rest of each summary."""
        return {name: value for each in self._attempts for name, value in each.of_all(each.last_values)}

    @property
    def goals(self) -> dict[str, str | None]:
        """Of every metric its goal, as its latest attempt says."""
        known: dict[str, str | None] = {}
        for each in self._attempts:
            known |= {name: goal or known.get(name) for name, goal in each.of_all(each.goals)}
        return known

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._places()))

    def __len__(self) -> int:
        return len(self._places())

    def __repr__(self) -> str:
        return f"RunMetrics({', '.join(self)})"

    def _places(self) -> dict[str, list[tuple[_Attempt, int]]]:
        if self._parts is None:
            self._parts = {}
            for attempt in self._attempts:
                for metric, place in attempt.of_all(range(len(attempt.metrics))):
                    self._parts.setdefault(metric, []).append((attempt, place))
        return self._parts


@dataclass(slots=True)
class _Attempt:
    """Summaries of one attempt, by columns."""

    after_step: int
    through_step: int
    series: np.ndarray
    metrics: list[str]
    goals: list[str | None]
    columns: dict[str, np.ndarray]
    _rows: list[tuple[Any, ...]] | None = None

    def cut_places(self) -> np.ndarray:
        """Those of which not every point counts."""
        first, last = self.columns["first_step"], self.columns["last_step"]
        return np.flatnonzero((first <= self.after_step) | (last > self.through_step))

    @property
    def last_values(self) -> list[float]:
        values: list[float] = self.columns["last_value"].tolist()
        return values

    def of_all(self, values: Sequence[T]) -> Iterator[tuple[str, T]]:
        """Values by the names of the metrics of which points count."""
        counts = self.columns["point_count"].tolist()
        return ((name, each) for name, each, count in zip(self.metrics, values, counts, strict=True) if count)

    def summary(self, place: int) -> MetricSummary:
        if self._rows is None:
            self._rows = list(zip(*(self.columns[name].tolist() for name in _COLUMNS), strict=True))
        *counts, moment, low, low_at, high, high_at = self._rows[place]
        return MetricSummary(
            *(self.metrics[place], self.goals[place], *counts, moment.replace(tzinfo=dt.UTC)),
            *((low, low_at) if low_at >= 0 else (None, None)),
            *((high, high_at) if high_at >= 0 else (None, None)),
        )


def summarize_runs(session: Session, run_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, RunMetrics]:
    """All metrics of runs, along the line of the newest attempt of each.

    One statement, however many there are; where forks cut series, one more for all of those.
    """
    attempts: dict[uuid.UUID, list[_Attempt]] = {each: [] for each in run_ids}
    for run_id, after, through, series, metrics, goals, *columns in fetch_arrays(
        session, _SUMMARIES, {"runs": list(attempts)}
    ):
        named = dict(zip(_COLUMNS, columns, strict=True))
        attempts[run_id].append(_Attempt(after, through, series, metrics, goals, named))
    _read_cut(session, [each for line in attempts.values() for each in line])
    return {run_id: RunMetrics(line) for run_id, line in attempts.items()}


def _read_cut(session: Session, attempts: Sequence[_Attempt]) -> None:
    """Summarise the points that count of series that a fork cuts, in place of the whole series."""
    cut = [(attempt, int(place)) for attempt in attempts for place in attempt.cut_places()]
    if not cut:
        return
    asked: dict[str, Any] = {
        "series": [int(attempt.series[place]) for attempt, place in cut],
        "after": [attempt.after_step for attempt, _ in cut],
        "through": [attempt.through_step for attempt, _ in cut],
    }
    for attempt, place in cut:
        attempt.columns["point_count"][place] = 0  # as long as none is found
    for row in fetch_arrays(session, _CUT, asked):
        attempt, place = cut[row[0] - 1]
        for name, value in zip(_COLUMNS, row[1:], strict=True):
            attempt.columns[name][place] = value
