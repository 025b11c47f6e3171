from __future__ import annotations

import pytest
from sqlalchemy import select, text, update

from arc_halo.codecs.digest import manifest_root
from arc_halo.dtypes import by_name
from arc_halo.errors import TensorNotFound
from arc_halo.registry import check_model, create_model, import_model, set_trainable
from arc_halo.schema import Model, ModelWeight
from tests.fixtures.models import bert, gpt2, llama, mixtral, write_folder
from tests.fixtures.tensors import fetched_chunks, weights

FAMILIES = {"bert": bert(), "gpt2": gpt2(), "llama": llama(), "mixtral": mixtral()}


@pytest.fixture(params=FAMILIES)
def model(request, session, tmp_path):
    return import_model(session, write_folder(FAMILIES[request.param], tmp_path / "model"), name=request.param)


def counted(session, model):
    """Total and trainable parameters: of loaded objects, of a SELECT, of the function."""
    session.refresh(model)
    session.expire(model, ["weights"])
    selected = select(Model.parameter_count, Model.trainable_parameter_count).where(Model.id == model.id)
    called = text("SELECT total, trainable FROM arc_halo.calculate_model_parameters(:id)")
    return {
        (model.parameter_count, model.trainable_parameter_count),
        tuple(session.execute(selected).one()),
        tuple(session.execute(called, {"id": model.id}).one()),
    }


def test_counts_agree_however_they_are_asked(session, model):
    ((total, trainable),) = counted(session, model)
    assert total == trainable > 0


def test_what_is_frozen_is_not_trainable(session, model):
    ((total, _),) = counted(session, model)
    frozen = [weight for weight in model.weights if ".0." in weight.name and weight.category != "buffer"]
    assert set_trainable(session, model, "*.0.*", trainable=False) >= len(frozen) > 0
    ((same_total, trainable),) = counted(session, model)
    assert same_total == total
    assert trainable == total - sum(weight.tensor.element_count for weight in frozen)
    set_trainable(session, model, "*", trainable=True)
    assert counted(session, model) == {(total, total)}


def test_buffers_are_never_trainable(session, tmp_path):
    model = import_model(session, write_folder(bert(), tmp_path / "model"), name="a")
    set_trainable(session, model, "*", trainable=True)
    buffers = select(ModelWeight.is_trainable).where(ModelWeight.category == "buffer")
    assert session.scalars(buffers).all() == [False]
    with pytest.raises(TensorNotFound):
        set_trainable(session, model, "*position_ids", trainable=True)


def test_a_pattern_that_matches_nothing_is_an_error(session, model):
    with pytest.raises(TensorNotFound, match=r"nothing\.\*"):
        set_trainable(session, model, "nothing.*", trainable=False)


def test_freezing_does_not_touch_the_digest_of_the_weights(session, model):
    before = model.weights_digest
    set_trainable(session, model, "*", trainable=False)
    session.refresh(model)
    assert model.weights_digest == before is not None


CHANGES = {
    "changed": lambda other: update(ModelWeight).values(tensor_id=other).where(ModelWeight.position == 3),
    "renamed": lambda _: update(ModelWeight).values(name="other").where(ModelWeight.position == 3),
    "removed": lambda _: text("DELETE FROM arc_halo.model_weights WHERE position = 3"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changing_a_weight_clears_the_digest(session, tmp_path, change):
    other = create_model(session, "other", {}, {"a": weights((3, 3))}).weights[0].tensor_id
    model = import_model(session, write_folder(bert(), tmp_path / "model"), name="a")
    session.execute(CHANGES[change](other))
    session.refresh(model)
    assert model.weights_digest is None
    assert list(check_model(session, model)) == []


def test_the_digest_is_the_root_over_the_manifest(model):
    rows = [(w.name, by_name(w.tensor.dtype), w.tensor.shape, w.tensor.digest) for w in model.weights]
    assert model.weights_digest == manifest_root(rows)


def test_equal_models_have_equal_roots_and_others_do_not(session):
    arrays = {"a": weights((3, 4)), "b": weights((5,), 1)}
    root = create_model(session, "one", {}, arrays).weights_digest
    assert create_model(session, "two", {"x": 1}, dict(reversed(arrays.items()))).weights_digest == root
    for other in ({**arrays, "c": weights((1,))}, {"a": arrays["b"], "b": arrays["a"]}, {**arrays, "a": -arrays["a"]}):
        assert create_model(session, "other", {}, other).weights_digest != root


def test_many_small_tensors_are_checked_by_few_statements(session):
    arrays = {f"t{index}": weights((5, 5), index) for index in range(60)}
    model = create_model(session, "m", {}, arrays)
    with fetched_chunks(session) as fetched:
        assert list(check_model(session, model)) == []
    assert fetched == [60]
