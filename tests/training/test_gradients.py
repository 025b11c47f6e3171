"""Gradients of checkpoints as weights refer to them."""

import numpy as np
import pytest
from sqlalchemy import select

from arc_halo.registry import create_model, delete_model
from arc_halo.schema import CheckpointTensor, ModelWeight
from arc_halo.training.checkpoint import CheckpointState
from arc_halo.training.parts import Part
from arc_halo.training.ranks import begin_checkpoint, publish_checkpoint, write_rank
from arc_halo.training.retention import delete_checkpoint
from arc_halo.training.saving import save_checkpoint
from tests.fixtures.tensors import count, weights
from tests.schema.rows import add_attempt, add_run


@pytest.fixture
def attempt(session):
    model = create_model(session, "m", {}, {"w": weights((30, 30)), "v": weights((2,))})
    return add_attempt(session, add_run(session, model))


def save(session, attempt, step, value):
    gradients = {"w": np.full((30, 30), value, np.float32), "x": np.ones(3)}
    return save_checkpoint(session, attempt, CheckpointState(gradients=gradients), step)


def gradients(session):
    """Of each weight the tensor of its gradient."""
    session.expire_all()
    return dict(session.execute(select(ModelWeight.name, ModelWeight.gradient_tensor_id)).all())


def brought(session, checkpoint):
    statement = select(CheckpointTensor.tensor_id).where(CheckpointTensor.name == "w")
    return session.scalars(statement.where(CheckpointTensor.checkpoint_id == checkpoint.id)).one()


def test_weights_refer_to_those_of_the_last_checkpoint(session, attempt):
    save(session, attempt, 1, 0.5)
    second = save(session, attempt, 2, 0.25)
    assert gradients(session) == {"w": brought(session, second), "v": None}


def test_the_models_digest_stays(session, attempt):
    model = attempt.training_session.model
    before = model.weights_digest
    save(session, attempt, 1, 0.5)
    session.refresh(model)
    assert model.weights_digest == before is not None


def test_weights_forget_those_that_no_checkpoint_holds(session, attempt):
    same = [save(session, attempt, step, 0.5) for step in (1, 2)]
    delete_checkpoint(session, same[0])
    assert gradients(session)["w"] == brought(session, same[1])
    delete_checkpoint(session, same[1])
    assert gradients(session)["w"] is None


def test_an_older_checkpoint_takes_nothing_along(session, attempt):
    first, second = (save(session, attempt, step, step / 4) for step in (1, 2))
    delete_checkpoint(session, first)
    assert gradients(session)["w"] == brought(session, second)


@pytest.mark.parametrize("owner", ["run", "model"])
def test_they_go_with_run_and_model(session, attempt, owner):
    save(session, attempt, 1, 0.5)
    if owner == "run":
        session.delete(attempt.training_session)
        session.flush()
        assert gradients(session) == {"w": None, "v": None}
    else:
        delete_model(session, "m", force=True)
        assert count(session, "model_weights") == 0


def test_gradients_in_parts_are_none_that_a_weight_can_refer_to(session, attempt):
    checkpoint = begin_checkpoint(session, attempt, 1, 2)
    for rank in (0, 1):
        part = Part(np.ones((15, 30), np.float32), (15 * rank, 0), (30, 30))
        write_rank(session, checkpoint, rank, CheckpointState(gradients={"w": part, "v": np.ones(2, np.float32)}))
    publish_checkpoint(session, checkpoint)
    found = gradients(session)
    assert found["w"] is None
    assert found["v"] is not None
