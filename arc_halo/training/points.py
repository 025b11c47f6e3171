"""Points of metric series into the database, in bulk, each step of a series once."""

from __future__ import annotations

import datetime as dt
import operator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, SupportsIndex, cast

import numpy as np
from psycopg import sql

from arc_halo.database.translate import driver_errors
from arc_halo.errors import MetricError
from arc_halo.store.connections import driver_connection
from arc_halo.training.binary import COPY_BEGIN, COPY_END, EPOCH_2000, TIMES, ArrayParameter, accept_arrays, copy_rows
from arc_halo.training.keys import SeriesKey, series_ids, series_key
from arc_halo.training.replacing import take_away

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Mapping

    import psycopg
    from numpy.typing import ArrayLike
    from sqlalchemy.orm import Session

__all__ = ["POINT", "SeriesKey", "record_points", "series_ids", "series_key", "write_points"]

POINT: Final = np.dtype(
    [
        ("series_id", np.int32),
        ("step", np.int64),
        ("epoch", np.float64),
        ("value", np.float64),
        ("recorded_at", np.int64),
    ]
)
"""A point: ``epoch`` is NaN where there is none, ``recorded_at`` counts microseconds since 1970 in UTC."""
_WRITTEN_POINTS: Final = 65_536
"""At once: what a trigger keeps of a statement's points stays in memory so."""
_CALL_POINTS: Final = 512
"""Up to here one call is less work than a COPY with its questions."""
_MAX_STEP: Final = np.iinfo(np.int64).max
_LOCK_SUMMARIES: Final = """
SELECT FROM arc_halo.metric_summaries AS m WHERE m.series_id = ANY (%b) ORDER BY m.series_id FOR NO KEY UPDATE
"""
_LAST_TIME: Final = 253_402_300_800_000_000  # the year 10,000: datetimes end there


def write_points(session: Session, points: np.ndarray, *, is_fresh: bool = False) -> int:
    """Write points in the caller's transaction: of several at one step of a series the last wins, now and later.

    What is above the last step of its series goes by COPY; other points replace those that are there, unless they are
    equal, and those of sealed steps are merged into their segments. Until the transaction ends, other writers to the
    same series wait.

    Parameters
    ----------
    points
        Of dtype `POINT`, in any order.
    is_fresh
        The caller knows that none of these steps is there, so that all go by COPY.

    Returns
    -------
    int
        How many points that are, each step of a series counted once.

    Raises
    ------
    MetricError
        They are not of that type, a step is negative, or a time is before 1970 or after 9999.
    ConstraintViolation
        A series is not there, or ``is_fresh`` was not true.
    """
    points = _each_step_once(_checked(points))
    if not len(points):
        return 0
    session.flush()
    with driver_errors():
        connection = driver_connection(session.connection())
        with connection.cursor(binary=True) as cursor:
            accept_arrays(cursor)
            if len(points) <= _CALL_POINTS:
                _call(cursor, points)
            else:
                for piece in _pieces(points):
                    _write_many(cursor, piece, is_fresh=is_fresh)
    return len(points)


def _checked(points: np.ndarray) -> np.ndarray:
    if not isinstance(points, np.ndarray) or points.dtype != POINT or points.ndim != 1:
        found = getattr(points, "dtype", type(points).__name__)
        raise MetricError(f"points are a one-dimensional array of dtype arc_halo.training.points.POINT, not {found}")
    if len(points) and (step := int(points["step"].min())) < 0:
        raise MetricError(f"steps count from 0, and this one is {step}")
    times = points["recorded_at"]
    if len(points) and not (times.min() >= 0 and times.max() < _LAST_TIME):
        raise MetricError("recorded_at counts microseconds since 1970, up to the year 9999")
    return points


def _each_step_once(points: np.ndarray) -> np.ndarray:
    """Ordered by series and step; the last of several at one step."""
    series, steps = points["series_id"], points["step"]
    if _ascend(series, steps):
        return points
    points = points[np.lexsort((steps, series))]  # stable: equals stay in their order
    series, steps = points["series_id"], points["step"]
    is_last = np.ones(len(points), np.bool_)
    is_last[:-1] = (series[1:] != series[:-1]) | (steps[1:] != steps[:-1])
    return points[is_last]


def _ascend(series: np.ndarray, steps: np.ndarray) -> bool:
    after, before = series[1:], series[:-1]
    return bool(np.all((after > before) | ((after == before) & (steps[1:] > steps[:-1]))))


class _Series(NamedTuple):
    """Series that are locked for a writer, by arrays of the shape of ``ids``, which ascend.

    Attributes
    ----------
    sealed
        Steps up to here are in segments. So are all, it says, where nothing may be copied or the series is not there.
    last
        Steps above are not there.
    partitions
        Where their points are.
    """

    ids: np.ndarray
    sealed: np.ndarray
    last: np.ndarray
    partitions: np.ndarray

    def of(self, points: np.ndarray) -> np.ndarray:
        """The place of each point's series."""
        return np.searchsorted(self.ids, points["series_id"])


def _lock(cursor: psycopg.Cursor[Any], ids: np.ndarray) -> _Series:
    series = _Series(ids, *(np.full(len(ids), each, np.int64) for each in (_MAX_STEP, _MAX_STEP, 0)))
    cursor.execute("SELECT * FROM arc_halo.lock_metric_series(%b)", [ArrayParameter(ids)])
    for series_id, sealed_through_step, copy_above, partition in cursor:
        if copy_above is not None:
            place = np.searchsorted(ids, series_id)
            series.sealed[place], series.last[place] = sealed_through_step, copy_above
            series.partitions[place] = partition
    return series


