"""The history of a metric: every point that counts, along the line of attempts, each step once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from arc_halo.errors import ConfigurationError
from arc_halo.training.curves import stretches_asked
from arc_halo.training.fetching import fetch_rows
from arc_halo.training.series import find_tracks

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.schema import TrainingSession
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
_POINT: Final = np.dtype([("place", np.int32), *((name, HISTORY[name]) for name in HISTORY.names or ())])
_POINTS: Final = """
SELECT w.place, p.step, COALESCE(p.epoch, 'NaN') AS epoch, p.value, p.recorded_at, w.attempt_number
  FROM unnest(%(series)s::integer[], %(after)s::bigint[], %(through)s::bigint[], %(places)s::integer[],
              %(attempts)s::integer[]) AS w (series_id, after_step, through_step, place, attempt_number)
 CROSS JOIN LATERAL (
    SELECT t.step, t.epoch, t.value, t.recorded_at
      FROM arc_halo.training_metrics AS t
     WHERE t.series_id = w.series_id AND t.step > w.after_step AND t.step <= w.through_step
     UNION ALL
    SELECT u.step, u.epoch, u.value, u.recorded_at
      FROM arc_halo.metric_segments AS g
     CROSS JOIN LATERAL unnest(g.steps, g.epochs, g.point_values, g.recorded_times)
           AS u (step, epoch, value, recorded_at)
     WHERE g.series_id = w.series_id AND g.last_step > w.after_step AND g.first_step <= w.through_step
       AND u.step > w.after_step AND u.step <= w.through_step
 ) AS p
"""


def history(
    session: Session,
    training_session: TrainingSession | uuid.UUID | str,
    metric: str | tuple[str, str, str],
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
    ConfigurationError
        A frame is asked for and pandas is not installed.

    Examples
    --------
    >>> points = history(session, "minilm/tune", "loss")  # doctest: +SKIP
    >>> points["step"], points["value"]  # doctest: +SKIP
    """
    if isinstance(metric, str) and (scope != "train" or context):
        metric = (metric, scope, json.dumps(dict(context or {})))
    track = find_tracks(session, [training_session], [metric], attempt=attempt)[0]
    (points,) = fetch_histories(session, [track])
    return as_data_frame(points) if as_frame else points


def fetch_histories(session: Session, tracks: Sequence[Track]) -> list[np.ndarray]:
    """The points of each track, of `HISTORY`; one query for all of them."""
    attempts = [each.attempt_number for track in tracks for each in track.stretches]
    points = fetch_rows(session, _POINTS, stretches_asked(tracks) | {"attempts": attempts}, _POINT)
    points = points[np.lexsort((points["step"], points["place"]))]
    plain = np.empty(len(points), HISTORY)
    for name in HISTORY.names or ():
        plain[name] = points[name]
    edges = np.searchsorted(points["place"], np.arange(len(tracks) + 1))
    return [plain[edges[place] : edges[place + 1]] for place in range(len(tracks))]


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
