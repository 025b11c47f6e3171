"""Points that replace others: whatever the pattern, quickly, and nothing else is lost beside other writers."""

import threading
import uuid

import numpy as np
import pytest
from sqlalchemy import select, text

from arc_halo.schema import TrainingMetric
from arc_halo.training import replacing
from arc_halo.training.points import POINT, write_points
from tests.schema.rows import NOON, add_attempt, add_model, add_run, add_series

MANY = 40_000


def points_of(series_id, steps, value):
    points = np.zeros(len(steps), POINT)
    points["series_id"], points["step"], points["value"] = series_id, steps, value
    points["epoch"], points["recorded_at"] = np.nan, int(NOON.timestamp()) * 1_000_000
    return points


@pytest.fixture
def series(session):
    return add_series(session, add_attempt(session, add_run(session, add_model(session))))


@pytest.mark.parametrize("stretch", [1, 4, 40])
def test_scattered_points_are_replaced_as_fast_as_others(session, series, stretch):
    """In time that grows with their number: compared each with each, so many would take a minute."""
    steps = np.arange(MANY)
    write_points(session, points_of(series.id, steps, 1.0))
    others = [add_series(session, series.attempt, f"other {number}").id for number in range(3)]
    for other in others:
        write_points(session, points_of(other, steps, 1.0))
    chosen = steps[steps // stretch % 2 == 0]
    session.execute(text("SET LOCAL statement_timeout = '3s'"))
    write_points(session, points_of(series.id, chosen, 2.0))
    rows = session.execute(
        select(TrainingMetric.step, TrainingMetric.value).where(TrainingMetric.series_id == series.id).order_by("step")
    ).all()
    assert [row.value for row in rows] == np.where(steps // stretch % 2, 1.0, 2.0).tolist()


@pytest.fixture
def database_url(migrated_url):
    return migrated_url


def test_a_row_that_comes_meanwhile_is_not_taken_away(database, monkeypatch):
    """A plain INSERT between the steps of a stretch: the unit is run again, and sees it."""

    def prepare(session):
        series = add_series(session, add_attempt(session, add_run(session, add_model(session))))
        write_points(session, points_of(series.id, np.arange(0, 2000, 2), 1.0))
        return series.id

    series_id = database.transaction(prepare)
    compare = replacing._compare
    calls = []

    def compare_while_others_write(*rows):
        if not calls:
            with database.session() as session:
                session.add(TrainingMetric(series_id=series_id, step=101, value=5.0))
                session.commit()
        calls.append(1)
        return compare(*rows)

    monkeypatch.setattr(replacing, "_compare", compare_while_others_write)
    database.transaction(lambda session: write_points(session, points_of(series_id, np.arange(0, 2000, 2), 2.0)))
    assert len(calls) == 2
    with database.session() as session:
        assert session.scalar(select(TrainingMetric.value).where(TrainingMetric.step == 101)) == 5.0
        counted = text("SELECT point_count FROM arc_halo.metric_summaries")
        assert session.scalar(counted) == 1001


def test_two_that_write_many_series_do_not_lock_each_other_out(database):
    """One copies partition by partition; the other deletes across all, which takes summaries in the order of ids."""
    count, steps = 40, 600

    def prepare(session):
        attempt = add_attempt(session, add_run(session, add_model(session)))
        ids = [add_series(session, attempt, f"m{number}").id for number in range(8)]
        for each in ids:
            write_points(session, points_of(each, np.arange(steps), 1.0))
        return ids

    ids = database.transaction(prepare)
    failures = []

    def remove():
        try:
            for step in range(count):
                with database.session() as session:
                    session.execute(text("DELETE FROM arc_halo.training_metrics WHERE step = :step"), {"step": step})
                    session.commit()
        except Exception as error:  # noqa: BLE001  told by the other thread
            failures.append(error)

    other = threading.Thread(target=remove)
    other.start()
    for number in range(1, count + 1):
        new = np.arange(number * steps, (number + 1) * steps)
        with database.session() as session:
            write_points(session, np.concatenate([points_of(each, new, 1.0) for each in ids]))
            session.commit()
    other.join()
    assert failures == []


def test_who_may_write_to_the_table_alone_writes_many(database):
    role = f"writer_{uuid.uuid4().hex[:8]}"

    def prepare(session):
        series = add_series(session, add_attempt(session, add_run(session, add_model(session))))
        session.execute(text(f"CREATE ROLE {role}"))
        session.execute(text(f"GRANT USAGE ON SCHEMA arc_halo TO {role}"))
        for table in ("training_metrics", "metric_series", "metric_summaries", "metric_segments"):
            session.execute(text(f"GRANT ALL ON arc_halo.{table} TO {role}"))
        return series.id

    series_id = database.transaction(prepare)
    with database.session() as session:
        session.execute(text(f"SET LOCAL ROLE {role}"))
        assert write_points(session, points_of(series_id, np.arange(2000), 1.0)) == 2000
        session.commit()
    with database.session() as session:
        session.execute(text(f"DROP OWNED BY {role}"))
        session.execute(text(f"DROP ROLE {role}"))
        session.commit()
