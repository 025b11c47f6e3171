"""Runs, attempts, metric points and checkpoints."""

import math
import threading

import pytest
from sqlalchemy import func, insert, select, text

from arc_halo.errors import ConstraintViolation
from arc_halo.schema import CheckpointTensor, MetricSegment, OptimizerState, TrainingMetric
from tests.schema.rows import NOON, add, add_attempt, add_checkpoint, add_model, add_run, add_series, add_tensor


@pytest.fixture
def attempt(session):
    return add_attempt(session, add_run(session, add_model(session)))


def test_a_restart_follows_an_older_attempt(session, attempt):
    run = attempt.training_session
    child = add_attempt(session, run, 1, parent_number=0, fork_step=100)
    session.expire_all()
    assert child.parent is attempt
    assert run.attempts == [attempt, child]


@pytest.mark.parametrize(
    "columns", [{"parent_number": 1}, {"parent_number": 0}, {"fork_step": 3}, {"parent_number": 7, "fork_step": 3}]
)
def test_attempts_cannot_be_anything_but_a_tree(session, attempt, columns):
    with pytest.raises(ConstraintViolation):
        add_attempt(session, attempt.training_session, 1, **columns)


def test_points_keep_nan_and_infinity(session, attempt):
    series = add_series(session, attempt)
    values = [1.5, math.inf, -math.inf, math.nan]
    session.execute(
        insert(TrainingMetric), [{"series_id": series.id, "step": n, "value": v} for n, v in enumerate(values)]
    )
    session.expire_all()
    assert [str(point.value) for point in series.points] == ["1.5", "inf", "-inf", "nan"]


@pytest.mark.parametrize("step", [-1, 2**63])
def test_impossible_steps_are_refused(session, attempt, step):
    series = add_series(session, attempt)
    with pytest.raises(Exception, match=r"step|out of range"):
        session.execute(insert(TrainingMetric).values(series_id=series.id, step=step, value=0.0))


def test_a_point_needs_its_series(session):
    with pytest.raises(ConstraintViolation) as caught:
        session.execute(insert(TrainingMetric).values(series_id=4711, step=0, value=0.0))
    assert caught.value.constraint == "fk_training_metrics_series_id"


def test_a_point_cannot_move_to_a_series_that_is_not_there(session, attempt):
    point = add(session, TrainingMetric(series_id=add_series(session, attempt).id, step=0, value=0.0))
    point.series_id = 4711
    with pytest.raises(ConstraintViolation):
        session.flush()


def test_points_go_with_their_run(session, attempt):
    series = add_series(session, attempt)
    add(session, TrainingMetric(series_id=series.id, step=0, value=0.0))
    session.delete(attempt.training_session)
    session.flush()
    assert session.scalar(select(func.count()).select_from(TrainingMetric)) == 0


def test_a_series_cannot_go_while_points_arrive(database):
    with database.session() as session, session.begin():
        series = add_series(session, add_attempt(session, add_run(session, add_model(session))))

    def delete():
        with database.session() as session, session.begin():
            session.execute(text("DELETE FROM arc_halo.models"))

    with database.session() as writer, writer.begin():
        writer.execute(insert(TrainingMetric).values(series_id=series.id, step=0, value=0.0))
        deleting = threading.Thread(target=delete)
        deleting.start()
        deleting.join(0.3)
        assert deleting.is_alive()
    deleting.join()
    with database.session() as session:
        assert session.scalar(select(func.count()).select_from(TrainingMetric)) == 0


def test_one_series_per_name_scope_and_context(session, attempt):
    add_series(session, attempt, context={"rank": 0})
    add_series(session, attempt, context={"rank": 1})
    with pytest.raises(ConstraintViolation):
        add_series(session, attempt, context={"rank": 1})


SEGMENT = {
    "first_step": 1,
    "last_step": 2,
    "point_count": 2,
    "last_value": 4.0,
    "steps": [1, 2],
    "epochs": [None, 0.5],
    "point_values": [3.0, 4.0],
    "recorded_times": [NOON, NOON],
}


def test_a_segment_keeps_its_arrays(session, attempt):
    series = add_series(session, attempt)
    add(session, MetricSegment(series_id=series.id, **SEGMENT))
    session.expire_all()
    (segment,) = series.segments
    assert {name: getattr(segment, name) for name in SEGMENT} == SEGMENT


@pytest.mark.parametrize("change", [{"point_count": 1}, {"last_step": 3}, {"epochs": [None]}, {"first_step": 0}])
def test_a_segment_must_be_consistent(session, attempt, change):
    with pytest.raises(ConstraintViolation):
        add(session, MetricSegment(series_id=add_series(session, attempt).id, **{**SEGMENT, **change}))


def test_of_two_checkpoints_of_one_step_one_is_published(session, attempt):
    add_checkpoint(session, attempt, 10)
    add_checkpoint(session, attempt, 10, status="pending", published_at=None)
    with pytest.raises(ConstraintViolation) as caught:
        add_checkpoint(session, attempt, 10)
    assert caught.value.constraint == "ix_model_checkpoints_published"


@pytest.mark.parametrize(
    "columns",
    [
        {"published_at": None},
        {"manifest_digest": None},
        {"status": "pending"},
        {"manifest_digest": b"short"},
        {"step": -1},
    ],
)
def test_a_published_checkpoint_is_whole(session, attempt, columns):
    with pytest.raises(ConstraintViolation):
        add_checkpoint(session, attempt, **{"step": 10, **columns})


def test_a_run_has_one_best_checkpoint(session, attempt):
    add_checkpoint(session, attempt, 10, is_best=True)
    add_checkpoint(session, attempt, 20)
    with pytest.raises(ConstraintViolation) as caught:
        add_checkpoint(session, attempt, 30, is_best=True)
    assert caught.value.constraint == "ix_model_checkpoints_best"


def test_a_checkpoint_keeps_its_tensors_from_being_deleted(session, attempt):
    checkpoint, tensor = add_checkpoint(session, attempt, 10), add_tensor(session)
    add(session, CheckpointTensor(checkpoint=checkpoint, name="w", position=0, tensor=tensor))
    session.delete(tensor)
    with pytest.raises(ConstraintViolation):
        session.flush()


def test_optimizer_state_is_a_tensor_or_a_number(session, attempt):
    checkpoint = add_checkpoint(session, attempt, 10)
    name = {"checkpoint": checkpoint, "parameter_name": "w"}
    add(session, OptimizerState(**name, state_name="exp_avg", tensor=add_tensor(session)))
    add(session, OptimizerState(**name, state_name="step", scalar_value=10))
    with pytest.raises(ConstraintViolation):
        add(session, OptimizerState(**name, state_name="momentum"))
