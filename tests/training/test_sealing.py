"""Sealing, late points in sealed segments, and what is refused."""

import threading

import numpy as np
import pytest
from sqlalchemy import func, select, text

from arc_halo.errors import ConstraintViolation, DatabaseError, MetricError, RunNotFound
from arc_halo.schema import MetricSegment, MetricSummary, TrainingMetric, TrainingPoint
from arc_halo.training.points import write_points
from arc_halo.training.sealing import Sealed, seal_points, unseal_points
from tests.schema.rows import add, add_attempt, add_model, add_run, add_series
from tests.training.test_points import points_of, stored, summary_of


@pytest.fixture
def run(session):
    return add_run(session, add_model(session))


@pytest.fixture
def series(session, run):
    return add_series(session, add_attempt(session, run))


def segments_of(session):
    columns = select(MetricSegment.first_step, MetricSegment.last_step, MetricSegment.point_count)
    return [tuple(row) for row in session.execute(columns.order_by(MetricSegment.first_step))]


def unsealed(session):
    return session.scalars(select(TrainingMetric.step).order_by(TrainingMetric.step)).all()


def test_points_are_packed_and_shown_as_before(session, run, series):
    write_points(session, points_of(series, np.arange(0, 20_000, 2), epoch=0.5))
    before = stored(session)
    summary = summary_of(session, series).point_count, summary_of(session, series).max_value
    assert seal_points(session, run) == Sealed(1, 10_000)
    assert segments_of(session) == [(0, 8190, 4096), (8192, 16382, 4096), (16384, 19998, 1808)]
    assert unsealed(session) == []
    assert stored(session) == before
    assert session.scalars(select(TrainingPoint.epoch).distinct()).all() == [0.5]
    assert (summary_of(session, series).point_count, summary_of(session, series).max_value) == summary


def test_the_newest_points_may_be_left(session, run, series):
    write_points(session, points_of(series, range(100)))
    assert seal_points(session, run, keep_points=30) == Sealed(1, 70)
    assert unsealed(session) == list(range(70, 100))
    assert seal_points(session, run, keep_points=30) == Sealed(0, 0)
    assert seal_points(session, run, keep_points=1000) == Sealed(0, 0)


def test_sealing_goes_on_in_the_last_segment_that_has_room(session, run, series):
    for start in (0, 3000, 6000):
        write_points(session, points_of(series, np.arange(start, start + 3000)))
        seal_points(session, run)
    assert segments_of(session) == [(0, 4095, 4096), (4096, 8191, 4096), (8192, 8999, 808)]


def test_unsealing_gives_single_points_back(session, run, series):
    write_points(session, points_of(series, range(5000)))
    before = stored(session)
    seal_points(session, run)
    assert unseal_points(session, run) == 5000
    assert unsealed(session) == list(range(5000))
    assert stored(session) == before
    assert unseal_points(session, run) == 0


def test_late_points_are_merged_into_the_segment_of_their_steps(session, run, series):
    write_points(session, points_of(series, np.arange(10, 10_010, 2)))
    seal_points(session, run)
    late = [0, 11, 12, 9999, 20_000]
    assert write_points(session, points_of(series, late, [-1.0, -2.0, -3.0, -4.0, -5.0])) == 5
    assert unsealed(session) == [20_000]
    assert [row for row in stored(session) if row[1] < 0] == list(zip(late, [-1, -2, -3, -4, -5], strict=True))
    assert summary_of(session, series).point_count == 5000 + 4
    assert segments_of(session) == [(0, 4102, 2049), (4104, 8200, 2049), (8202, 10_008, 905)]


def test_a_segment_that_late_points_fill_is_divided(session, run, series):
    write_points(session, points_of(series, np.arange(0, 8192, 2)))
    seal_points(session, run)
    write_points(session, points_of(series, np.arange(1, 8190, 2)))
    assert segments_of(session) == [(0, 4095, 4096), (4096, 8190, 4095)]
    assert stored(session) == [(step, step) for step in range(8191)]
    write_points(session, points_of(series, [8190], [0.0]))
    assert segments_of(session) == [(0, 4095, 4096), (4096, 8190, 4095)]


