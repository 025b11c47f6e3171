"""What is given in place of a run, a checkpoint or a model: found, or refused so that one knows how to go on."""

import logging

import numpy as np
import pytest

from arc_halo import create_model
from arc_halo.errors import (
    CheckpointError,
    CheckpointNotFound,
    ConfigurationError,
    MetricError,
    ModelNotFound,
    RunInUse,
)
from arc_halo.registry import count_runs, delete_model
from arc_halo.training.checkpoint import CheckpointState
from arc_halo.training.comparing import compare_runs
from arc_halo.training.finding import find_checkpoint, latest_checkpoint
from arc_halo.training.naming import find_run
from arc_halo.training.releasing import publish_as_model
from tests.training.trained import attempts, run_of, state


@pytest.fixture
def database_url(migrated_url):
    return migrated_url


def train(begin, steps, save=True, **options):
    with begin(**options) as run:
        first = run.first_step
        for step in range(first, first + steps):
            run.log({"loss": float(step)}, step)
        if save:
            run.save_checkpoint(state(), first + steps - 1)
    return first


def test_a_run_is_named_wherever_a_checkpoint_is_wanted(begin, database):
    train(begin, 3)
    with database.session() as session:
        found = latest_checkpoint(session, "m/r")
        assert found is find_checkpoint(session, "m/r") is find_checkpoint(session, str(found.id).upper())
        assert latest_checkpoint(session, "m") is found
        assert publish_as_model(session, "m@1/r", version="named").version == "named"
        with pytest.raises(ModelNotFound, match=r"no model 'm/x'.*and no training run 'm/x'.*m/r"):
            find_checkpoint(session, "m/x")
        with pytest.raises(CheckpointNotFound, match="12 is no run and no model"):
            find_checkpoint(session, 12)
        with pytest.raises(ModelNotFound, match=r"no model 'y'"):
            find_checkpoint(session, "y")


def test_one_run_is_compared_as_one(begin, database):
    train(begin, 3)
    with database.session() as session:
        assert [run.name for run in compare_runs(session, "m/r").runs] == ["r"]


def test_a_script_goes_on_though_the_model_has_a_new_version(begin, database):
    """As the one that publishing under the default name makes."""
    train(begin, 3)
    with database.session() as session:
        publish_as_model(session, "m/r")
        session.commit()
    assert train(begin, 3) == 3
    assert train(begin, 3, name="other") == 0
    with database.session() as session:
        assert find_run(session, "m/r").model.version == "1"
        assert find_run(session, "m/other").model.version == "2"
    assert train(begin, 3, model="m@2") == 0


def test_another_config_is_told_and_each_attempt_keeps_its_own(begin, database, caplog):
    train(begin, 3, config={"lr": 0.1, "wd": 0})
    with caplog.at_level(logging.WARNING):
        train(begin, 3, config={"lr": 5})
    assert "run 'r' goes on with another config: lr 0.1 -> 5; wd 0 -> None" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        train(begin, 3, config={"lr": 5})
        train(begin, 3)
    assert caplog.text == ""
    assert run_of(database).config == {"lr": 5}
    kept = [each.provenance["config"] for each in attempts(database)]
    assert kept == [{"lr": 0.1, "wd": 0}, {"lr": 5}, {"lr": 5}, {"lr": 5}]


def test_a_model_that_is_trained_is_not_deleted_with_its_runs(begin, database):
    train(begin, 3)
    with begin(name="live"), database.session() as session:
        assert (count_runs(session, "m").run_count, count_runs(session, "m").checkpoint_count) == (2, 1)
        with pytest.raises(RunInUse, match="m@1 is being trained by live, and its runs would go with it"):
            delete_model(session, "m")
    with database.session() as session:
        delete_model(session, "m")
        create_model(session, "m", {}, {"w": np.zeros(1)})
        assert count_runs(session, "m").run_count == 0


def test_what_stands_aside_is_gone_on_from_by_its_id(begin):
    train(begin, 3)
    train(begin, 3)  # 3 to 5
    with begin(fork_step=2):
        pass
    with pytest.raises(CheckpointNotFound, match=r"step 5 .*resume='<id>' goes on from one that stands aside"):
        train(begin, 1, fork_step=5)
    with pytest.raises(CheckpointNotFound, match="fork_step is the step of a checkpoint, a whole number, not '2'"):
        train(begin, 1, fork_step="2")


@pytest.mark.parametrize("planned", [{"total_steps": -5}, {"total_epochs": float("nan")}])
def test_what_is_planned_is_a_number(begin, planned):
    with pytest.raises(ConfigurationError, match=f"{next(iter(planned))} is how much is planned"):
        train(begin, 1, **planned)


@pytest.mark.parametrize("wait", [True, False])
def test_what_is_no_state_is_refused_where_it_is_given(begin, database, wait):
    with begin() as run:
        with pytest.raises(CheckpointError, match=r"a state is a CheckpointState.*not dict; of a torch model"):
            run.save_checkpoint({"w": np.zeros(1)}, 1, wait=wait)
        with pytest.raises(CheckpointError, match="step '1' is no count"):
            run.save_checkpoint(state(), "1", wait=wait)
        with pytest.raises(CheckpointError, match=r"extra/o is a builtins\.object"):
            run.save_checkpoint(CheckpointState(extra={"o": object()}), 1, wait=wait)
        run.save_checkpoint(state(), 2, wait=wait)
    with database.session() as session:
        assert latest_checkpoint(session, "m/r").step == 2


def test_steps_are_no_booleans(begin):
    with begin() as run, pytest.raises(MetricError, match="a step is a whole number, not True"):
        run.log({"loss": 1.0}, True)


def test_a_checkpoint_tells_how_far_the_run_is(begin, database):
    """Points that it took with it are there, so the run is said to be as far."""
    with begin() as run:
        run.log({"loss": 1.0}, 40)
        run.save_checkpoint(state(), 40)
        assert run_of(database).current_step == 40
