"""Points at steps that may be there already: which of them are new or other, and what they replace taken away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from arc_halo.training.binary import ArrayParameter
from arc_halo.training.fetching import accept_array_results

if TYPE_CHECKING:
    import psycopg

_CROWDED: Final = 4
"""Where more rows than so many for each point lie between the first and the last of them, they are not read."""
_SCATTERED: Final = 8
"""Where stretches of rows to replace are shorter than this on average, deleting them gains nothing."""
_THERE: Final = """
SELECT w.place, there.*
  FROM unnest(%b::integer[], %b::bigint[], %b::bigint[], %b::bigint[])
       WITH ORDINALITY AS w (series_id, first_step, last_step, most, place)
 CROSS JOIN LATERAL (
    SELECT array_agg(t.step), array_agg(COALESCE(t.epoch, 'NaN')), array_agg(t.value), array_agg(t.recorded_at)
      FROM (
        SELECT k.step, k.epoch, k.value, k.recorded_at
          FROM arc_halo.training_metrics AS k
         WHERE k.series_id = w.series_id AND k.step BETWEEN w.first_step AND w.last_step
         ORDER BY k.step
         LIMIT w.most
      ) AS t
    HAVING count(*) > 0
 ) AS there
"""
_DELETE: Final = "SELECT arc_halo.delete_points(%b, %b, %b, %b)"


class Replacement(NamedTuple):
    """What is left to write: ``absent`` where no row is now, ``present`` where one is, or may be."""

    absent: np.ndarray
    present: np.ndarray


def take_away(cursor: psycopg.Cursor[Any], points: np.ndarray) -> Replacement:
    """Delete the rows that points replace by other values; points whose equals are there are left out.

    Deleting long stretches of rows and copying is faster than updating each, and a replay reads only.

    Parameters
    ----------
    points
        Of dtype `POINT`, ordered by series and step, each step once. Their series are locked by
        `lock_metric_series()`, and none of the points is sealed.

    Raises
    ------
    psycopg.errors.SerializationFailure
        A row came between the reading and the deleting, by somebody who does not lock series.
    """
    if not len(points):
        return Replacement(points, points)
    ids, starts, counts = np.unique(points["series_id"], return_index=True, return_counts=True)
    steps = points["step"]
    asked = (ids, steps[starts], steps[starts + counts - 1], counts * _CROWDED)
    accept_array_results(cursor)
    cursor.execute(_THERE, [ArrayParameter(each) for each in asked])
    is_wanted, is_present = np.ones(len(points), np.bool_), np.zeros(len(points), np.bool_)
    stretches, gone_count = [], 0
    for place, *columns in cursor.fetchall():
        number = place - 1
        part = slice(starts[number], starts[number] + counts[number])
        if len(columns[0]) == counts[number] * _CROWDED:
            is_present[part] = True
            continue
        is_there, is_equal = _compare(points[part], *columns)
        is_wanted[part] = ~is_equal
        is_gone = is_there & ~is_equal
        first, last = _stretches(np.searchsorted(columns[0], steps[part][is_gone]))
        if len(first) * _SCATTERED > is_gone.sum():
            is_present[part] = is_gone
            continue
        gone_count += int(is_gone.sum())
        stretches.append((np.full(len(first), ids[number]), columns[0][first], columns[0][last]))
    gone = [np.concatenate(each) for each in zip(*stretches, strict=True)]
    if gone and len(gone[0]):
        cursor.execute(_DELETE, [*(ArrayParameter(each) for each in gone), gone_count])
    return Replacement(points[is_wanted & ~is_present], points[is_wanted & is_present])


def _compare(
    points: np.ndarray, steps: np.ndarray, epochs: np.ndarray, values: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of each point whether its step is among the rows, and whether all of it is, bit for bit."""
    places = np.minimum(np.searchsorted(steps, points["step"]), len(steps) - 1)
    is_there = steps[places] == points["step"]
    is_equal = is_there & (times.astype(np.int64)[places] == points["recorded_at"])
    for column, rows in (("epoch", epochs), ("value", values)):
        given, kept = np.ascontiguousarray(points[column]), rows[places]
        is_equal &= (given.view(np.int64) == kept.view(np.int64)) | (np.isnan(given) & np.isnan(kept))
    return is_there, is_equal


def _stretches(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last of each run of neighbours among ascending places."""
    ends = np.flatnonzero(np.diff(places) != 1)
    first = np.concatenate([places[:1], places[ends + 1]])
    return first, np.concatenate([places[ends], places[-1:]])
