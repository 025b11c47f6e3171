"""Metrics of runs small enough to draw: of a million points that are sealed, their blocks alone are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from arc_halo.training.downsampling import BUCKET, merge_blocks
from arc_halo.training.fetching import fetch_rows
from arc_halo.training.series import find_tracks

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.schema import TrainingSession
    from arc_halo.training.series import Track

_BLOCK: Final = np.dtype([("place", np.int32), *((name, BUCKET[name]) for name in BUCKET.names or ())])
# Segments that count as a whole say it by their blocks of 64 points; of those that a fork cuts, and of what is not
# sealed, each point is a block.
_BLOCKS: Final = """
SELECT w.place, b.first_step, b.last_step, b.point_count, b.min_value, b.min_at_step, b.max_value, b.max_at_step,
       b.last_value
  FROM unnest(%(series)s::integer[], %(after)s::bigint[], %(through)s::bigint[], %(places)s::integer[])
       AS w (series_id, after_step, through_step, place)
 CROSS JOIN LATERAL (
    SELECT u.first_step, u.last_step, LEAST(64, g.point_count - 64 * (u.n - 1)) AS point_count,
           u.min_value, u.min_at_step, u.max_value, u.max_at_step, u.last_value
      FROM arc_halo.metric_segments AS g
     CROSS JOIN LATERAL unnest(g.block_steps[1:1], g.block_steps[2:2], g.block_steps[3:3], g.block_steps[4:4],
                               g.block_values[1:1], g.block_values[2:2], g.block_values[3:3])
           WITH ORDINALITY AS u (first_step, last_step, min_at_step, max_at_step, last_value, min_value, max_value, n)
     WHERE g.series_id = w.series_id AND g.first_step > w.after_step AND g.last_step <= w.through_step
     UNION ALL
    SELECT u.step, u.step, 1, u.value, u.step, u.value, u.step, u.value
      FROM arc_halo.metric_segments AS g
     CROSS JOIN LATERAL unnest(g.steps, g.point_values) AS u (step, value)
     WHERE g.series_id = w.series_id AND NOT (g.first_step > w.after_step AND g.last_step <= w.through_step)
       AND u.step > w.after_step AND u.step <= w.through_step
     UNION ALL
    SELECT t.step, t.step, 1, t.value, t.step, t.value, t.step, t.value
      FROM arc_halo.training_metrics AS t
     WHERE t.series_id = w.series_id AND t.step > w.after_step AND t.step <= w.through_step
 ) AS b
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
    metric: str | tuple[str, str, str],
    *,
    buckets: int = 1000,
    attempt: int | None = None,
) -> np.ndarray:
    """A metric in at most ``buckets`` buckets of `BUCKET`, with exact minima and maxima: every spike is in it.

    Buckets divide the steps evenly; in what is sealed they end where blocks of 64 points do.

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
    metrics: Collection[str | tuple[str, str, str]] | None = None,
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
    blocks = fetch_rows(session, _BLOCKS, stretches_asked(tracks), _BLOCK)
    blocks = blocks[np.lexsort((blocks["first_step"], blocks["place"]))]
    edges = np.searchsorted(blocks["place"], np.arange(len(tracks) + 1))
    plain = np.empty(len(blocks), BUCKET)
    for name in BUCKET.names or ():
        plain[name] = blocks[name]
    return [merge_blocks(plain[edges[place] : edges[place + 1]], buckets) for place in range(len(tracks))]


def stretches_asked(tracks: Sequence[Track]) -> dict[str, list[int]]:
    """The stretches of tracks as the columns of an ``unnest``; a place is that of the track."""
    stretches = [(place, each) for place, track in enumerate(tracks) for each in track.stretches]
    return {
        "series": [each.series_id for _, each in stretches],
        "after": [each.after_step for _, each in stretches],
        "through": [each.through_step for _, each in stretches],
        "places": [place for place, _ in stretches],
    }
