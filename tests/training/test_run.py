from __future__ import annotations

import math

import numpy as np
import pytest
from sqlalchemy import select, text

from arc_halo.errors import (
    CheckpointError,
    CheckpointExists,
    CheckpointNotFound,
    ConfigurationError,
    InvalidName,
    MetricError,
    ModelNotFound,
)
from arc_halo.schema import ModelCheckpoint, ModelWeight
from arc_halo.training.run import training_run
from tests.training.trained import add_model, attempts, model_status, run_of, state, stored


def test_what_was_logged_is_there_when_the_block_ends(begin, database):
    with begin(config={"lr": np.float32(0.5)}, total_steps=10) as run:
        assert (run.attempt_number, run.first_step, run.resumed_from, run.load_checkpoint()) == (1, 0, None, None)
        for step in range(10):
            run.log({"loss": 1 / (step + 1), "lr": 0.1}, step, epoch=step / 10)
    assert stored(database) == [(1, step, 1 / (step + 1)) for step in range(10)]
    row = run_of(database)
    assert (row.status, row.current_step, row.current_epoch, row.config) == ("completed", 9, 0.9, {"lr": 0.5})
    (attempt,) = attempts(database)
    assert (attempt.status, attempt.error, attempt.ended_at is None) == ("completed", None, False)
    assert model_status(database) == "trained"


def test_flush_stores_now(begin, database):
    with begin() as run:
        run.log({"loss": 1.0}, 0)
        run.log({"loss": 2.0}, 0)
        run.flush()
        assert stored(database) == [(1, 0, 2.0)]
        run.log({"loss": math.nan}, 1, scope="validation", context={"data": "news"})
        run.flush(timeout=30)
        assert math.isnan(stored(database)[1][2])


def test_points_are_visible_soon_without_a_flush(begin, database):
    with begin() as run:
        run.log({"loss": 1.0}, 0)
        while not stored(database):
            pass


def fail(begin, error, *, saves=False, **options):
    """A run that logs, and then raises."""
    with begin(**options) as run:
        run.log({"loss": 1.0}, 3)
        if saves:
            run.save_checkpoint(state(), 3)
        raise error


def test_an_error_is_kept_and_raised(begin, database):
    with pytest.raises(ZeroDivisionError):
        fail(begin, ZeroDivisionError("division by zero"))
    (attempt,) = attempts(database)
    assert attempt.status == "failed"
    assert attempt.error.startswith("ZeroDivisionError: division by zero (")
    assert stored(database) == [(1, 3, 1.0)]
    assert (run_of(database).status, model_status(database)) == ("failed", "initialized")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_stops_the_run(begin, database, error):
    with pytest.raises(error):
        fail(begin, error)
    assert [each.status for each in attempts(database)] == ["stopped"]
    assert run_of(database).status == "stopped"


def test_a_run_that_failed_with_a_checkpoint_is_still_training_its_model(begin, database):
    with pytest.raises(ValueError, match="bad"):
        fail(begin, ValueError("bad"), saves=True)
    assert model_status(database) == "training"


def test_stopping_ends_the_run_there(begin, database):
    with begin() as run:
        run.log({"loss": 1.0}, 0)
        run.stop()
        with pytest.raises(MetricError, match="has ended"):
            run.log({"loss": 1.0}, 1)
        with pytest.raises(MetricError, match="has ended"):
            run.save_checkpoint(state(), 1)
        run.stop()
    assert [each.status for each in attempts(database)] == ["stopped"]
    with begin() as run, pytest.raises(MetricError, match="give stopped"):
        run.stop("finished")


