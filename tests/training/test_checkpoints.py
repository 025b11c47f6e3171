"""Whole states saved and loaded."""

import math
import threading
import uuid

import numpy as np
import pytest
from sqlalchemy import func, select, text

from arc_halo.errors import (
    AttemptLost,
    CheckpointError,
    CheckpointExists,
    CheckpointNotFound,
    DigestMismatch,
    TensorNotFound,
)
from arc_halo.registry import create_model
from arc_halo.schema import CheckpointTensor, OptimizerState, TrainingAttempt
from arc_halo.training.checking import check_checkpoints
from arc_halo.training.checkpoint import CheckpointState
from arc_halo.training.finding import latest_checkpoint
from arc_halo.training.loading import load_checkpoint
from arc_halo.training.optimizer import OptimizerSnapshot
from arc_halo.training.publishing import mark_best
from arc_halo.training.saving import save_checkpoint
from tests.fixtures.tensors import count, trained, weights
from tests.schema.rows import add_attempt, add_checkpoint, add_run
from tests.training.states import adam, begin, driver_statements, spelt, state


@pytest.fixture
def attempt(session):
    return begin(session)


def test_a_state_comes_back_bit_for_bit(session, attempt):
    saved = state()
    checkpoint = save_checkpoint(session, attempt, saved, 3, epoch=0.5, metrics={"loss": np.float32(2)})
    session.expire_all()
    loaded = load_checkpoint(session, checkpoint)
    assert spelt(CheckpointState(**{name: getattr(loaded, name) for name in spelt(saved)})) == spelt(saved)
    assert (loaded.step, loaded.epoch, loaded.metrics, loaded.checkpoint_type) == (3, 0.5, {"loss": 2.0}, "full")
    assert list(loaded.weights) == list(saved.weights)
    assert checkpoint.nbytes > sum(array.nbytes for array in saved.weights.values())


def test_loaded_arrays_are_the_callers(session, attempt):
    shared = weights((30, 30))
    checkpoint = save_checkpoint(session, attempt, CheckpointState(weights={"a": shared, "b": shared.copy()}), 1)
    loaded = load_checkpoint(session, checkpoint)
    loaded.weights["a"][:] = 0
    assert loaded.weights["b"].any()


ODD = {
    "w": {
        "step": 7,
        "flag": True,
        "lr": 0.1,
        "nan": math.nan,
        "zero": np.asarray(-0.0),
        "count": np.asarray(2**53 + 1),
        "large": np.asarray(2**64 - 1, np.uint64),
        "big": 2**60,
        "nothing": None,
        "history": [np.arange(100.0), np.arange(3)],
        "nan array": np.asarray(math.nan, np.float32),
        "half": np.asarray(1.5, np.float16),
    },
    "v": {},
}


def test_states_of_any_optimizer_come_back(session, attempt):
    snapshot = OptimizerSnapshot(ODD, [{"params": ["w", "frozen"], "lr": np.asarray(1e-3)}, {"params": ["v"]}])
    checkpoint = save_checkpoint(session, attempt, CheckpointState(optimizer=snapshot), 1)
    assert spelt(load_checkpoint(session, checkpoint).optimizer) == spelt(snapshot)


def test_sql_reads_what_an_optimizer_remembers(session, attempt):
    checkpoint = save_checkpoint(session, attempt, state(), 3)
    row = session.get_one(OptimizerState, (checkpoint.id, "block.bias", "step", 0))
    assert (row.scalar_value, row.scalar_dtype, row.step_count, row.group_index) == (3.0, "F32", 3, 1)
    stated = select(OptimizerState.hyperparameters).where(OptimizerState.hyperparameters != {})
    given = session.scalars(stated.order_by(OptimizerState.group_index)).all()
    assert [each["weight_decay"] for each in given] == [0.01, 0.0]
    assert given[0]["betas"] == [0.9, 0.999]


@pytest.mark.parametrize(
    ("checkpoint_type", "present"),
    [
        ("weights", {"weights", "extra"}),
        ("optimizer", {"optimizer", "scheduler", "scaler", "rng", "data_loader", "extra"}),
    ],
)
def test_a_type_says_what_is_saved(session, attempt, checkpoint_type, present):
    checkpoint = save_checkpoint(session, attempt, state(), 3, checkpoint_type=checkpoint_type)
    loaded = spelt(load_checkpoint(session, checkpoint))
    empty = spelt(CheckpointState())
    assert {name for name, value in loaded.items() if value != empty[name]} == present


@pytest.mark.parametrize("component", ["weights", "optimizer", "gradients", "rng", "other"])
def test_components_can_be_loaded_alone(session, attempt, component):
    saved = state()
    checkpoint = save_checkpoint(session, attempt, saved, 3)
    loaded = spelt(load_checkpoint(session, checkpoint, components=[component]))
    fields = ("scheduler", "scaler", "data_loader", "extra") if component == "other" else (component,)
    whole, empty = spelt(saved), spelt(CheckpointState())
    assert loaded == {name: (whole if name in fields else empty)[name] for name in loaded}


