"""Runs with points, written straight into the tables."""

from __future__ import annotations

import datetime as dt
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
import pytest
from sqlalchemy import BigInteger, Double, Integer, func, literal, select
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP

from tests.schema.rows import NOON, add_attempt, add_model, add_run, add_series

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.schema import MetricSeries, TrainingAttempt, TrainingSession


def add_points(
    session: Session, attempt: TrainingAttempt, steps: Sequence[int], values: Sequence[float], **named: Any
) -> MetricSeries:
    """A series with these points, a second apart; ``name``, ``scope``, ``context``, ``goal`` say which."""
    series = add_series(session, attempt, **named)
    # Written by one statement: triggers fire once for each.
    columns = (
        literal([series.id] * len(steps), ARRAY(Integer)),
        literal([int(each) for each in steps], ARRAY(BigInteger)),
        literal([math.nan] * len(steps), ARRAY(Double)),
        literal([float(each) for each in values], ARRAY(Double)),
        literal([NOON + dt.timedelta(seconds=at) for at in range(len(steps))], ARRAY(TIMESTAMP(timezone=True))),
    )
    session.execute(select(func.arc_halo.write_points(*columns)))
    return series


def seal(session: Session, series: MetricSeries, through_step: int | None = None) -> None:
    through = 2**63 - 1 if through_step is None else through_step
    session.execute(select(func.arc_halo.seal_series(series.id, through)))


def add_forked_run(session: Session, name: str = "tune", *, is_sealed: bool = False) -> TrainingSession:
    """Loss is its step until step 9, then 100 + step, after two forks: 0 to 5, 6 to 9 and from 10 on.

    The points of the first two attempts go on behind the forks, where they do not count.
    """
    run = add_run(session, add_model(session, name), name, status="running", current_step=19, total_steps=100)
    first = add_attempt(session, run, 0, status="lost")
    second = add_attempt(session, run, 1, status="lost", parent_number=0, fork_step=5)
    third = add_attempt(session, run, 2, parent_number=1, fork_step=9)
    for attempt, steps, offset in ((first, range(9), 0), (second, range(6, 14), 0), (third, range(10, 20), 100)):
        series = add_points(session, attempt, steps, np.array(steps) + float(offset), goal="minimize")
        if is_sealed:
            seal(session, series)
    return run


@contextmanager
def statements(session: Session) -> Iterator[list[str]]:
    """What is sent meanwhile, by SQLAlchemy or without it."""
    sent: list[str] = []

    class Cursor(psycopg.Cursor[Any]):
        def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
            sent.append(str(query))
            return super().execute(query, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.connection().connection.driver_connection, "cursor_factory", Cursor)
        yield sent