def test_a_sealed_step_is_refused_by_name_where_it_is_written_otherwise(session, run, series):
    write_points(session, points_of(series, range(10)))
    seal_points(session, run, keep_points=5)
    with pytest.raises(ConstraintViolation) as caught, session.begin_nested():
        add(session, TrainingMetric(series_id=series.id, step=4, value=0.0))
    assert caught.value.constraint == "training_metrics_sealed"
    add(session, TrainingMetric(series_id=series.id, step=10, value=0.0))


def test_sealing_wants_to_see_every_point(database):
    with database.session() as session, session.begin():
        run = add_run(session, add_model(session))
        write_points(session, points_of(add_series(session, add_attempt(session, run)), range(10)))
    with pytest.raises(Exception, match="READ COMMITTED"):
        database.transaction(lambda session: seal_points(session, run), isolation_level="REPEATABLE READ")


def test_a_point_may_come_while_its_series_is_sealed(database):
    """The writer waits for the sealer, and then finds its step sealed or not."""
    with database.session() as session, session.begin():
        run = add_run(session, add_model(session))
        series = add_series(session, add_attempt(session, run))
        write_points(session, points_of(series, range(10)))

    def write():
        with database.session() as session, session.begin():
            write_points(session, points_of(series, [5, 10], [-5.0, -10.0]))

    writing = threading.Thread(target=write)
    with database.session() as session, session.begin():
        seal_points(session, run)
        writing.start()
        writing.join(0.3)
        assert writing.is_alive()
    writing.join()
    with database.session() as session:
        assert stored(session)[5] == (5, -5.0)
        assert unsealed(session) == [10]
        assert summary_of(session, series).min_at_step == 10


def test_sealers_and_writers_of_all_series_do_not_lock_each_other_out(database):
    with database.session() as session, session.begin():
        run = add_run(session, add_model(session))
        attempt = add_attempt(session, run)
        ids = [add_series(session, attempt, f"m{number}").id for number in range(8)]
    errors, begin = [], threading.Barrier(6)

    def work(seed):
        random = np.random.default_rng(seed)
        begin.wait()
        try:
            for turn in range(8):
                with database.session() as session, session.begin():
                    if seed % 3 == 0:
                        seal_points(session, run, keep_points=int(random.integers(0, 50)))
                    else:
                        # A lost race is no lost point: each writer has steps of its own.
                        steps = np.repeat(np.arange(100) * 6 + seed + 600 * int(random.integers(0, 2)), len(ids))
                        write_points(session, points_of(np.tile(ids, 100), steps + 1200 * (turn % 2)))
        except DatabaseError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[seed]) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with database.session() as session:
        rows = stored(session)
        assert all(step == value for step, value in rows)
        assert session.scalar(select(func.sum(MetricSummary.point_count))) == len(rows) > 0


def test_there_must_be_a_run_and_a_number(session, run):
    with pytest.raises(RunNotFound):
        seal_points(session, "nobody/knows")
    with pytest.raises(MetricError, match="-1"):
        seal_points(session, run, keep_points=-1)
    assert seal_points(session, run) == Sealed(0, 0)


def test_the_history_in_sql_is_that_of_the_line(session, run, series):
    write_points(session, points_of(series, range(9000)))
    seal_points(session, run, keep_points=500)
    child = add_attempt(session, run, 1, parent_number=0, fork_step=5000)
    write_points(session, points_of(add_series(session, child), range(5001, 5011), -1.0))
    asked = text("SELECT step, value, attempt_number FROM arc_halo.metric_history(:id, 'loss')")
    rows = [tuple(row) for row in session.execute(asked, {"id": run.id})]
    assert rows == [(step, step, 0) for step in range(5001)] + [(step, -1, 1) for step in range(5001, 5011)]
    asked = text("SELECT count(*) FROM arc_halo.metric_history(:id, 'loss', 'train', '{}', 0)")
    assert session.scalar(asked, {"id": run.id}) == 9000
    line = text("SELECT attempt_number, after_step, through_step FROM arc_halo.attempt_line(:id)")
    assert [tuple(row) for row in session.execute(line, {"id": run.id})] == [(1, 5000, 2**63 - 1), (0, -1, 5000)]
