"""Points into the database: by COPY, over others, late, and refused."""

import datetime as dt
import math
import threading
import uuid

import numpy as np
import pytest
from sqlalchemy import func, select, text

from arc_halo.errors import ConstraintViolation, MetricError
from arc_halo.schema import MetricSummary, TrainingMetric, TrainingPoint
from arc_halo.schema.training import METRIC_PARTITIONS
from arc_halo.training.points import POINT, record_points, series_ids, series_key, write_points
from arc_halo.training.sealing import seal_points
from tests.schema.rows import NOON, add_attempt, add_model, add_run, add_series

NOON_MICROSECONDS = int(NOON.timestamp()) * 1_000_000


@pytest.fixture
def attempt(session):
    return add_attempt(session, add_run(session, add_model(session)))


@pytest.fixture
def series(session, attempt):
    return add_series(session, attempt)


def points_of(series, steps, values=None, *, epoch=math.nan, recorded_at=NOON_MICROSECONDS):
    points = np.empty(len(steps), POINT)
    points["series_id"] = series if isinstance(series, list | np.ndarray) else getattr(series, "id", series)
    points["step"] = steps
    points["value"] = np.asarray(steps, float) if values is None else values
    points["epoch"] = epoch
    points["recorded_at"] = recorded_at
    return points


def stored(session, *series):
    rows = select(TrainingPoint.step, TrainingPoint.value).order_by(TrainingPoint.series_id, TrainingPoint.step)
    if series:
        rows = rows.where(TrainingPoint.series_id.in_([each.id for each in series]))
    return [tuple(row) for row in session.execute(rows)]


def summary_of(session, series):
    return session.get(MetricSummary, series.id, populate_existing=True)


SMALL, BIG = 3, 2000
"""As many points as go by one call, and as go by COPY."""


@pytest.mark.parametrize("count", [SMALL, BIG])
def test_points_come_back_as_they_were(session, series, count):
    points = points_of(series, np.arange(count), epoch=np.arange(count) / 8)
    points["epoch"][1] = math.nan
    points["recorded_at"] += np.arange(count)
    points["value"][:3] = [math.nan, math.inf, -math.inf]
    assert write_points(session, points) == count
    rows = session.scalars(select(TrainingPoint).order_by(TrainingPoint.step)).all()
    assert [row.step for row in rows] == list(range(count))
    assert [row.epoch for row in rows[:3]] == [0.0, None, 0.25]
    assert [str(row.value) for row in rows[:3]] == ["nan", "inf", "-inf"]
    assert rows[2].recorded_at == NOON + dt.timedelta(microseconds=2)
    assert not any(row.is_sealed for row in rows)


@pytest.mark.parametrize("count", [SMALL, BIG])
def test_points_of_any_order_are_stored_in_theirs(session, attempt, count):
    ids = np.array([add_series(session, attempt, name).id for name in "abc"], np.int32)
    points = points_of(np.tile(ids, count), np.repeat(np.arange(count), 3))
    np.random.default_rng(0).shuffle(points)
    assert write_points(session, points) == 3 * count
    assert stored(session) == [(step, step) for _ in ids for step in range(count)]


@pytest.mark.parametrize("count", [SMALL, BIG])
def test_of_several_at_one_step_the_last_wins(session, series, count):
    steps = np.concatenate([np.arange(count), np.arange(count)])
    points = points_of(series, steps, np.arange(2 * count))
    assert write_points(session, points) == count
    assert stored(session) == [(step, step + count) for step in range(count)]
    assert summary_of(session, series).point_count == count


@pytest.mark.parametrize("count", [SMALL, BIG])
def test_later_points_replace_those_that_are_there(session, series, count):
    write_points(session, points_of(series, np.arange(count)))
    write_points(session, points_of(series, np.arange(1, count + 1), -np.arange(count)))
    assert stored(session) == [(0, 0), *((step, 1 - step) for step in range(1, count + 1))]
    summary = summary_of(session, series)
    assert (summary.point_count, summary.first_step, summary.last_step) == (count + 1, 0, count)
    assert (summary.min_value, summary.min_at_step) == (1 - count, count)


@pytest.mark.parametrize("count", [SMALL, BIG])
def test_a_replay_changes_nothing(session, series, count):
    points = points_of(series, np.arange(count), np.arange(1, count + 1))
    write_points(session, points)
    versions = text("SELECT array_agg(ctid::text ORDER BY step) FROM arc_halo.training_metrics")
    before = session.scalar(versions)
    assert write_points(session, points) == count
    assert session.scalar(versions) == before


