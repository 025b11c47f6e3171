"""The views: their columns, their values, and that nothing is written through them."""

import datetime as dt
import math

import pytest
from sqlalchemy import delete, func, insert, inspect, select, text
from sqlalchemy.exc import DBAPIError

from arc_halo.errors import ReadOnlyDatabase
from arc_halo.schema import (
    AttentionHead,
    DuplicateTensor,
    FusionOperation,
    ModelArchitecture,
    ModelFamily,
    ModelStorage,
    ReactorMetric,
    ReactorStatus,
    TensorStatistics,
    TrainingMetric,
    TrainingProgress,
    UnsoundLayer,
)
from tests.schema.rows import (
    NOON,
    add,
    add_attempt,
    add_chunk,
    add_layer,
    add_model,
    add_reactor,
    add_run,
    add_segment,
    add_series,
    add_tensor,
    add_weight,
)

VIEWS = (
    ModelArchitecture, TrainingProgress, ReactorStatus, TensorStatistics, ModelStorage, ModelFamily, DuplicateTensor,
    UnsoundLayer,
)  # fmt: skip


@pytest.mark.parametrize("view", VIEWS)
def test_mapped_columns_are_those_of_the_database_in_order_and_type(session, view):
    found = inspect(session.connection()).get_columns(view.__table__.name, schema="arc_halo")
    dialect = session.connection().dialect
    declared = [(column.name, column.type.compile(dialect)) for column in view.__table__.c]
    assert [(column["name"], column["type"].compile(dialect)) for column in found] == declared


@pytest.mark.parametrize("view", VIEWS)
def test_every_column_is_an_attribute(view):
    assert {column.name for column in view.__table__.c} == set(view.__mapper__.column_attrs.keys())


@pytest.fixture
def model(session):
    """Two blocks with a head each, a tied pair of 6 elements, a bias of 4, a buffer of 2."""
    model = add_model(session)
    for number in range(2):
        block = add_layer(session, model, f"layers.{number}", position=2 * number)
        attention = add_layer(
            session, model, f"{block.path}.attention", parent=block, layer_type="attention", position=1
        )
        add(session, AttentionHead(layer=attention, head_index=0, head_dim=2, kv_group=0))
    statistics = {
        "min_value": -1.0,
        "max_value": 2.0,
        "mean": 0.5,
        "l2_norm": 3.0,
        "zero_fraction": 0.5,
        "nan_count": 0,
    }
    embedding = add_weight(session, model, "embedding", add_tensor(session, 6, **statistics), category="embedding")
    add_weight(session, model, "head", embedding.tensor, tied_to=embedding)
    statistics = {
        "min_value": -4.0,
        "max_value": 1.0,
        "mean": 1.5,
        "l2_norm": 4.0,
        "zero_fraction": 0.0,
        "nan_count": 1,
    }
    bias = add_tensor(session, 4, **statistics)
    add_weight(session, model, "bias", bias, layer=attention, category="bias", is_trainable=False)
    add_weight(session, model, "more", bias, layer=attention, category="bias")
    add_weight(session, model, "positions", add_tensor(session, 2), category="buffer")
    add_chunk(session, embedding.tensor, 0, b"payload")
    add_chunk(session, bias, 0, b"payload")
    return model


def test_model_architecture(session, model):
    row = session.get(ModelArchitecture, model.id)
    assert row.layers_by_type == {"block": 2, "attention": 2}
    assert (row.head_count, row.weight_count) == (2, 5)
    assert (row.parameter_count, row.trainable_parameter_count) == (14, 10)
    assert (row.nbytes, row.stored_nbytes) == (64, 7)
    assert row.model is model


def test_model_architecture_agrees_with_the_hybrids(session, model):
    row = session.get(ModelArchitecture, model.id)
    for name in ("parameter_count", "trainable_parameter_count", "nbytes", "stored_nbytes"):
        assert getattr(row, name) == getattr(model, name)


def test_a_model_without_anything_has_zeroes(session):
    row = session.get(ModelArchitecture, add_model(session).id)
    assert row.layers_by_type == {}
    assert {row.head_count, row.weight_count, row.parameter_count, row.nbytes, row.stored_nbytes} == {0}


def log(session, series, **points):
    rows = [{"series_id": series.id, "step": int(step[1:]), "value": value} for step, value in points.items()]
    session.execute(insert(TrainingMetric), rows)


