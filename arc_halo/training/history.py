"""The history of a metric: every point that counts, along the line of attempts, each step once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from arc_halo.errors import ConfigurationError
from arc_halo.training.fetching import fetch_arrays
from arc_halo.training.keys import series_key
from arc_halo.training.series import asked_stretches, find_tracks

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.schema import TrainingSession
    from arc_halo.training.keys import SeriesKey
    from arc_halo.training.series import Track

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