@pytest.mark.parametrize("partition", range(METRIC_PARTITIONS))
def test_points_written_to_a_partition_itself_are_in_the_summaries(session, attempt, partition):
    series = next(each for each in iter(lambda: add_series(session, attempt, uuid.uuid4().hex), None)
                  if partition_of(session, each) == partition)  # fmt: skip
    table = f"arc_halo.training_metrics_{partition}"
    session.execute(
        text(f"INSERT INTO {table} (series_id, step, value) SELECT {series.id}, s, s FROM generate_series(0, 9) s")
    )
    assert (summary_of(session, series).point_count, summary_of(session, series).max_value) == (10, 9)
    session.execute(text(f"UPDATE {table} SET value = -1 WHERE series_id = {series.id} AND step = 9"))
    assert (summary_of(session, series).min_value, summary_of(session, series).max_value) == (-1, 8)
    session.execute(text(f"DELETE FROM {table} WHERE series_id = {series.id} AND step > 5"))
    assert (summary_of(session, series).point_count, summary_of(session, series).last_step) == (6, 5)
    seal_points(session, attempt.training_session)
    with pytest.raises(ConstraintViolation, match="sealed"):
        session.execute(text(f"INSERT INTO {table} (series_id, step, value) VALUES ({series.id}, 3, 0)"))


def partition_of(session, series):
    row = "SELECT partition FROM arc_halo.lock_metric_series(ARRAY[CAST(:id AS integer)])"
    return session.scalar(text(row), {"id": series.id})


@pytest.mark.parametrize("stride", [2, 50])
def test_rows_between_points_that_are_replaced_stay(session, series, stride):
    write_points(session, points_of(series, np.arange(stride * BIG)))
    versions = text("SELECT step, xmin::text || ctid::text FROM arc_halo.training_metrics")
    before = dict(session.execute(versions).all())
    write_points(session, points_of(series, np.arange(0, stride * BIG, stride), np.full(BIG, 0.5)))
    assert stored(session) == [(step, step if step % stride else 0.5) for step in range(stride * BIG)]
    after = dict(session.execute(versions).all())
    assert [step for step in before if after[step] == before[step]] == [step for step in before if step % stride]


def test_a_minimum_that_is_replaced_leaves_the_place_to_its_equal(session, series):
    write_points(session, points_of(series, [3, 5, 7], [1.0, 2.0, 1.5]))
    write_points(session, points_of(series, [3, 5], [4.0, 1.0]))
    summary = summary_of(session, series)
    assert (summary.min_value, summary.min_at_step, summary.max_at_step) == (1.0, 5, 3)


def test_a_zero_replaces_a_zero_of_the_other_sign(session, series):
    write_points(session, points_of(series, [1], [0.0]))
    write_points(session, points_of(series, [1], [-0.0]))
    assert math.copysign(1, stored(session)[0][1]) == -1


def test_no_points_are_nothing(session):
    assert write_points(session, np.empty(0, POINT)) == 0


def test_the_greatest_step_is_kept(session, series):
    write_points(session, points_of(series, [2**63 - 1], [1.0]))
    assert stored(session) == [(2**63 - 1, 1.0)]