def _write_many(cursor: psycopg.Cursor[Any], points: np.ndarray, *, is_fresh: bool) -> None:
    """Write each point the cheapest way that is right for it."""
    series = _lock(cursor, np.unique(points["series_id"]))
    places = series.of(points)
    is_late = points["step"] <= series.sealed[places]
    is_new = points["step"] > (series.sealed if is_fresh else series.last)[places]
    replaced = take_away(cursor, points[~is_late & ~is_new])
    if is_new.all():
        # In their order, as everybody: the partitions, which are written one after the other, have another.
        cursor.execute(_LOCK_SUMMARIES, [ArrayParameter(series.ids)])
    _copy(cursor, np.concatenate([points[is_new], replaced.absent]), series)
    for others in (points[is_late], replaced.present):
        if len(others):
            _call(cursor, others)


def _copy(cursor: psycopg.Cursor[Any], points: np.ndarray, series: _Series) -> None:
    """COPY into the partitions: the table itself takes the rows one by one, since it has triggers."""
    columns = sql.SQL(", ").join(map(sql.Identifier, POINT.names or ()))
    targets = series.partitions[series.of(points)]
    for partition in np.unique(targets):
        table = sql.Identifier("arc_halo", f"training_metrics_{partition}")
        with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(table, columns)) as copy:
            copy.write(COPY_BEGIN + copy_rows(points[targets == partition]) + COPY_END)


def _pieces(points: np.ndarray) -> list[np.ndarray]:
    return [points[start : start + _WRITTEN_POINTS] for start in range(0, len(points), _WRITTEN_POINTS)]


def _call(cursor: psycopg.Cursor[Any], points: np.ndarray) -> None:
    columns = [ArrayParameter(points[name]) for name in ("series_id", "step", "epoch", "value")]
    times = ArrayParameter(points["recorded_at"] - EPOCH_2000, TIMES)
    cursor.execute("SELECT arc_halo.write_points(%b, %b, %b, %b, %b)", [*columns, times])


def record_points(
    session: Session,
    attempt_id: uuid.UUID,
    name: str,
    steps: ArrayLike,
    values: ArrayLike,
    *,
    scope: str = "train",
    context: Mapping[str, Any] | None = None,
    epochs: ArrayLike | None = None,
    recorded_at: ArrayLike | dt.datetime | None = None,
) -> int:
    """Write many points of one metric, as `write_points` does; the series is made if it is not there.

    Parameters
    ----------
    steps, values
        As many of the one as of the other; steps are whole numbers, NaN and infinities are values.
    epochs
        As many; NaN where there is none.
    recorded_at
        One time with a zone, or as many of ``datetime64`` in UTC, or of whole microseconds since 1970; now if left out.

    Raises
    ------
    MetricError
        A name, step, value or time cannot be recorded.
    """
    key = series_key(name, scope, context)
    steps = _whole_numbers(steps, f"steps of metric {name!r:.80}")
    points = np.empty(len(steps), POINT)
    points["step"] = steps
    points["value"] = _floats(values, len(steps), f"values of metric {name!r:.80}")
    points["epoch"] = np.nan if epochs is None else _floats(epochs, len(steps), f"epochs of metric {name!r:.80}")
    points["recorded_at"] = _times(recorded_at, len(steps), name)
    points["series_id"] = 0
    _checked(points)
    points["series_id"] = series_ids(session, attempt_id, [key])[key]
    return write_points(session, points)


def _whole_numbers(given: ArrayLike, what: str) -> np.ndarray:
    try:
        if not isinstance(given, np.ndarray):
            given = np.array([operator.index(each) for each in cast("Iterable[SupportsIndex]", given)], np.int64)
        if given.ndim != 1 or given.dtype.kind not in "iu" or (len(given) and given.max() > np.iinfo(np.int64).max):
            raise MetricError(f"{what} are a one-dimensional array of whole numbers, not {given.dtype}")
        return given.astype(np.int64)
    except (TypeError, OverflowError) as error:
        raise MetricError(f"{what} are whole numbers below 2^63: {error}") from None


def _floats(given: ArrayLike, count: int, what: str) -> np.ndarray:
    try:
        numbers = np.asarray(given)
        if numbers.dtype.kind == "O":
            numbers = np.array([float(each) for each in numbers])  # numpy would make NaN of None
        floats = numbers.astype(np.float64, casting="same_kind" if numbers.dtype.kind == "c" else "unsafe")
    except (TypeError, ValueError) as error:
        raise MetricError(f"{what} are real numbers: {error}") from None
    if floats.shape != (count,):
        raise MetricError(f"{what} are {floats.shape}, and there are {count} steps; give one for each")
    return floats


def _times(given: ArrayLike | dt.datetime | None, count: int, name: str) -> np.ndarray | int:
    if given is None:
        given = dt.datetime.now(dt.UTC)
    if isinstance(given, dt.datetime):
        if given.tzinfo is None:
            raise MetricError(f"recorded_at of metric {name!r:.80} has no zone: give it one, such as UTC")
        return (given - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)
    times = np.asarray(given)
    if times.shape == (count,) and times.dtype.kind == "M":
        return times.astype("datetime64[us]").astype(np.int64)
    if times.shape == (count,) and times.dtype.kind == "i":
        return times.astype(np.int64)
    raise MetricError(
        f"recorded_at of metric {name!r:.80} is one time, or {count} of datetime64 or of whole microseconds since 1970,"
        f" not {times.dtype} of shape {times.shape}"
    )