@pytest.fixture
def attempt(session):
    """An attempt that ran for 50 seconds."""
    run = add_run(session, add_model(session), status="running", current_step=100, total_steps=300, total_epochs=3)
    times = {
        "started_at": func.now() - text("interval '60 seconds'"),
        "heartbeat_at": func.now() - text("interval '10 seconds'"),
    }
    return add_attempt(session, run, **times)


def progress_of(session, attempt):
    return session.get(TrainingProgress, attempt.training_session_id, populate_existing=True)


def test_training_progress_says_pace_and_time_left(session, attempt):
    row = progress_of(session, attempt)
    assert (row.model_name, row.status, row.attempt_number) == ("model", "running", 0)
    assert (row.current_step, row.total_steps, row.total_epochs) == (100, 300, 3)
    assert row.steps_per_second == pytest.approx(2)
    assert row.remaining_seconds == pytest.approx(100)
    assert row.heartbeat_age_seconds == pytest.approx(10, abs=5)
    assert row.training_session is attempt.training_session


def test_training_progress_has_last_and_best_of_series_with_a_goal(session, attempt):
    log(session, add_series(session, attempt, goal="minimize"), s1=3.0, s2=1.0, s3=1.0, s4=2.0)
    log(session, add_series(session, attempt, "accuracy", scope="validation", goal="maximize"), s2=0.5, s4=math.nan)
    log(session, add_series(session, attempt, "loss", scope="system"), s1=1.0)
    metrics = progress_of(session, attempt).metrics
    assert metrics["train/loss"] == {"goal": "minimize", "last": 2, "last_step": 4, "best": 1, "best_step": 2}
    assert metrics["validation/accuracy"] == {
        "goal": "maximize", "last": "NaN", "last_step": 4, "best": 0.5, "best_step": 2,
    }  # fmt: skip
    assert len(metrics) == 2


def test_training_progress_tells_contexts_apart(session, attempt):
    for rank in range(2):
        log(session, add_series(session, attempt, goal="minimize", context={"rank": rank}), s1=float(rank))
    assert set(progress_of(session, attempt).metrics) == {'train/loss {"rank": 0}', 'train/loss {"rank": 1}'}


def test_training_progress_follows_the_line_of_attempts(session, attempt):
    # 0 ran to step 9, 1 went on from step 5 of it, 2 again from step 3: what came after a fork does not count.
    log(session, add_series(session, attempt, goal="minimize"), s3=5.0, s5=2.0, s9=-1.0)
    first = add_attempt(session, attempt.training_session, 1, parent_number=0, fork_step=5)
    log(session, add_series(session, first, goal="minimize"), s6=1.0)
    assert progress_of(session, attempt).metrics["train/loss"]["best"] == 1
    add_attempt(session, attempt.training_session, 2, parent_number=1, fork_step=3)
    row = progress_of(session, attempt)
    assert row.attempt_number == 2
    assert row.metrics["train/loss"] == {"goal": "minimize", "last": 5, "last_step": 3, "best": 5, "best_step": 3}


def test_training_progress_sees_sealed_points(session, attempt):
    series = add_series(session, attempt, goal="maximize")
    add_segment(session, series, {1: 1.0, 2: 7.0, 3: 3.0})
    metrics = progress_of(session, attempt).metrics
    assert metrics["train/loss"] == {"goal": "maximize", "last": 3, "last_step": 3, "best": 7, "best_step": 2}
    log(session, series, s4=5.0)
    assert progress_of(session, attempt).metrics["train/loss"]["last"] == 5


def test_training_progress_cuts_a_segment_at_the_fork(session, attempt):
    add_segment(session, add_series(session, attempt, goal="maximize"), {1: 1.0, 2: 2.0, 3: 3.0})
    add_attempt(session, attempt.training_session, 1, parent_number=0, fork_step=2)
    metrics = progress_of(session, attempt).metrics
    assert metrics["train/loss"] == {"goal": "maximize", "last": 2, "last_step": 2, "best": 2, "best_step": 2}


def test_a_run_that_was_never_started_has_no_pace(session):
    run = add_run(session, add_model(session))
    row = session.get(TrainingProgress, run.id)
    assert (row.attempt_number, row.steps_per_second, row.remaining_seconds, row.metrics) == (None, None, None, {})


