"""Deleting runs: all of it, nothing else, and not under somebody's hands."""

import numpy as np
import pytest
from sqlalchemy import event, func, select, text

from arc_halo.errors import ConstraintViolation, RunInUse, RunNotFound
from arc_halo.schema import Base, Embedding, TrainingAttempt
from arc_halo.training.deleting import Deleted, delete_run
from arc_halo.training.points import write_points
from arc_halo.training.sealing import seal_points
from tests.schema.rows import add, add_attempt, add_checkpoint, add_model, add_run, add_series
from tests.training.test_points import points_of

TABLES = (
    "training_sessions", "training_attempts", "training_ranks", "metric_series", "metric_summaries", "metric_segments",
    "training_metrics", "model_checkpoints", "embeddings",
)  # fmt: skip


def count_rows(session):
    tables = Base.metadata.tables
    return {name: session.scalar(select(func.count()).select_from(tables[f"arc_halo.{name}"])) for name in TABLES}


def add_whole_run(session, model, name, **attempt):
    run = add_run(session, model, name)
    attempt = add_attempt(session, run, **{"status": "completed", **attempt})
    for metric in ("loss", "accuracy"):
        write_points(session, points_of(add_series(session, attempt, metric), range(1000)))
    seal_points(session, run, keep_points=300)
    add_checkpoint(session, attempt, 10)
    vector = np.ones(384, np.float32)
    add(session, Embedding(kind="run", owner_id=run.id, row_index=0, dimension=384, vector=vector))
    return run


@pytest.fixture
def model(session):
    return add_model(session)


def test_a_run_goes_with_all_that_is_its_own_and_others_stay(session, model):
    before = count_rows(session)
    kept = add_whole_run(session, model, "kept")
    with_one = count_rows(session)
    run = add_whole_run(session, model, "gone")
    assert delete_run(session, "model/gone") == Deleted(1, 2, 2000, 1)
    assert count_rows(session) == with_one
    with pytest.raises(RunNotFound):
        delete_run(session, run.id)
    delete_run(session, kept)
    assert count_rows(session) == before


def test_a_run_that_was_never_started_may_go(session, model):
    assert delete_run(session, add_run(session, model)) == Deleted(0, 0, 0, 0)


def test_a_run_in_use_is_refused_unless_forced(session, model):
    run = add_whole_run(session, model, "run", status="running", host="node7", pid=4711)
    before = count_rows(session)
    with pytest.raises(RunInUse, match=r"model@1/run.*process 4711 on node7"):
        delete_run(session, run)
    assert count_rows(session) == before
    assert delete_run(session, run, force=True).point_count == 2000


def test_an_attempt_that_is_silent_is_not_in_use(session, model):
    run = add_whole_run(session, model, "run", status="running")
    session.execute(
        text("UPDATE arc_halo.training_attempts SET heartbeat_at = statement_timestamp() - interval '50 seconds'")
    )
    with pytest.raises(RunInUse, match="50 s ago"):
        delete_run(session, run)
    delete_run(session, run, stale_after=40.0)


def test_only_the_newest_attempt_matters(session, model):
    run = add_whole_run(session, model, "run", status="running")
    add_attempt(session, run, 1, parent_number=0, fork_step=5, status="failed")
    delete_run(session, run)
    assert session.scalars(select(TrainingAttempt)).all() == []


def test_a_writer_of_a_deleted_run_is_told(session, model):
    run = add_run(session, model)
    points = points_of(add_series(session, add_attempt(session, run)), range(10))
    delete_run(session, run, force=True)
    with pytest.raises(ConstraintViolation) as caught, session.begin_nested():
        write_points(session, points)
    assert caught.value.is_dangling


def test_nothing_is_read_of_what_is_deleted(session, model):
    """Whatever its size, the same few statements."""
    counts = []
    for size in (1, 3000):
        run = add_run(session, model, f"run{size}")
        write_points(session, points_of(add_series(session, add_attempt(session, run)), range(size)))
        counts.append(statements_of(session, run))
    assert counts[0] == counts[1] < 12


def statements_of(session, run):
    seen, engine = [], session.get_bind().engine

    def note(_connection, _cursor, statement, *_arguments):
        seen.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    delete_run(session, run, force=True)
    event.remove(engine, "before_cursor_execute", note)
    return len(seen)