@pytest.mark.parametrize("count", [SMALL, BIG])
@pytest.mark.parametrize(
    ("field", "value"), [("step", -1), ("step", -(2**63)), ("recorded_at", -1), ("recorded_at", 2**62)]
)
def test_points_that_cannot_be_are_refused(session, series, count, field, value):
    points = points_of(series, np.arange(count))
    points[field][count // 2] = value
    with pytest.raises(MetricError, match=field):
        write_points(session, points)
    assert stored(session) == []


@pytest.mark.parametrize("points", [[1, 2], np.zeros(3), np.zeros((2, 2), POINT)])
def test_points_are_of_one_type(session, points):
    with pytest.raises(MetricError, match="POINT"):
        write_points(session, points)


@pytest.mark.parametrize("count", [SMALL, BIG])
@pytest.mark.parametrize("is_fresh", [False, True])
def test_points_need_their_series(session, series, count, is_fresh):
    points = points_of(series, np.arange(count))
    points["series_id"][-1] = 2**31 - 1
    with pytest.raises(ConstraintViolation) as caught, session.begin_nested():
        write_points(session, points, is_fresh=is_fresh)
    assert caught.value.constraint == "fk_training_metrics_series_id"
    assert stored(session) == []
    assert write_points(session, points[:-1]) == count - 1


def test_fresh_points_that_are_not_are_refused(session, series):
    points = points_of(series, np.arange(BIG))
    write_points(session, points)
    with pytest.raises(ConstraintViolation) as caught, session.begin_nested():
        write_points(session, points, is_fresh=True)
    assert caught.value.is_duplicate


def test_points_of_another_transaction_are_replaced_under_a_snapshot_or_the_unit_runs_again(database):
    with database.session() as session, session.begin():
        series = add_series(session, add_attempt(session, add_run(session, add_model(session))))
    runs = []

    def unit(session):
        session.execute(text("SELECT 1"))
        if not runs:
            with database.session() as other, other.begin():
                write_points(other, points_of(series, np.arange(BIG)))
        runs.append(1)
        write_points(session, points_of(series, np.arange(BIG), -np.arange(BIG)))

    database.transaction(unit, isolation_level="REPEATABLE READ")
    with database.session() as session:
        assert len(runs) == 2
        assert stored(session) == [(step, -step) for step in range(BIG)]


def test_writers_to_the_same_series_wait_and_none_is_lost(database):
    with database.session() as session, session.begin():
        attempt = add_attempt(session, add_run(session, add_model(session)))
        ids = list(series_ids(session, attempt.id, [series_key(f"m{number}") for number in range(6)]).values())
    begin, errors = threading.Barrier(6), []

    def write(seed):
        random = np.random.default_rng(seed)
        begin.wait()
        try:
            for turn in range(6):
                size = int(random.choice([5, 700]))
                points = points_of(random.choice(ids, size).astype(np.int32), random.integers(0, 900, size))
                with database.session() as session, session.begin():
                    write_points(session, points)
                    if turn == seed:
                        session.execute(text("SELECT arc_halo.seal_series(:id, 450)"), {"id": ids[seed]})
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=write, args=[seed]) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with database.session() as session:
        rows = stored(session)
        assert all(step == value for step, value in rows)
        counted = session.scalar(select(func.sum(MetricSummary.point_count)))
        assert counted == len(rows) > 1000


class TestRecordPoints:
    def test_a_series_is_made_and_filled(self, session, attempt):
        assert (
            record_points(session, attempt.id, "loss", range(3), [3, 2, 1], scope="validation", epochs=[0, 0, 1]) == 3
        )
        row = session.scalars(select(TrainingPoint).where(TrainingPoint.step == 2)).one()
        assert (row.value, row.epoch, row.series.name, row.series.scope) == (1.0, 1.0, "loss", "validation")
        assert abs(row.recorded_at - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=5)

    @pytest.mark.parametrize(
        "recorded_at",
        [
            NOON,
            NOON.astimezone(dt.timezone(dt.timedelta(hours=5))),
            np.array(["2026-11-22T12:00"] * 2, "datetime64[m]"),
            [NOON_MICROSECONDS] * 2,
        ],
    )
    def test_times_are_taken_in_any_form(self, session, attempt, recorded_at):
        record_points(session, attempt.id, "loss", [1, 2], [1, 2], recorded_at=recorded_at)
        assert set(session.scalars(select(TrainingMetric.recorded_at))) == {NOON}

    @pytest.mark.parametrize("steps", [[-1], [2**63], [-(2**63) - 1], [1.0], ["1"], [None], np.array([1.0]), [[1]]])
    def test_steps_are_whole_numbers_from_zero(self, session, attempt, steps):
        with pytest.raises(MetricError, match="step"):
            record_points(session, attempt.id, "loss", steps, [1.0])
        with pytest.raises(MetricError, match="step"):
            record_points(session, attempt.id, "loss", np.array([2**63], np.uint64), [1.0])

    @pytest.mark.parametrize("values", [["a"], [None], [1j], [1.0, 2.0], 3.0])
    def test_values_are_numbers_one_for_each_step(self, session, attempt, values):
        with pytest.raises(MetricError, match="values"):
            record_points(session, attempt.id, "loss", [1], values)

    @pytest.mark.parametrize("recorded_at", [NOON.replace(tzinfo=None), [1.5], [1, 2], ["now"]])
    def test_times_are_times(self, session, attempt, recorded_at):
        with pytest.raises(MetricError, match="recorded_at"):
            record_points(session, attempt.id, "loss", [1], [1.0], recorded_at=recorded_at)
