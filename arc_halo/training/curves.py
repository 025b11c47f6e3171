"""Metrics of runs small enough to draw: of a million points that are sealed, their blocks alone are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from arc_halo.schema.training import BLOCK_POINTS
from arc_halo.training.downsampling import BUCKET, as_blocks, merge_blocks
from arc_halo.training.fetching import fetch_arrays
from arc_halo.training.series import asked_stretches, find_tracks

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.schema import TrainingSession
    from arc_halo.training.keys import SeriesKey
    from arc_halo.training.series import Track

# Segments that count as a whole say it by their blocks of 64 points; of those that a fork cuts, and of what is not
# sealed, each point is a block; so it is where a series has too few points for blocks of them to fill the buckets.
# What a fork cuts off goes here, not there: arrays travel as they are stored.
_BLOCKS: Final = """
SELECT w.place, true AS is_blocks, g.point_count, g.block_steps AS steps, g.block_values AS point_values
  FROM unnest(%(series)s::integer[], %(after)s::bigint[], %(through)s::bigint[])
       WITH ORDINALITY AS w (series_id, after_step, through_step, place)
  JOIN arc_halo.metric_segments AS g
    ON g.series_id = w.series_id AND g.first_step > w.after_step AND g.last_step <= w.through_step
  JOIN arc_halo.metric_summaries AS m ON m.series_id = w.series_id AND m.point_count > %(enough)s
 UNION ALL
SELECT w.place, false, g.point_count, g.steps, g.point_values
  FROM unnest(%(series)s::integer[], %(after)s::bigint[], %(through)s::bigint[])
       WITH ORDINALITY AS w (series_id, after_step, through_step, place)
  JOIN arc_halo.metric_segments AS g
    ON g.series_id = w.series_id AND g.last_step > w.after_step AND g.first_step <= w.through_step
  JOIN arc_halo.metric_summaries AS m ON m.series_id = w.series_id
   AND (m.point_count <= %(enough)s OR g.first_step <= w.after_step OR g.last_step > w.through_step)
 UNION ALL
SELECT w.place, false, p.point_count, p.steps, p.point_values
  FROM unnest(%(series)s::integer[], %(after)s::bigint[], %(through)s::bigint[])
       WITH ORDINALITY AS w (series_id, after_step, through_step, place)
 CROSS JOIN LATERAL (
    SELECT count(*)::integer AS point_count, array_agg(t.step) AS steps, array_agg(t.value) AS point_values
      FROM arc_halo.training_metrics AS t
     WHERE t.series_id = w.series_id AND t.step > w.after_step AND t.step <= w.through_step
    HAVING count(*) > 0
 ) AS p
"""


@dataclass(frozen=True, slots=True)
class Curve:
    """A metric of a run in buckets: shape (n,) of `BUCKET`, in the order of their steps."""

    run_id: uuid.UUID
    run: str
    metric: str
    name: str
    scope: str
    context: Mapping[str, Any]
    goal: str | None
    buckets: np.ndarray = field(repr=False)


def chart(
    session: Session,
    training_session: TrainingSession | uuid.UUID | str,
    metric: str | SeriesKey,
    *,
    buckets: int = 1000,
    attempt: int | None = None,
) -> np.ndarray:
    """A metric in at most ``buckets`` buckets of `BUCKET`, with exact minima and maxima: every spike is in it.

    Buckets divide the steps evenly; in what is sealed and has more than 64 points a bucket they end where blocks of 64
    points do.

    Parameters
    ----------
    metric
        As in `charts`.

    Raises
    ------
    RunNotFound, MetricNotFound
        There is no such run, or it has recorded no such metric.

    Examples
    --------
    >>> chart(session, "minilm/tune", "loss")["max_value"].max()  # doctest: +SKIP
    11.2
    """
    return charts(session, [training_session], [metric], buckets=buckets, attempt=attempt)[0].buckets


def charts(
    session: Session,
    runs: Sequence[TrainingSession | uuid.UUID | str],
    metrics: Collection[str | SeriesKey] | None = None,
    *,
    buckets: int = 1000,
    attempt: int | None = None,
) -> list[Curve]:
    """Metrics of runs in buckets, run by run; one query, however many there are.

    Parameters
    ----------
    metrics
        Names of the scope ``train``, or ``scope/name`` with the context as JSON behind a blank where there is one; all
        by default. A run that has not recorded one is left out for it.
    buckets
        For each curve.
    attempt
        Whose line it is; by default the newest attempt's of each run.

    Raises
    ------
    RunNotFound
        There is no such run.
    MetricNotFound
        No run has recorded a metric that is asked for.
    MetricError
        There is to be no bucket.
    """
    tracks = find_tracks(session, runs, metrics, attempt=attempt)
    return [
        Curve(*(each.run_id, each.run, each.metric, each.name, each.scope, each.context, each.goal), merged)
        for each, merged in zip(tracks, _fetch_buckets(session, tracks, buckets), strict=True)
    ]


def _fetch_buckets(session: Session, tracks: Sequence[Track], buckets: int) -> list[np.ndarray]:
    stretches = [(number, each) for number, track in enumerate(tracks) for each in track.stretches]
    segments: list[list[Any]] = [[] for _ in tracks]
    points: list[list[np.ndarray]] = [[] for _ in tracks]
    asked = asked_stretches(tracks) | {"enough": BLOCK_POINTS * buckets}
    for place, is_blocks, count, steps, values in fetch_arrays(session, _BLOCKS, asked):
        number, stretch = stretches[place - 1]
        if is_blocks:
            segments[number].append((count, steps, values))
        else:
            points[number].append(stretch.cut(as_blocks(steps, values), "first_step"))
    curves = (np.concatenate([_blocks(whole), *single]) for whole, single in zip(segments, points, strict=True))
    return [merge_blocks(each[np.argsort(each["first_step"])], buckets) for each in curves]


def _blocks(segments: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> np.ndarray:
    """Those of whole segments, by their point counts and their columns ``block_steps`` and ``block_values``."""
    if not segments:
        return np.empty(0, BUCKET)
    counts, steps, values = zip(*segments, strict=True)
    lengths = np.array([each.shape[1] for each in steps])
    blocks = np.empty(lengths.sum(), BUCKET)
    blocks["point_count"] = BLOCK_POINTS
    blocks["point_count"][lengths.cumsum() - 1] = np.array(counts) - BLOCK_POINTS * (lengths - 1)
    of_steps, of_values = np.concatenate(steps, axis=1), np.concatenate(values, axis=1)
    for name, column in zip(("first_step", "last_step", "min_at_step", "max_at_step"), of_steps, strict=True):
        blocks[name] = column
    for name, column in zip(("last_value", "min_value", "max_value"), of_values, strict=True):
        blocks[name] = column
    return blocks