def test_names_choose_among_parameters(session, attempt):
    checkpoint = save_checkpoint(session, attempt, state(), 3)
    loaded = load_checkpoint(session, checkpoint, names=["block.bias"])
    assert list(loaded.weights) == list(loaded.gradients) == list(loaded.optimizer.states) == ["block.bias"]
    with pytest.raises(TensorNotFound, match=r"block\.missing"):
        load_checkpoint(session, checkpoint, names=["block.missing"])


def test_equal_states_have_equal_digests_whatever_the_order(session, attempt):
    first = save_checkpoint(session, attempt, state(), 3)
    again = state()
    again.weights = dict(reversed(again.weights.items()))
    second = save_checkpoint(session, attempt, again, 4, epoch=1.0, metrics={"loss": 1.0})
    assert first.manifest_digest == second.manifest_digest


@pytest.mark.parametrize(
    "change",
    [
        {"weights": {}},
        {"optimizer": adam({"w": weights((2,))}, step=4)},
        {"gradients": None},
        {"scheduler": {"last_epoch": 4}},
        {"scaler": None},
        {"rng": {}},
        {"data_loader": {"epoch": -0.0}},
        {"extra": {"best": 0}},
    ],
)
def test_any_difference_changes_the_digest(session, attempt, change):
    first = save_checkpoint(session, attempt, state(), 3)
    assert save_checkpoint(session, attempt, state(**change), 4).manifest_digest != first.manifest_digest


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE arc_halo.optimizer_state SET scalar_value = 4 WHERE state_name = 'step'",
        "DELETE FROM arc_halo.optimizer_state WHERE parameter_name = 'block.bias' AND state_name = 'exp_avg'",
        "UPDATE arc_halo.checkpoint_tensors SET name = 'other' WHERE name = 'block.bias' AND component = 'weights'",
        "UPDATE arc_halo.model_checkpoints SET scheduler_state = '{}'",
        "UPDATE arc_halo.checkpoint_tensors SET tensor_id = (SELECT id FROM arc_halo.tensor_metadata LIMIT 1)",
    ],
)
def test_rows_that_were_changed_are_noticed(session, attempt, change):
    checkpoint = save_checkpoint(session, attempt, state(), 3)
    session.execute(text(change))
    with pytest.raises(DigestMismatch, match="rows are not those"):
        load_checkpoint(session, checkpoint)
    number, (fault,) = check_checkpoints(session)
    assert (number, fault["checkpoint"]) == (1, str(checkpoint.id))


@pytest.mark.parametrize("step", [-1, 2**63, True, 1.0, None])
def test_impossible_steps_are_refused(session, attempt, step):
    with pytest.raises(CheckpointError, match="step"):
        save_checkpoint(session, attempt, state(), step)


@pytest.mark.parametrize("epoch", [-1.0, math.nan, math.inf])
def test_impossible_epochs_are_refused(session, attempt, epoch):
    with pytest.raises(CheckpointError, match="epoch"):
        save_checkpoint(session, attempt, state(), 1, epoch=epoch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {"w": [1.0]}}, r"weights 'w' is a builtins\.list"),
        ({"weights": {"w": np.array([None])}}, "'w'.* dtype object"),
        ({"weights": {"": np.zeros(1)}}, "is no name"),
        ({"weights": {"a\0": np.zeros(1)}}, "is no name"),
        ({"weights": {"a" * 1001: np.zeros(1)}}, "1,001 bytes"),
        ({"optimizer": OptimizerSnapshot({"w": {"step": 1}}, [])}, "no group"),
        ({"optimizer": OptimizerSnapshot({}, [{"params": ["w"]}, {"params": ["w"]}])}, "twice"),
        ({"extra": {"model": object()}}, "extra/model is a"),
    ],
)
def test_what_cannot_be_stored_is_named_and_nothing_is_stored(session, attempt, change, message):
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(session, attempt, CheckpointState(**change), 1)
    assert count(session, "model_checkpoints") == count(session, "tensor_metadata") == 0


def test_metrics_keep_nan_and_infinity_for_sql_too(session, attempt):
    metrics = {"loss": math.nan, "up": math.inf, "down": -math.inf, "big": 1e16, "one": 1}
    checkpoint = save_checkpoint(session, attempt, CheckpointState(extra="some"), 1, metrics=metrics)
    loaded = load_checkpoint(session, checkpoint).metrics
    assert str(loaded) == str({name: float(loaded[name]) for name in loaded})
    assert math.isnan(loaded["loss"])
    assert (loaded["up"], loaded["down"], loaded["big"]) == (math.inf, -math.inf, 1e16)
    assert session.scalar(text("SELECT (metrics->>'up')::float8 FROM arc_halo.model_checkpoints")) == math.inf
    with pytest.raises(CheckpointError, match="'loss' is no number"):
        save_checkpoint(session, attempt, CheckpointState(), 2, metrics={"loss": "low"})


