"""Figures of many operations: what a reactor gained over a time."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

import numpy as np
from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import TIMESTAMP

from arc_halo.errors import FusionError
from arc_halo.fusion.creating import find_reactor
from arc_halo.fusion.figures import Figures
from arc_halo.fusion.metrics.calibration import brier_score, expected_calibration_error
from arc_halo.fusion.metrics.diversity import pairwise_disagreement, q_statistic
from arc_halo.fusion.operations.recording import store_metric

if TYPE_CHECKING:
    import datetime as dt
    import uuid
    from collections.abc import Iterable, Sequence
    from typing import Any

    from sqlalchemy import Row
    from sqlalchemy.orm import Session

    from arc_halo.schema import Reactor

_LEAST_SHARE: Final = 0.5
_RIGHT: Final = 0.5
_BATCH_ROWS: Final = 10_000
_OPERATIONS: Final = text("""
SELECT o.id, o.status, o.score, o.quality, o.started_at, o.execution_seconds, n.coherence, n.diversity,
       clock_timestamp() AS now
  FROM arc_halo.fusion_operations AS o
  LEFT JOIN LATERAL (
       SELECT m.coherence, m.diversity
         FROM arc_halo.reactor_metrics AS m
        WHERE m.operation_id = o.id
        ORDER BY m.recorded_at DESC
        LIMIT 1) AS n ON true
 WHERE o.reactor_id = :reactor_id AND o.replay_of IS NULL
   AND (:since IS NULL OR o.started_at >= :since) AND (:until IS NULL OR o.started_at < :until)
 ORDER BY o.started_at, o.id
""").bindparams(bindparam("since", type_=TIMESTAMP(timezone=True)), bindparam("until", type_=TIMESTAMP(timezone=True)))
# A member that answered several times in an operation counts by the mean: what asking it once would have given.
_ANSWERS: Final = text("""
SELECT c.operation_id, m.name AS member, avg(c.quality) AS mean, max(c.quality) AS best
  FROM arc_halo.fusion_operations AS o
  JOIN arc_halo.fusion_operation_members AS c ON c.operation_id = o.id
  JOIN arc_halo.reactor_models AS m ON m.id = c.member_id
 WHERE o.reactor_id = :reactor_id AND o.replay_of IS NULL AND o.quality IS NOT NULL AND c.quality IS NOT NULL
   AND (:since IS NULL OR o.started_at >= :since) AND (:until IS NULL OR o.started_at < :until)
 GROUP BY c.operation_id, m.name