def test_it_resumes_from_the_newest_checkpoint(begin, database):
    with begin() as run:
        run.save_checkpoint(state(1), 3, epoch=0.25)
        second = run.save_checkpoint(state(2), 6, epoch=0.5)
        run.save_checkpoint(state(9), 9, checkpoint_type="weights")
    with begin() as run:
        assert (run.attempt_number, run.first_step, run.resumed_from) == (2, 7, second.id)
        loaded = run.load_checkpoint()
        assert (loaded.step, loaded.weights["w"].max(), loaded.extra) == (6, 2.0, {"number": 2})
        row = run_of(database)
        assert (row.status, row.current_step, row.current_epoch) == ("running", 6, 0.5)
    first, resumed = attempts(database)
    assert (resumed.parent_number, resumed.fork_step, resumed.fork_checkpoint_id) == (1, 6, second.id)
    assert first.status == "completed"


def test_without_a_checkpoint_it_begins_anew(begin, database):
    for _ in range(2):
        with begin() as run:
            assert run.first_step == 0
    assert [each.parent_number for each in attempts(database)] == [None, None]


def test_resume_true_wants_a_checkpoint(begin):
    with pytest.raises(CheckpointNotFound, match="has published none"), begin(resume=True):
        pass
    with begin() as run:
        run.save_checkpoint(state(), 1)
    with begin(resume=True) as run:
        assert run.first_step == 2
    with begin(resume=False) as run:
        assert (run.first_step, run.resumed_from) == (0, None)
    with begin() as run:  # its line is that of the attempt before, which began anew
        assert run.first_step == 0


def test_rewinding_goes_on_from_an_earlier_step(begin):
    with begin() as run:
        for step in (2, 4, 6):
            run.log({"loss": float(step)}, step)
            run.save_checkpoint(state(step), step)
    with begin(fork_step=4) as run:
        assert (run.first_step, run.load_checkpoint().extra) == (5, {"number": 4})
        run.log({"loss": -5.0}, 5)
    with begin() as run:  # the checkpoint of step 6 is on no line any more
        assert run.first_step == 5
    with pytest.raises(CheckpointNotFound, match=r"step 5 .*it has step 6 \(full\)"), begin(fork_step=5):
        pass


def test_forking_from_a_checkpoint_that_is_named(begin):
    with begin() as run:
        saved = [run.save_checkpoint(state(step), step) for step in (2, 4)]
    with begin(resume=False) as run:
        pass
    with begin(resume=str(saved[0].id)) as run:
        assert (run.first_step, run.resumed_from) == (3, saved[0].id)
    with pytest.raises(CheckpointNotFound, match="of step 4, not 2"), begin(resume=saved[1].id, fork_step=2):
        pass
    with pytest.raises(CheckpointNotFound, match="no checkpoint; give"), begin(resume="latest"):
        pass


def test_a_checkpoint_of_another_run_is_not_found(begin):
    with begin(name="other") as run:
        saved = run.save_checkpoint(state(), 1)
    with begin():
        pass
    with pytest.raises(CheckpointNotFound, match="'r' has no checkpoint"), begin(resume=saved.id):
        pass


def test_a_run_without_a_name_gets_one(begin):
    with begin(name=None) as first, begin(name=None) as second:
        assert first.name != second.name
        assert first.name.replace("-", "").isalnum()


def test_what_cannot_be_used_is_said_before_anything_begins(begin, database):
    for options, error in [
        ({"model": "none"}, ModelNotFound),
        ({"name": "a@b"}, InvalidName),
        ({"goals": {"loss": "less"}}, MetricError),
        ({"config": {"f": print}}, ConfigurationError),
        ({"rank": 1}, CheckpointError),
    ]:
        with pytest.raises(error), begin(**options):
            pass
    assert attempts(database) == []
    assert model_status(database) == "initialized"


def test_weights_that_are_trained_are_said_so(begin, database):
    with begin(trainable=["b", "adapter.w"]):
        pass
    with database.session() as session:
        assert dict(session.execute(select(ModelWeight.name, ModelWeight.is_trainable)).all()) == {
            "w": False,
            "b": True,
        }


def test_a_deployed_model_stays_deployed(begin, database):
    with database.session() as session:
        session.execute(text("UPDATE arc_halo.models SET status = 'deployed'"))
        session.commit()
    with begin():
        assert model_status(database) == "deployed"
    assert model_status(database) == "deployed"


