"""The history of a metric: every point that counts, along the line of attempts, each step once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from arc_halo.errors import ConfigurationError, MetricError
from arc_halo.training.fetching import fetch_arrays
from arc_halo.training.keys import series_key
from arc_halo.training.naming import find_run, metric_not_found
from arc_halo.training.series import asked_stretches, find_tracks, metrics_of
from arc_halo.training.summaries import summarize_runs

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.schema import TrainingSession
    from arc_halo.training.keys import Goal, SeriesKey
    from arc_halo.training.series import Track
    from arc_halo.training.summaries import MetricSummary

HISTORY: Final = np.dtype(
    [
        ("step", np.int64),
        ("epoch", np.float64),
        ("value", np.float64),
        ("recorded_at", "datetime64[us]"),
        ("attempt_number", np.int32),
    ]
)
"""A point of a history: ``epoch`` is NaN where none was given, ``recorded_at`` is UTC."""
# Arrays travel as they are stored; what a fork cuts off goes here, not there.
_POINTS: Final = """
SELECT w.place, g.steps, g.epochs, g.point_values, g.recorded_times
  FROM unnest(%(series)s::integer[], %(after)s::bigint[], %(through)s::bigint[])
       WITH ORDINALITY AS w (series_id, after_step, through_step, place)
  JOIN arc_halo.metric_segments AS g
    ON g.series_id = w.series_id AND g.last_step > w.after_step AND g.first_step <= w.through_step
 UNION ALL
SELECT w.place, p.steps, p.epochs, p.point_values, p.recorded_times
  FROM unnest(%(series)s::integer[], %(after)s::bigint[], %(through)s::bigint[])
       WITH ORDINALITY AS w (series_id, after_step, through_step, place)
 CROSS JOIN LATERAL (
    SELECT array_agg(t.step) AS steps, array_agg(t.epoch) AS epochs, array_agg(t.value) AS point_values,
           array_agg(t.recorded_at) AS recorded_times
      FROM arc_halo.training_metrics AS t
     WHERE t.series_id = w.series_id AND t.step > w.after_step AND t.step <= w.through_step
    HAVING count(*) > 0
 ) AS p
"""


def history(
    session: Session,
    training_session: TrainingSession | uuid.UUID | str,
    metric: str | SeriesKey,
    *,
    scope: str = "train",
    context: Mapping[str, Any] | None = None,
    attempt: int | None = None,
    as_frame: bool = False,
) -> Any:
    """All points of a metric along the line of attempts, in the order of their steps, each step once.

    Parameters
    ----------
    metric
        A name, or all in one: ``validation/loss``, ``train/loss {"rank": 1}``; or a `SeriesKey`.
    scope, context
        Of which series of that name.
    attempt
        Number of the attempt whose line it is; by default the newest.
    as_frame
        As a `pandas.DataFrame` with ``step`` as its index and ``recorded_at`` in UTC.

    Returns
    -------
    ndarray or DataFrame
        Of `HISTORY`, shape (n,).

    Raises
    ------
    RunNotFound, MetricNotFound
        There is no such run, or it has recorded no such metric.
    MetricError
        Name, scope or context are none that could be recorded.
    ConfigurationError
        A frame is asked for and pandas is not installed.

    Examples
    --------
    >>> points = history(session, "minilm/tune", "loss")  # doctest: +SKIP
    >>> points["step"], points["value"]  # doctest: +SKIP
    """
    if isinstance(metric, str) and (scope != "train" or context):
        metric = series_key(metric, scope, context)
    track = find_tracks(session, [training_session], [metric], attempt=attempt)[0]
    (points,) = fetch_histories(session, [track])
    return as_data_frame(points) if as_frame else points


class Reached(NamedTuple):
    """A value of a metric, and the first step that had it."""

    step: int
    value: float


def latest(
    session: Session, training_session: TrainingSession | uuid.UUID | str, metric: str = "loss"
) -> Reached | None:
    """The last value of a metric along the line of the newest attempt; no point is read. None before the first.

    Raises
    ------
    RunNotFound, MetricNotFound
        There is no such run, or it has recorded no such metric.
    """
    summary = _summary(session, training_session, metric)
    return None if summary is None else Reached(summary.last_step, summary.last_value)


def best(
    session: Session,
    training_session: TrainingSession | uuid.UUID | str,
    metric: str = "loss",
    *,
    goal: Goal | None = None,
) -> Reached | None:
    """The best value of a metric along the line of the newest attempt; no point is read. None before the first.

    Parameters
    ----------
    goal
        Whether that is the smallest or the largest; by default what the run says.

    Raises
    ------
    RunNotFound, MetricNotFound
        There is no such run, or it has recorded no such metric.
    MetricError
        Neither the run nor the caller says what is better.
    """
    summary = _summary(session, training_session, metric)
    if summary is None:
        return None
    aim = goal or summary.goal
    if aim is None:
        raise MetricError(f"nobody said what is better of {summary.metric}; give goal='minimize' or 'maximize'")
    aimed = replace(summary, goal=aim)
    if aimed.best_value is None or aimed.best_at_step is None:
        return None
    return Reached(aimed.best_at_step, aimed.best_value)


def _summary(session: Session, reference: TrainingSession | uuid.UUID | str, metric: str) -> MetricSummary | None:
    run = find_run(session, reference)
    found = summarize_runs(session, [run.id])[run.id].get(metric)
    if found is None and not {metric, f"train/{metric}"} & set(known := metrics_of(session, run.id)):
        raise metric_not_found(run, metric, known)
    return found


def fetch_histories(session: Session, tracks: Sequence[Track]) -> list[np.ndarray]:
    """The points of each track, of `HISTORY`; one query for all of them."""
    stretches = [(number, each) for number, track in enumerate(tracks) for each in track.stretches]
    parts: list[list[np.ndarray]] = [[np.empty(0, HISTORY)] for _ in tracks]
    for place, *columns in fetch_arrays(session, _POINTS, asked_stretches(tracks)):
        number, stretch = stretches[place - 1]
        points = np.empty(len(columns[0]), HISTORY)
        points["attempt_number"] = stretch.attempt_number
        for name, column in zip(("step", "epoch", "value", "recorded_at"), columns, strict=True):
            points[name] = column
        parts[number].append(stretch.cut(points))
    joined = (np.concatenate(each) for each in parts)
    return [each[np.argsort(each["step"])] for each in joined]


def as_data_frame(points: np.ndarray) -> Any:
    """Points as a frame with ``step`` as its index.

    Raises
    ------
    ConfigurationError
        pandas is not installed.
    """
    try:
        import pandas as pd  # noqa: PLC0415  an extra
    except ImportError as error:
        raise ConfigurationError("frames are made by pandas: pip install 'arc-halo[notebook]'") from error
    frame = pd.DataFrame({name: points[name] for name in HISTORY.names or ()}).set_index("step")
    frame["recorded_at"] = frame["recorded_at"].dt.tz_localize("UTC")
    return frame