def test_reactor_status(session):
    reactor, members = add_reactor(session, *"abc")
    members[0].role = "judge"
    operation = {"reactor": reactor, "strategy": "ensemble", "input": {}, "output": {}}
    for number in range(4):
        status = "failed" if number == 3 else "completed"
        add(session, FusionOperation(**operation, status=status, execution_seconds=float(number), started_at=NOON))
    add(session, ReactorMetric(reactor=reactor, coherence=0.1, quality=0.7, gain=0.2))
    later = func.now() + text("interval '1 minute'")
    add(session, ReactorMetric(reactor=reactor, coherence=0.9, diversity=0.3, recorded_at=later))
    row = session.get(ReactorStatus, reactor.id)
    assert row.members_by_role == {"judge": 1, "primary": 2}
    assert (row.operation_count, row.error_rate) == (4, 0.25)
    assert (row.latency_p50_seconds, row.latency_p95_seconds, row.latency_p99_seconds) == pytest.approx(
        (1.5, 2.85, 2.97)
    )
    assert (row.coherence, row.diversity, row.quality, row.gain) == (0.9, 0.3, 0.7, 0.2)
    assert row.last_operation_at == NOON.astimezone(dt.UTC)
    assert row.reactor is reactor


def test_a_reactor_that_never_ran_has_no_rates(session):
    reactor, _members = add_reactor(session)
    row = session.get(ReactorStatus, reactor.id)
    assert (row.members_by_role, row.operation_count, row.error_rate, row.latency_p99_seconds) == ({}, 0, None, None)


def test_tensor_statistics(session, model):
    session.execute(text("REFRESH MATERIALIZED VIEW arc_halo.mv_tensor_statistics"))
    embedding = session.get(TensorStatistics, (model.id, "none", "embedding"))
    assert (embedding.tensor_count, embedding.element_count, embedding.nbytes) == (1, 6, 24)
    biases = session.get(TensorStatistics, (model.id, "attention", "bias"))
    assert (biases.tensor_count, biases.element_count, biases.nan_count, biases.inf_count) == (2, 8, 2, 0)
    assert (biases.min_value, biases.max_value, biases.mean, biases.zero_fraction) == (-4, 1, 1.5, 0)
    assert biases.l2_norm == pytest.approx(math.sqrt(32))
    assert biases.model is model
    assert session.get(TensorStatistics, (model.id, "none", "buffer")).mean is None


@pytest.mark.parametrize("huge", [1e200, 1.7e308, math.inf])
def test_huge_values_do_not_stop_a_refresh(session, huge):
    model = add_model(session)
    for name in ("one", "two"):
        add_weight(session, model, name, add_tensor(session, 10**6, mean=huge, l2_norm=huge, zero_fraction=0.0))
    session.execute(text("REFRESH MATERIALIZED VIEW arc_halo.mv_tensor_statistics"))
    row = session.get(TensorStatistics, (model.id, "none", "weight"))
    assert row.mean == pytest.approx(huge)
    assert row.l2_norm == pytest.approx(min(huge * math.sqrt(2), 1e308))


def test_statistics_are_refreshed_while_they_are_read(database):
    with database.session() as reader, database.session() as writer:
        assert reader.scalars(select(TensorStatistics)).all() == []
        add_weight(writer, add_model(writer), "w", add_tensor(writer))
        writer.execute(select(func.arc_halo.refresh_statistics()))
        writer.commit()
        assert len(reader.scalars(select(TensorStatistics)).all()) == 1


def test_new_objects_of_a_view_are_refused(session, model):
    session.add(ModelArchitecture(model_id=model.id))
    with pytest.raises(ReadOnlyDatabase, match="v_model_architecture is a view"):
        session.flush()


def test_changes_of_a_view_are_refused(session, model):
    session.get(ModelArchitecture, model.id).status = "archived"
    with pytest.raises(ReadOnlyDatabase):
        session.flush()


def test_deletes_from_a_view_are_refused(session, model):
    session.delete(session.get(ModelArchitecture, model.id))
    with pytest.raises(ReadOnlyDatabase):
        session.flush()


@pytest.mark.parametrize("view", VIEWS)
def test_bulk_statements_on_a_view_are_refused_by_the_database(session, view):
    with pytest.raises(DBAPIError):
        session.execute(delete(view))