def test_a_model_is_trained_until_its_last_run_ends(begin, database):
    with begin(name="outer") as outer:
        with pytest.raises(ValueError, match="bad"):
            fail(begin, ValueError("bad"), name="inner")
        assert model_status(database) == "training"
        outer.stop("failed")
    assert model_status(database) == "initialized"


def transactions(database):
    """Numbers of those that wrote something, as each notes itself."""
    with database.session() as session:
        return set(session.scalars(text("SELECT xmin::text FROM arc_halo.operations")))


def test_points_and_checkpoint_are_one_commit(begin, database, monkeypatch):
    monkeypatch.setattr("arc_halo.training.recorder.FLUSH_SECONDS", 60.0)
    with begin() as run:
        before = transactions(database)
        for step in range(50):
            run.log({"loss": float(step)}, step)
        run.save_checkpoint(state(), 49)
        later = transactions(database) - before  # that of the position in the log is another
        assert len(stored(database)) == 50
        assert len(later) == 2
        with database.session() as session:
            assert set(session.scalars(text("SELECT xmin::text FROM arc_halo.training_metrics"))) < later


def test_a_save_that_fails_leaves_the_points_to_the_next(begin, database):
    with begin() as run:
        run.save_checkpoint(state(), 1)
        run.log({"loss": 1.0}, 2)
        with pytest.raises(CheckpointExists):
            run.save_checkpoint(state(), 1)
        run.log({"loss": 2.0}, 3)
        run.save_checkpoint(state(), 3)
        assert stored(database) == [(1, 2, 1.0), (1, 3, 2.0)]


def test_what_a_checkpoint_says_of_metrics(begin, database):
    with begin(goals={"accuracy": "maximize"}) as run:
        best = []
        for step, accuracy in enumerate([0.5, 0.7, 0.6, math.nan, 0.8]):
            run.log({"loss": 1.0, "accuracy": 0.9}, step)
            run.log({"accuracy": accuracy}, step, scope="validation")
            run.log({"accuracy": accuracy}, step, context={"layer": 1})
            saved = run.save_checkpoint(state(step), step)
            best.append(saved.is_best)
            assert saved.metrics["loss"] == 1.0
    assert best == [True, True, False, False, True]
    assert saved.metrics == {"loss": 1.0, "accuracy": 0.9, "validation/accuracy": 0.8}
    with database.session() as session:
        assert session.scalars(select(ModelCheckpoint.step).where(ModelCheckpoint.is_best)).all() == [4]


def test_the_position_in_the_log_is_after_the_commit(begin, database):
    with begin() as run:
        saved = run.save_checkpoint(state(), 1)
    with database.session() as session:
        row = session.get(ModelCheckpoint, saved.id)
        assert row.lsn == saved.lsn
        assert session.scalar(text("SELECT pg_current_wal_insert_lsn() >= CAST(:lsn AS pg_lsn)"), {"lsn": saved.lsn})


def test_provenance_is_kept(begin, database):
    with begin(capture=True, config={"lr": 0.1}, seed=7):
        pass
    (attempt,) = attempts(database)
    assert attempt.provenance["config"] == {"lr": 0.1}
    assert attempt.provenance["seeds"]["seed"] == 7
    assert any(each.startswith("sqlalchemy==") for each in attempt.provenance["environment"]["packages"])
    assert len(attempt.environment_digest) == 32


def test_runs_of_another_model_with_the_same_name_are_others(begin, database):
    add_model(database, "n")
    with begin() as run:
        run.save_checkpoint(state(), 1)
    with begin(model="n") as run:
        assert (run.attempt_number, run.first_step) == (1, 0)


def test_its_repr_says_which_it_is(begin):
    with begin() as run:
        assert repr(run) == "TrainingRun('r', attempt 1, from step 0)"


def test_signature_has_no_positional_options():
    with pytest.raises(TypeError), training_run(None, "m"):
        pass