@pytest.mark.parametrize("checkpoint_type", ["full", "weights", "optimizer"])
def test_a_state_that_holds_nothing_is_refused(session, attempt, checkpoint_type):
    with pytest.raises(CheckpointError, match=f"step 1 holds nothing for a {checkpoint_type} checkpoint"):
        save_checkpoint(session, attempt, CheckpointState(), 1, checkpoint_type=checkpoint_type)


def test_a_step_is_saved_once(session, attempt):
    save_checkpoint(session, attempt, state(), 3)
    with pytest.raises(CheckpointExists, match="of step 3"):
        save_checkpoint(session, attempt, state(1), 3)
    save_checkpoint(session, attempt, state(), 3, checkpoint_type="weights")


def test_of_two_writers_of_one_step_one_wins(database):
    attempt_id = database.transaction(lambda session: begin(session).id)
    barrier, outcomes = threading.Barrier(2), []

    def write(seed):
        with database.session() as session:
            barrier.wait()
            try:
                checkpoint = save_checkpoint(session, attempt_id, state(seed), 3)
                session.commit()
                outcomes.append(checkpoint.id)
            except CheckpointExists:
                outcomes.append(None)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in (1, 2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    (winner,) = [each for each in outcomes if each]
    with database.session() as session:
        assert load_checkpoint(session, winner).step == 3
        assert count(session, "model_checkpoints") == 1


@pytest.mark.parametrize("status", ["lost", "failed", "completed"])
def test_an_attempt_that_does_not_run_saves_nothing(session, attempt, status):
    attempt.status = status
    with pytest.raises(AttemptLost):
        save_checkpoint(session, attempt, state(), 3)
    with pytest.raises(AttemptLost, match="deleted"):
        save_checkpoint(session, uuid.uuid4(), state(), 3)
    assert count(session, "tensor_metadata") == 0


def test_an_attempt_that_is_taken_over_while_it_saves_saves_nothing(database):
    attempt_id = database.transaction(lambda session: begin(session).id)
    taken_over = threading.Event()

    def take_over(*_):
        if not taken_over.is_set():
            taken_over.set()
            with database.session() as session:
                session.execute(text("UPDATE arc_halo.training_attempts SET status = 'lost'"))
                session.commit()

    with database.session() as session:
        with pytest.raises(AttemptLost):
            save_checkpoint(session, attempt_id, state(), 3, progress=take_over)
        session.commit()
    with database.session() as session:
        assert count(session, "model_checkpoints") == 0


def test_who_takes_over_waits_for_a_publication(database):
    attempt_id = database.transaction(lambda session: begin(session).id)

    def take_over():
        with database.session() as session:
            session.execute(text("UPDATE arc_halo.training_attempts SET status = 'lost'"))
            session.commit()

    with database.session() as session:
        save_checkpoint(session, attempt_id, state(), 3)
        taking = threading.Thread(target=take_over)
        taking.start()
        taking.join(0.3)
        assert taking.is_alive()
        session.commit()
    taking.join()
    with database.session() as session:
        assert session.get_one(TrainingAttempt, attempt_id).status == "lost"


def test_the_best_checkpoint_moves(session, attempt):
    first = save_checkpoint(session, attempt, state(), 1, is_best=True)
    second = save_checkpoint(session, attempt, state(), 2, is_best=True)
    third = save_checkpoint(session, attempt, state(), 3)
    assert (first.is_best, second.is_best, third.is_best) == (False, True, False)
    mark_best(session, first)
    session.expire_all()
    assert (first.is_best, second.is_best, third.is_best) == (True, False, False)
    assert save_checkpoint(session, attempt, state(), 1, checkpoint_type="weights", is_best=True).is_best
    assert first.is_best


def test_the_latest_of_a_run_is_on_its_line(session, attempt):
    run = attempt.training_session
    assert latest_checkpoint(session, run) is None
    with pytest.raises(CheckpointNotFound, match="no published checkpoint"):
        load_checkpoint(session, run)
    saved = [save_checkpoint(session, attempt, state(), step) for step in (10, 20, 30)]
    assert latest_checkpoint(session, run.id) is saved[-1]
    rewound = add_attempt(session, run, 1, parent_number=0, fork_step=25)
    assert latest_checkpoint(session, run) is saved[1]
    newest = save_checkpoint(session, rewound, state(), 26, checkpoint_type="weights")
    assert latest_checkpoint(session, run) is newest
    assert latest_checkpoint(session, run, checkpoint_type="full") is saved[1]
    add_attempt(session, run, 2, parent_number=1, fork_step=15)
    assert latest_checkpoint(session, run) is saved[0]


def test_the_latest_of_a_model_was_published_last(session, attempt):
    model = attempt.training_session.model
    other = add_attempt(session, add_run(session, model, "other"))
    save_checkpoint(session, attempt, state(), 30)
    last = save_checkpoint(session, other, state(), 10)
    assert latest_checkpoint(session, model) is last
    assert latest_checkpoint(session, "run@1", checkpoint_type="full") is last
    assert latest_checkpoint(session, model, checkpoint_type="optimizer") is None
    assert load_checkpoint(session, model).step == 10


def test_what_was_not_published_is_not_found(session, attempt):
    pending = add_checkpoint(session, attempt, 10, status="pending", published_at=None)
    with pytest.raises(CheckpointNotFound, match="is pending"):
        load_checkpoint(session, pending.id)
    with pytest.raises(LookupError):
        load_checkpoint(session, uuid.uuid4())


def test_weights_that_did_not_change_share_the_models_tensors(session):
    frozen = {"frozen": weights((50, 50)), "trained": weights((50, 50), 1)}
    model = create_model(session, "m", {}, frozen)
    attempt = add_attempt(session, add_run(session, model))
    before = count(session, "tensor_metadata")
    checkpoint = save_checkpoint(session, attempt, CheckpointState(frozen | {"trained": weights((50, 50), 2)}), 1)
    assert count(session, "tensor_metadata") == before + 1
    used = {row.name: row for row in checkpoint.tensors}
    by_name = {weight.name: weight for weight in model.weights}
    assert used["frozen"].tensor_id == by_name["frozen"].tensor_id
    assert used["trained"].weight_id == by_name["trained"].id


def test_rows_are_written_and_read_in_a_few_statements(session, attempt):
    few, many = (state(shapes={f"w{n}": (2, 2) for n in range(size)}) for size in (2, 60))
    with driver_statements(session) as first:
        save_checkpoint(session, attempt, few, 1)
    with driver_statements(session) as second:
        checkpoint = save_checkpoint(session, attempt, many, 2)
    assert len(second) <= len(first) + 2  # those that look for bases
    with driver_statements(session) as reading:
        load_checkpoint(session, checkpoint)
    assert len(reading) < 10
    tensors = select(func.count()).select_from(CheckpointTensor)
    assert session.scalar(tensors.where(CheckpointTensor.checkpoint_id == checkpoint.id)) > 120


LEANING = text("""
SELECT DISTINCT n.name FROM arc_halo.tensor_data AS d
  JOIN arc_halo.tensor_chunks AS c USING (digest)
  JOIN (SELECT tensor_id, component AS name FROM arc_halo.checkpoint_tensors
         UNION ALL SELECT tensor_id, state_name FROM arc_halo.optimizer_state) AS n USING (tensor_id)
 WHERE d.base_digest IS NOT NULL ORDER BY 1
""")


def drifting(step):
    """A state whose arrays are all near to those of the step before."""
    array = weights((200, 200))
    states = {name: trained(array, step, seed) for seed, name in enumerate(("exp_avg", "exp_avg_sq"))}
    return CheckpointState(
        weights={"w": trained(array, step, 3)},
        optimizer=OptimizerSnapshot({"w": states}, [{"params": ["w"]}]),
        gradients={"w": trained(array, step, 4)},
    )


def test_what_stays_near_to_what_it_was_leans_on_it(session, attempt):
    save_checkpoint(session, attempt, drifting(1), 1)
    assert session.scalars(LEANING).all() == []
    save_checkpoint(session, attempt, drifting(2), 2)
    assert session.scalars(LEANING).all() == ["exp_avg_sq", "weights"]


def test_states_lean_on_the_last_checkpoint_that_has_them(session, attempt):
    save_checkpoint(session, attempt, drifting(1), 1)
    save_checkpoint(session, attempt, drifting(2), 2, checkpoint_type="weights")
    assert session.scalars(LEANING).all() == ["weights"]
    save_checkpoint(session, attempt, drifting(3), 3)
    assert session.scalars(LEANING).all() == ["exp_avg_sq", "weights"]


def test_nothing_leans_where_no_base_is_wanted(session, attempt):
    first = save_checkpoint(session, attempt, drifting(1), 1)
    save_checkpoint(session, attempt, drifting(2), 2, base=None)
    save_checkpoint(session, attempt, drifting(3), 3, compression="none")
    assert session.scalars(LEANING).all() == []
    save_checkpoint(session, attempt, drifting(4), 4, base=first)
    assert session.scalars(LEANING).all() == ["exp_avg_sq", "weights"]
    with pytest.raises(CheckpointError, match="base 'nearest' is none"):
        save_checkpoint(session, attempt, drifting(5), 5, base="nearest")
