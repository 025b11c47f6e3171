"""Models made of checkpoints."""

import numpy as np
import pytest

from arc_halo.errors import CheckpointError, ModelExists
from arc_halo.registry import (
    create_model,
    export_model,
    find_similar_tokens,
    import_model,
    load_model,
    parents_of,
    set_trainable,
)
from arc_halo.schema import ModelLineage
from arc_halo.training.checkpoint import CheckpointState
from arc_halo.training.parts import Part
from arc_halo.training.ranks import begin_checkpoint, publish_checkpoint, write_rank
from arc_halo.training.releasing import publish_as_model
from arc_halo.training.saving import save_checkpoint
from tests.fixtures.models import bert, llama, write_folder
from tests.fixtures.tensors import counts, same, trained, weights
from tests.schema.rows import add_attempt, add_run


def train(session, model, tensors, step=5):
    """A run of the model, and its checkpoint with those weights."""
    run = add_run(session, model)
    return save_checkpoint(session, add_attempt(session, run), CheckpointState(weights=tensors), step)


def loaded(session, model):
    return load_model(session, model, cache=None)


def test_a_version_of_what_was_trained(session, tmp_path):
    origin = import_model(session, write_folder(bert(), tmp_path / "bert"), name="m")
    set_trainable(session, origin, "*LayerNorm*", False)
    before = loaded(session, origin)
    after = {name: trained(array) for name, array in before.items() if array.dtype.kind == "f"}
    checkpoint = train(session, origin, after)
    stored = counts(session)
    model = publish_as_model(session, checkpoint)
    assert counts(session) == stored
    assert (model.name, model.version, model.status) == ("m", "2", "trained")
    expected = before | after  # buffers are those of the origin
    found = loaded(session, model)
    assert list(found) == list(expected)
    assert all(same(found[name], array) for name, array in expected.items())
    assert model.trainable_parameter_count == origin.trainable_parameter_count < model.parameter_count
    assert parents_of(session, model) == [origin]
    (link,) = session.query(ModelLineage).all()
    assert (link.kind, link.recipe["step"], link.recipe["checkpoint_id"]) == ("finetune", 5, str(checkpoint.id))
    export_model(session, model, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in (tmp_path / "bert").iterdir()}


def test_rows_of_its_embeddings_are_searchable(session, tmp_path):
    origin = import_model(session, write_folder(bert(), tmp_path / "bert"), name="m")
    after = {name: trained(array) for name, array in loaded(session, origin).items() if array.dtype.kind == "f"}
    model = publish_as_model(session, train(session, origin, after), "tuned", "best")
    assert (model.name, model.version) == ("tuned", "best")
    assert find_similar_tokens(session, model, "king", 3)


def test_what_is_tied_follows(session):
    tied = {"model.embed_tokens.weight": weights((12, 8))}
    origin = create_model(
        session, "m", llama(tied=True).config, tied | {"lm_head.weight": tied["model.embed_tokens.weight"]}
    )
    after = {"model.embed_tokens.weight": weights((12, 8), 1)}
    model = publish_as_model(session, train(session, origin, after))
    found = loaded(session, model)
    assert same(found["lm_head.weight"], after["model.embed_tokens.weight"])
    assert model.parameter_count == origin.parameter_count == 96


def test_weights_that_were_not_saved_are_those_of_the_model_that_was_trained(session):
    """As of a loop that saves what it trains alone."""
    arrays = {"w": weights((3, 4)), "frozen": weights((5,), 1)}
    origin = create_model(session, "m", {}, arrays)
    model = publish_as_model(session, train(session, origin, {"w": arrays["w"] * 2}))
    found = loaded(session, model)
    assert list(found) == ["w", "frozen"]
    assert same(found["w"], arrays["w"] * np.float32(2))
    assert same(found["frozen"], arrays["frozen"])


def test_weights_of_other_names_are_a_model_of_their_own(session):
    origin = create_model(session, "m", {}, {"old": weights((3,))})
    model = publish_as_model(session, train(session, origin, {"new": weights((4,))}))
    assert list(loaded(session, model)) == ["new"]


def test_weights_that_ranks_saved_in_parts_are_whole(session):
    array = weights((6, 5))
    origin = create_model(session, "m", {}, {"w": array, "b": array[0]})
    checkpoint = begin_checkpoint(session, add_attempt(session, add_run(session, origin)), 1, 2)
    for rank in (0, 1):
        part = Part(array[3 * rank : 3 * rank + 3] * 2, (3 * rank, 0), (6, 5))
        write_rank(session, checkpoint, rank, CheckpointState(weights={"w": part, "b": array[1]}))
    model = publish_as_model(session, publish_checkpoint(session, checkpoint))
    found = loaded(session, model)
    assert same(found["w"], array * np.float32(2))
    assert same(found["b"], array[1])


def test_what_cannot_become_a_model_is_refused(session):
    origin = create_model(session, "m", {}, {"w": weights((3,))})
    attempt = add_attempt(session, add_run(session, origin))
    checkpoint = save_checkpoint(session, attempt, CheckpointState(extra="no weights"), 5)
    with pytest.raises(CheckpointError, match="holds no weights"):
        publish_as_model(session, checkpoint)
    with pytest.raises(ModelExists):
        publish_as_model(session, train_again(session, checkpoint), version="1")


def train_again(session, checkpoint):
    return save_checkpoint(session, checkpoint.attempt, CheckpointState(weights={"w": weights((3,), 1)}), 6)