""").bindparams(bindparam("since", type_=TIMESTAMP(timezone=True)), bindparam("until", type_=TIMESTAMP(timezone=True)))


@dataclass(frozen=True, slots=True)
class WindowFigures:
    """How well a reactor did over a window.

    Attributes
    ----------
    figures
        What has a column in ``reactor_metrics``.
    operation_count, completed_count, measured_count
        Operations that began in the window, those of them with an answer, and those with a known quality.
    window_seconds
        From its beginning (or the first operation) to its end (or now).
    operations_per_second
        Throughput, of all operations; None for a window without length.
    best_member
        Whose answers alone were the best; what ``figures.gain`` is counted against.
    best_count
        Operations in which it answered, and over which that gain is counted.
    best_quality
        Mean quality of its answers in these.
    disagreement, q
        `pairwise_disagreement` and `q_statistic` of the members' answers, right from a quality of 0.5 on.
    """

    figures: Figures
    operation_count: int
    completed_count: int
    measured_count: int
    window_seconds: float
    operations_per_second: float | None
    best_member: str | None = None
    best_count: int = 0
    best_quality: float | None = None
    disagreement: float | None = None
    q: float | None = None


def measure_window(
    session: Session,
    reactor: Reactor | uuid.UUID | str,
    *,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    store: bool = True,
) -> WindowFigures:
    """Figures of the operations that began in a window, by two statements; written into ``reactor_metrics``.

    Coherence, diversity and quality are means of those of the operations. The best single member is the one of the
    best mean quality among those that answered in at least half of the measured operations (of all, if none did). Gain
    is the mean of the reactor's quality less that member's over the operations in which it answered, so that both are
    judged by the same questions: in a cascade the last member sees only hard ones. The oracle gap is the mean over
    all measured operations. Scores count for calibration where they are from 0 to 1; an answer is right from a quality
    of 0.5 on. Replays are left out, as they would count their questions twice.

    Parameters
    ----------
    since, until
        Moments with a time zone, the second one excluded; without, from the first operation, and until now.
    store
        False to write nothing. A window without operations is never written.

    Raises
    ------
    ReactorNotFound
        There is no such reactor.
    FusionError
        A moment has no time zone, or the window ends before it begins.
    """
    _check_window(since, until)
    row = find_reactor(session, reactor)
    asked = {"reactor_id": row.id, "since": since, "until": until}
    operations = session.execute(_OPERATIONS, asked).all()
    measured = [each for each in operations if each.quality is not None]
    answers = session.execute(_ANSWERS, asked, execution_options={"yield_per": _BATCH_ROWS}) if measured else ()
    window = _window(operations, measured, answers, since, until)
    if store and operations:
        figures = {each.name: getattr(window.figures, each.name) for each in fields(Figures)}
        counts = ("operation_count", "window_seconds", "operations_per_second")
        own = {"reactor_id": row.id, "operation_id": None, "recorded_at": operations[0].now}
        store_metric(session, own | figures | {each: getattr(window, each) for each in counts})
    return window


def _check_window(since: dt.datetime | None, until: dt.datetime | None) -> None:
    for each in (since, until):
        if each is not None and each.tzinfo is None:
            raise FusionError(f"{each} has no time zone: give it one, as by datetime.now(UTC)")
    if since is not None and until is not None and until < since:
        raise FusionError(f"a window does not end ({until}) before it begins ({since})")


def _window(
    operations: Sequence[Row[Any]],
    measured: Sequence[Row[Any]],
    answers: Iterable[Row[Any]],
    since: dt.datetime | None,
    until: dt.datetime | None,
) -> WindowFigures:
    if not operations:
        return WindowFigures(Figures(), 0, 0, 0, 0.0, None)
    end = until or operations[0].now
    seconds = max(0.0, (end - (since or operations[0].started_at)).total_seconds())
    quality = np.array([each.quality for each in measured], np.float64)
    members, means, best_answers = _tables(measured, answers)
    best = _best(means)
    gains = None if best is None else quality - means[:, best]
    gaps = best_answers - quality
    right = np.where(np.isnan(means), np.nan, means >= _RIGHT)
    scores, is_right = _calibrated(measured)
    figures = Figures(
        coherence=_mean([each.coherence for each in operations]),
        diversity=_mean([each.diversity for each in operations]),
        quality=_mean(quality),
        gain=None if gains is None else _mean(gains),
        oracle_gap=_mean(gaps),
        calibration_error=expected_calibration_error(scores, is_right),
        brier_score=brier_score(scores, is_right),
    )
    return WindowFigures(
        figures,
        operation_count=len(operations),
        completed_count=sum(each.status == "completed" for each in operations),
        measured_count=len(measured),
        window_seconds=seconds,
        operations_per_second=len(operations) / seconds if seconds else None,
        best_member=None if best is None else members[best],
        best_count=0 if best is None else int((~np.isnan(means[:, best])).sum()),
        best_quality=None if best is None else _mean(means[:, best]),
        disagreement=pairwise_disagreement(right),
        q=q_statistic(right),
    )


def _tables(measured: Sequence[Row[Any]], answers: Iterable[Row[Any]]) -> tuple[Sequence[str], np.ndarray, np.ndarray]:
    """Members, their mean quality by operation and member, and the best answer's by operation; NaN without one."""
    places = {each.id: at for at, each in enumerate(measured)}
    columns: dict[str, int] = {}
    # There are as many answers as operations and members together make: numbers alone are kept of each.
    cells, values = array("q"), array("d")
    for each in answers:
        at = places.get(each.operation_id)
        if at is not None:  # stored since the first statement
            cells.extend((at, columns.setdefault(each.member, len(columns))))
            values.extend((each.mean, each.best))
    rows, column = np.array(cells, np.int64).reshape(-1, 2).T
    mean, highest = np.array(values, np.float64).reshape(-1, 2).T
    means = np.full((len(measured), len(columns)), np.nan)
    means[rows, column] = mean
    best = np.full(len(measured), np.nan)
    np.fmax.at(best, rows, highest)
    members = sorted(columns)
    return members, means[:, [columns[name] for name in members]], best


def _best(means: np.ndarray) -> int | None:
    counts = (~np.isnan(means)).sum(axis=0)
    candidates = np.flatnonzero(counts >= max(1.0, _LEAST_SHARE * len(means)))
    if not candidates.size:
        candidates = np.flatnonzero(counts)
    if not candidates.size:
        return None
    return int(max(candidates, key=lambda at: (np.nanmean(means[:, at]), counts[at])))


def _calibrated(measured: Sequence[Row[Any]]) -> tuple[np.ndarray, np.ndarray]:
    known = [each for each in measured if each.score is not None and 0 <= each.score <= 1]
    scores = np.array([each.score for each in known], np.float64)
    return scores, np.array([each.quality >= _RIGHT for each in known], np.float64)


def _mean(values: Any) -> float | None:
    array = np.array(values, np.float64)  # None becomes NaN
    known = array[~np.isnan(array)]
    return float(known.mean()) if known.size else None
